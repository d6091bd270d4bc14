#!/usr/bin/env python3
"""Makes the end of docs/reference.md from the program: its commands with their
options, and the metrics of a running plugin. With --check it changes nothing,
and fails where the page is not so, or lacks an attribute or an event that the
sources have. As root, for the plugin makes real mounts.

usage: scripts/reference.py [--check] PROGRAM
"""

import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/reference.md"
MARK = "<!-- made by scripts/reference.py from here on -->\n"


def help_of(program, *arguments):
    # The width is the terminal's where there is one.
    environment = {"PATH": os.environ["PATH"], "COLUMNS": "100", "HOME": "/root"}
    done = subprocess.run([program, *arguments, "--help"], env=environment, check=True,
                          stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    return re.sub(r"[ \t]+$", "", done.stdout, flags=re.MULTILINE).strip()


def commands(program):
    overview = help_of(program)
    verbs = re.findall(r"^  ([a-z-]+) ", overview.split("Commands:")[1].split("Options:")[0], re.MULTILINE)
    yield "## Commands\n"
    yield "Each option has a variable in the environment, named with it. Exit codes are at the end.\n"
    common = shared(program)
    for verb in verbs:
        if verb == "help":
            continue
        text = help_of(program, verb)
        for part in common:
            text = text.replace(part, "").strip()
        yield f"### aufs-csi {verb}\n\n```text\n{text}\n```\n"
    yield "### Options of every command\n\n```text\n" + "\n\n".join(common) + "\n```\n"
    yield "### Exit codes\n\n```text\n" + overview[overview.index("Exit codes:"):] + "\n```\n"


def shared(program):
    """What is in the help of every verb."""
    text = help_of(program, "volumes")
    parts = re.split(r"\n\n(?=\S)", text)
    return [part for part in parts if re.match(r"(Store|Logs):", part)]


def metrics(program):
    sys.path.insert(0, str(ROOT / "charts/tests"))
    os.environ.setdefault("HELM", "helm")
    os.environ["AUFS_CSI"] = program
    from test_monitoring import metrics as running

    text = running()
    # Of what has not happened yet there is nothing to see, and it is a counter.
    source = (ROOT / "src/telemetry/metrics.rs").read_text()
    own = re.findall(r'own\.register(?:_with_unit)?\(\s*"(\w+)",\s*"([^"]*)"', source)
    for name, words in own:
        if f"# TYPE aufs_csi_{name}" not in text:
            text += f"\n# HELP aufs_csi_{name} {words}.\n# TYPE aufs_csi_{name} counter\n"
    yield "## Metrics\n"
    yield "| metric | kind | meaning |\n|---|---|---|"
    suffix = {"counter": "_total", "info": "_info"}
    for name, words in re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE):
        kind = re.search(rf"^# TYPE {name} (\S+)$", text, re.MULTILINE).group(1)
        yield f"| `{name}{suffix.get(kind, '')}` | {kind} | {words.rstrip('.')} |"


def missing():
    """Names in the sources that the page does not have."""
    page = PAGE.read_text()
    attributes = (ROOT / "src/volume/attributes.rs").read_text()
    keys = re.search(r"pub const KEYS: \[&str; \d+\] = \[(.*?)\];", attributes, re.DOTALL).group(1)
    rows = [f"| `{key}` |" for key in re.findall(r'"(\w+)"', keys)]
    event = (ROOT / "src/cluster/event.rs").read_text()
    reasons = re.search(r"enum Reason \{(.*?)\n\}", event, re.DOTALL).group(1)
    rows += [f" `{reason}` |" for reason in re.findall(r"^    (\w+),$", reasons, re.MULTILINE)]
    assert len(rows) >= 12, rows
    return [row for row in rows if row not in page]


def main():
    arguments = [argument for argument in sys.argv[1:] if argument != "--check"]
    if len(arguments) != 1:
        sys.exit(__doc__)
    program = os.path.abspath(arguments[0])
    made = "\n" + "\n".join(commands(program)) + "\n" + "\n".join(metrics(program)) + "\n"
    page = PAGE.read_text()
    wanted = page[: page.index(MARK) + len(MARK)] + made
    if "--check" not in sys.argv:
        PAGE.write_text(wanted)
    elif page != wanted:
        import difflib

        sys.stderr.writelines(difflib.unified_diff(
            page.splitlines(True), wanted.splitlines(True), "docs/reference.md", "the program"))
        sys.exit("reference: docs/reference.md is not what the program says; run: make reference")
    if lacks := missing():
        sys.exit(f"reference: docs/reference.md lacks {lacks}")


main()
