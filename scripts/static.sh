#!/usr/bin/env bash
# Fails unless a program needs nothing of the machine it runs on: no dynamic
# loader, no shared library. And it must run.
#
# usage: scripts/static.sh PROGRAM
set -euo pipefail
program=${1:?usage: scripts/static.sh PROGRAM}

headers=$(readelf --program-headers --wide "$program")
needed=$(readelf --dynamic --wide "$program" | grep '(NEEDED)' || true)
if grep -q 'INTERP' <<<"$headers" || [ -n "$needed" ]; then
    echo "static: $program is linked dynamically:" >&2
    grep 'interpreter' <<<"$headers" >&2 || true
    echo "$needed" >&2
    exit 1
fi
# A program of another architecture is run by the emulator.
case $(readelf --file-header "$program" | sed -n 's/ *Machine: *//p') in
*X86-64) machine=x86_64 ;;
AArch64) machine=aarch64 ;;
*) machine=$(uname -m) ;;
esac
emulator=()
[ "$machine" = "$(uname -m)" ] || emulator=("qemu-$machine-static")
"${emulator[@]}" "$program" --version
echo "static: $program, $(stat --format=%s "$program") bytes, needs no library"
