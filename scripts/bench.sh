#!/usr/bin/env bash
# Measures both builds, the portable one and the fastest (feature isal), in one
# run on the same image, beside the other programs that are installed. Fails if
# an aim is missed.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}

# Cargo says where it put the program; builds of other features lie beside it.
isal=$("$cargo" bench --locked --no-run --features isal --bench staging \
    --message-format=json-render-diagnostics |
    sed -n 's|.*"executable":"\([^"]*/staging-[0-9a-f]*\)".*|\1|p' | tail -n 1)
if [[ ! -x $isal ]]; then
    echo 'bench: cargo did not say where the fastest build is' >&2
    exit 70
fi
BENCH_ISAL=$isal exec "$cargo" bench --locked --no-fail-fast
