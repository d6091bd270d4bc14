#!/usr/bin/env bash
# Installs what a make target needs beside Rust and is missing. Each line of a
# list is a program and the Debian/Ubuntu package that has it; programs that are
# there, from wherever, are left alone.
#
# usage: scripts/setup.sh build|test|bench|isal|go|image|chart|cross-amd64|cross-arm64
set -euo pipefail

readonly BUILD='
cc              gcc
ld              binutils
'
# The tests compare this program with others that read and write images, and
# fail without them.
readonly TEST='
tar             tar
gunzip          gzip
unzstd          zstd
umoci           umoci
skopeo          skopeo
buildah         buildah
docker-registry docker-registry
openssl         openssl
curl            curl
getfattr        attr
getfacl         acl
unshare         util-linux
e2fsck          e2fsprogs
strace          strace
'
# Any go will do: scripts/go.sh fetches a newer one with it.
readonly GO='
go              golang-go
'
# The fastest build (feature isal) has a library in C and assembler, which is
# built from its sources.
readonly ISAL='
nasm            nasm
make            make
autoreconf      autoconf
automake        automake
libtoolize      libtool
'
# Other peers are measured where they are installed.
readonly BENCH='
tar             tar
gunzip          gzip
unzstd          zstd
umoci           umoci
skopeo          skopeo
docker-registry docker-registry
'
# One that makes images is enough, and python3 writes what is in them.
IMAGE='
python3         python3
skopeo          skopeo
'
command -v docker >/dev/null || IMAGE+='buildah buildah
'
readonly IMAGE
# helm and promtool are fetched by scripts of their own.
readonly CHART='
python3         python3
openssl         openssl
ip              iproute2
'
readonly CROSS_AMD64='
x86_64-linux-gnu-gcc  gcc-x86-64-linux-gnu
qemu-x86_64-static    qemu-user-static
'
readonly CROSS_ARM64='
aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu
qemu-aarch64-static   qemu-user-static
'
case "${1-}" in
build) list=$BUILD ;;
test) list=$BUILD$TEST ;;
bench) list=$BUILD$ISAL$BENCH ;;
isal) list=$BUILD$ISAL ;;
go) list=$GO ;;
image) list=$BUILD$IMAGE ;;
chart) list=$BUILD$CHART ;;
cross-amd64) list=$BUILD$CROSS_AMD64 ;;
cross-arm64) list=$BUILD$CROSS_ARM64 ;;
*)
    echo "usage: scripts/setup.sh build|test|bench|isal|go|image|chart|cross-amd64|cross-arm64" >&2
    exit 64
    ;;
esac

if ! command -v cargo >/dev/null; then
    echo "setup: cargo is missing; install Rust first: https://rustup.rs" >&2
    exit 69
fi

missing=()
packages=()
while read -r program package; do
    if [ -n "$program" ] && ! command -v "$program" >/dev/null &&
        ! [ -x "/usr/sbin/$program" ]; then
        missing+=("$program")
        packages+=("$package")
    fi
done <<<"$list"

# Modules, not programs. A python3 that is there may be Debian's python3-minimal,
# which has few of them.
modules=()
case "$1" in
image) modules=(json:python3) ;;
chart) modules=(json:python3 unittest:python3 yaml:python3-yaml) ;;
esac
for module in "${modules[@]}"; do
    if ! python3 -c "import ${module%%:*}" 2>/dev/null; then
        missing+=("import ${module%%:*}")
        packages+=("${module##*:}")
    fi
done

# What cargo calls by these names comes with rustup's default profile, but not
# with its minimal one.
if [ "$1" = test ]; then
    for component in fmt:rustfmt clippy:clippy; do
        cargo "${component%%:*}" --version >/dev/null 2>&1 && continue
        if command -v rustup >/dev/null; then
            rustup component add "${component##*:}"
        else
            echo "setup: cargo ${component%%:*} is missing; install ${component##*:}" >&2
            exit 69
        fi
    done
fi

[ "${#packages[@]}" -gt 0 ] || exit 0
echo "setup: missing: ${missing[*]}"

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if sudo -n true 2>/dev/null; then
        as_root=(sudo -n)
    elif [ -t 0 ] && command -v sudo >/dev/null; then
        as_root=(sudo)
    else
        as_root=(false)
    fi
fi
if ! command -v apt-get >/dev/null || [ "${as_root[0]-}" = false ]; then
    echo "setup: install these packages (names as in Debian), then run it again:" >&2
    echo "  ${packages[*]}" >&2
    exit 69
fi
# Not only when the installation fails: a list that is too old names files that
# mirrors have no more.
"${as_root[@]}" apt-get update -q </dev/null
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -q -y --no-install-recommends "${packages[@]}" </dev/null
