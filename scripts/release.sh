#!/usr/bin/env bash
# Builds the program as it is shipped: one static file, the same to the byte on
# every machine with the same sources, toolchain and C compiler. For another
# architecture it installs the target's standard library and a cross compiler.
#
# usage: scripts/release.sh [amd64|arm64]    default: this machine's
#   prints the path of the program at the end
set -euo pipefail
cd "$(dirname "$0")/.."

host=$(rustc -vV | sed -n 's/^host: //p')
case ${1-} in
'') triple=$host ;;
amd64) triple=x86_64-unknown-linux-gnu ;;
arm64) triple=aarch64-unknown-linux-gnu ;;
*)
    echo "usage: scripts/release.sh [amd64|arm64]" >&2
    exit 64
    ;;
esac

if [[ $triple != "$host" ]]; then
    scripts/setup.sh "cross-${1}" >&2
    if command -v rustup >/dev/null; then
        rustup target list --installed | grep -qx "$triple" || rustup target add "$triple" >&2
    fi
    gcc=${triple%%-*}-linux-gnu-gcc
    name=${triple//-/_}
    # For cargo, and for what is written in C.
    export "CARGO_TARGET_${name^^}_LINKER=$gcc" "CC_$name=$gcc"
fi

# Without these, messages of panics and of the C parts would name the directories
# of whoever built it.
cargo_home=${CARGO_HOME:-$HOME/.cargo}
export RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=$PWD=. --remap-path-prefix=$cargo_home=cargo"
export CFLAGS="-ffile-prefix-map=$PWD=. -ffile-prefix-map=$cargo_home=cargo"
export CARGO_INCREMENTAL=0
"${CARGO:-cargo}" build --release --locked --bin aufs-csi --target "$triple" >&2

program=${CARGO_TARGET_DIR:-target}/$triple/release/aufs-csi
scripts/static.sh "$program" >&2
echo "$program"
