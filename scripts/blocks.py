#!/usr/bin/env python3
"""Code blocks of Markdown files, for tests of the documentation.

usage: scripts/blocks.py objects FILE…         numbers and files of YAML blocks that
                                               are whole objects of Kubernetes
       scripts/blocks.py object NUMBER FILE…   one of these
       scripts/blocks.py commands BEGINNING FILE…   commands that begin so, of blocks
                                               and of the running text
"""

import pathlib
import re
import sys

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(files, language):
    for file in files:
        for kind, text in BLOCK.findall(pathlib.Path(file).read_text()):
            if kind == language:
                yield file, text


def objects(files):
    return [(file, text) for file, text in blocks(files, "yaml")
            if re.search(r"^apiVersion: (?!kind.x-k8s.io|kustomize)", text, re.MULTILINE)]


def commands(beginning, files):
    """Each once, in their order."""
    found = {}
    for file in files:
        for block, span in re.findall(r"^```(.*?)^```$|`([^`\n]+)`", pathlib.Path(file).read_text(), re.MULTILINE | re.DOTALL):
            lines = block.splitlines()[1:] if block.startswith("sh\n") else [span]
            found.update((line, None) for line in lines if line.startswith(beginning))
    return list(found)


def main():
    command, *rest = sys.argv[1:] or [""]
    if command == "objects":
        for number, (file, _) in enumerate(objects(rest)):
            print(number, pathlib.Path(file).stem)
    elif command == "object" and rest:
        print(objects(rest[1:])[int(rest[0])][1])
    elif command == "commands" and rest:
        print(*commands(rest[0], rest[1:]), sep="\n")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
