#!/usr/bin/env bash
# What must be true of the container image: looks at an archive that image.sh
# made, runs the program in it, and makes it a second time.
#
# usage: scripts/test-image.sh ARCHIVE [amd64|arm64]
#   PROGRAM in IMAGE_PROGRAM is used for the second one; default that of the first
set -euo pipefail
cd "$(dirname "$0")/.."
archive=${1:?usage: scripts/test-image.sh ARCHIVE [amd64|arm64]}
arch=${2:-$(basename "$archive" .tar | sed 's/.*-//')}
# A node pulls it before the first pod can start.
readonly MAX_BYTES=25000000

die() {
    echo "test-image: $*" >&2
    exit 1
}
# expect WHAT ACTUAL WANTED
expect() { [[ $2 = "$3" ]] || die "$1: is $(printf %q "$2"), wanted $(printf %q "$3")"; }

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
size=$(stat --format=%s "$archive")
((size < MAX_BYTES)) || die "$archive has $size bytes; $MAX_BYTES is the limit"

skopeo inspect --config "docker-archive:$archive" >"$scratch/config.json"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
python3 - "$scratch/config.json" "$version" "$arch" <<'PYTHON'
import json, re, sys

image = json.load(open(sys.argv[1]))
version, arch = sys.argv[2:]
config, labels = image["config"], image["config"]["Labels"]
name = "org.opencontainers.image."

def expect(what, actual, wanted):
    if actual != wanted:
        sys.exit(f"test-image: {what}: is {actual!r}, wanted {wanted!r}")

expect("platform", (image["os"], image["architecture"]), ("linux", arch))
expect("entrypoint", config["Entrypoint"], ["/aufs-csi"])
expect("command", config["Cmd"], ["--help"])
expect("user", config.get("User", ""), "")
expect("volumes", config.get("Volumes"), None)
expect("layers", len(image["rootfs"]["diff_ids"]) in (1, 3), True)
expect("title", labels[name + "title"], "aufs-csi")
expect("version", labels[name + "version"], version)
expect("licence", labels[name + "licenses"], "Apache-2.0")
expect("source", labels[name + "source"], "https://github.com/aufs-csi/aufs-csi")
expect("revision", bool(re.fullmatch("[0-9a-f]{40}|unknown", labels[name + "revision"])), True)
expect("created", bool(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", labels[name + "created"])), True)
for label in ("description", "documentation", "vendor", "base.name"):
    expect(label, labels.get(name + label) in (None, ""), False)
PYTHON

# From here on it is what a container runtime makes of it.
skopeo copy --quiet "docker-archive:$archive" "oci:$scratch/layout:1"
umoci unpack --rootless --image "$scratch/layout:1" "$scratch/bundle" >/dev/null
root=$scratch/bundle/rootfs
expect "files" "$(cd "$root" && find . ! -type d | sort | tr '\n' ' ')" \
    './LICENSE ./aufs-csi ./usr/share/aufs-csi/LICENSES ./usr/share/aufs-csi/sbom.spdx.json '
cmp -s LICENSE "$root/LICENSE" || die "its LICENSE is another one"
expect "mode of the program" "$(stat --format=%a "$root/aufs-csi")" 755
expect "setuid files" "$(find "$root" -perm /6000)" ''
scripts/static.sh "$root/aufs-csi"
python3 - "$root/usr/share/aufs-csi/sbom.spdx.json" "$root/aufs-csi" <<'PYTHON'
import hashlib, json, re, sys

sbom = json.load(open(sys.argv[1]))
program = hashlib.sha256(open(sys.argv[2], "rb").read()).hexdigest()
packages = {p["name"]: p for p in sbom["packages"]}
ids = [p["SPDXID"] for p in sbom["packages"]]
assert sbom["spdxVersion"] == "SPDX-2.3", sbom["spdxVersion"]
assert packages["aufs-csi"]["checksums"][0]["checksumValue"] == program, "it is of another program"
assert len(ids) == len(set(ids)), "an id is there twice"
known = set(ids) | {"SPDXRef-DOCUMENT"}
for relation in sbom["relationships"]:
    assert {relation["spdxElementId"], relation["relatedSpdxElement"]} <= known, relation
# What is surely in, and what is surely not.
assert {"tokio", "tonic", "ring", "rustls", "clap", "glibc", "rust-std"} <= set(packages), sorted(packages)
assert not {"proptest", "tempfile", "serde_derive", "protox", "cc"} & set(packages), sorted(packages)
for package in sbom["packages"]:
    assert re.fullmatch(r"SPDXRef-[A-Za-z0-9.-]+", package["SPDXID"]), package
    assert package["licenseDeclared"] != "NOASSERTION", package["name"]
PYTHON
grep -q '^tokio ' "$root/usr/share/aufs-csi/LICENSES" || die "licences of crates are missing"

# As the chart starts it, with nothing else around: no shell, no library.
if [[ $(id -u) -eq 0 && $arch = $(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/') ]]; then
    expect "--version" "$(chroot "$root" /aufs-csi --version)" "aufs-csi $version"
    chroot "$root" /aufs-csi check --help >/dev/null || die "check --help fails"
    chroot "$root" /aufs-csi node --help >/dev/null || die "node --help fails"
fi

# A digest means something only if whoever builds it again gets the same.
first=$(sha256sum <"$archive")
cp "$archive" "$scratch/first.tar"
second=$(IMAGE_ENGINE=buildah IMAGE_PROGRAM=${IMAGE_PROGRAM:-$root/aufs-csi} scripts/image.sh "$arch")
expect "a second build" "$(sha256sum <"$second")" "$first"
echo "test-image: $archive: $size bytes, the same when it is made again"
