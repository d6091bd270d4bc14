#!/usr/bin/env python3
"""Says what is compiled into the program: an SBOM (SPDX 2.3, JSON) and the
licences of all crates. Only what is linked for one target counts: no build
scripts, no tests, no other platform's crates.

usage: scripts/sbom.py TRIPLE PROGRAM SBOM LICENCES
  SOURCE_DATE_EPOCH  the time in the SBOM; default 0, so that it is the same each time
"""

import datetime
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LICENCE = re.compile(r"^(licen[cs]e|copying|notice|unlicense|copyright)", re.IGNORECASE)


def metadata(triple):
    command = [os.environ.get("CARGO", "cargo"), "metadata", "--locked", "--format-version", "1",
               "--filter-platform", triple]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def checksums():
    """(name, version) -> sha256 of the crate, from Cargo.lock."""
    found = {}
    for block in (ROOT / "Cargo.lock").read_text().split("[[package]]")[1:]:
        fields = dict(re.findall(r'^(name|version|checksum) = "(.*)"$', block, re.MULTILINE))
        if "checksum" in fields:
            found[fields["name"], fields["version"]] = fields["checksum"]
    return found


def linked(meta):
    """The packages of the program, and who depends on whom."""
    packages = {package["id"]: package for package in meta["packages"]}
    nodes = {node["id"]: node for node in meta["resolve"]["nodes"]}
    start = meta["resolve"]["root"]
    uses, waiting = {}, [start]
    while waiting:
        package = waiting.pop()
        if package in uses:
            continue
        uses[package] = []
        # A procedural macro runs in the compiler, and so does what it is made of.
        if any("proc-macro" in target["kind"] for target in packages[package]["targets"]):
            continue
        for dependency in nodes[package]["deps"]:
            kinds = [kind["kind"] for kind in dependency["dep_kinds"]]
            other = packages[dependency["pkg"]]
            is_macro = any("proc-macro" in target["kind"] for target in other["targets"])
            if None in kinds and not is_macro:
                uses[package].append(dependency["pkg"])
                waiting.append(dependency["pkg"])
    return packages, start, uses


def spdx(name):
    return "SPDXRef-" + re.sub(r"[^A-Za-z0-9.-]", "-", name)


def expression(package):
    """The licence as SPDX writes it; old crates have a slash for OR."""
    return (package["license"] or "NOASSERTION").replace("/", " OR ")


def runtime(program):
    """What is linked beside crates: name, version, licence."""
    rustc = subprocess.run([os.environ.get("RUSTC", "rustc"), "--version"], cwd=ROOT, check=True,
                           stdout=subprocess.PIPE, text=True).stdout.split()[1]
    yield "rust-std", rustc, "MIT OR Apache-2.0"
    # It names itself, whichever of the machine's C libraries it is.
    glibc = re.search(rb"GNU C Library \(.*?\) \w+ release version ([0-9.]+[0-9])",
                      pathlib.Path(program).read_bytes())
    if glibc:
        yield "glibc", glibc.group(1).decode(), "LGPL-2.1-or-later"


def sbom(packages, start, uses, program):
    sums = checksums()
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    created = datetime.datetime.fromtimestamp(epoch, datetime.timezone.utc)
    digest = hashlib.sha256(pathlib.Path(program).read_bytes()).hexdigest()
    described, relations = [], []
    for identity in sorted(uses, key=lambda one: (packages[one]["name"], packages[one]["version"])):
        package = packages[identity]
        name, version = package["name"], package["version"]
        reference = spdx(f"{name}-{version}")
        entry = {
            "SPDXID": reference,
            "name": name,
            "versionInfo": version,
            "downloadLocation": "NOASSERTION",
            "licenseDeclared": expression(package),
            "licenseConcluded": "NOASSERTION",
            "copyrightText": "NOASSERTION",
            "filesAnalyzed": False,
        }
        if identity == start:
            entry["primaryPackagePurpose"] = "APPLICATION"
            entry["checksums"] = [{"algorithm": "SHA256", "checksumValue": digest}]
        else:
            entry["downloadLocation"] = f"https://crates.io/api/v1/crates/{name}/{version}/download"
            entry["checksums"] = [{"algorithm": "SHA256", "checksumValue": sums[name, version]}]
            entry["externalRefs"] = [{
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": f"pkg:cargo/{name}@{version}",
            }]
        described.append(entry)
        for used in sorted(uses[identity]):
            other = packages[used]
            relations.append({
                "spdxElementId": reference,
                "relationshipType": "DEPENDS_ON",
                "relatedSpdxElement": spdx(f"{other['name']}-{other['version']}"),
            })
    root = packages[start]
    for name, version, licence in runtime(program):
        described.append({
            "SPDXID": spdx(f"{name}-{version}"),
            "name": name,
            "versionInfo": version,
            "downloadLocation": "NOASSERTION",
            "licenseDeclared": licence,
            "licenseConcluded": "NOASSERTION",
            "copyrightText": "NOASSERTION",
            "filesAnalyzed": False,
        })
        relations.append({
            "spdxElementId": spdx(f"{root['name']}-{root['version']}"),
            "relationshipType": "STATIC_LINK",
            "relatedSpdxElement": spdx(f"{name}-{version}"),
        })
    relations.insert(0, {
        "spdxElementId": "SPDXRef-DOCUMENT",
        "relationshipType": "DESCRIBES",
        "relatedSpdxElement": spdx(f"{root['name']}-{root['version']}"),
    })
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"{root['name']}-{root['version']}",
        "documentNamespace": f"{root['repository']}/sbom/{root['version']}/{digest}",
        "creationInfo": {
            "created": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "creators": ["Tool: scripts/sbom.py"],
        },
        "packages": described,
        "relationships": relations,
    }


def licences(packages, start, uses, program):
    """Each text once, under the crates that have it."""
    texts, without = {}, []
    for identity in uses:
        if identity == start:
            continue
        package = packages[identity]
        title = f"{package['name']} {package['version']} ({expression(package)})"
        directory = pathlib.Path(package["manifest_path"]).parent
        files = [file for file in directory.iterdir() if LICENCE.match(file.name) and file.is_file()]
        for file in files:
            text = file.read_text(errors="replace").replace("\r\n", "\n").strip()
            texts.setdefault(text, set()).add(title)
        if not files:
            without.append(f"{title}: {', '.join(package['authors']) or 'no author named'}")
    sections = sorted((sorted(titles), text) for text, titles in texts.items())
    out = ["What is compiled into aufs-csi beside its own code, and under which licences.\n"]
    for titles, text in sections:
        out.append("=" * 79 + "\n" + "\n".join(titles) + "\n" + "-" * 79 + "\n\n" + text + "\n")
    out.append("=" * 79 + "\nWhat the toolchain links:\n" + "\n".join(
        f"{name} {version} ({licence})" for name, version, licence in runtime(program)) + "\n")
    if without:
        out.append("=" * 79 + "\nWithout a text of their own:\n" + "\n".join(sorted(without)) + "\n")
    return "\n".join(out)


def main():
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    triple, program, sbom_file, licence_file = sys.argv[1:]
    packages, start, uses = linked(metadata(triple))
    document = sbom(packages, start, uses, program)
    pathlib.Path(sbom_file).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    pathlib.Path(licence_file).write_text(licences(packages, start, uses, program))


main()
