#!/usr/bin/env bash
# Makes the container image for one architecture, with buildah or the Docker
# engine, whichever is there; nothing is pulled. Prints the archive it is in,
# which `docker load`, `kind load image-archive`, `ctr images import` and
# `skopeo copy docker-archive:…` take.
#
# usage: scripts/image.sh [amd64|arm64]
#   IMAGE              its name and tag; default ghcr.io/aufs-csi/aufs-csi:<version>
#   IMAGE_ENGINE       buildah or docker; default the first of them that works
#   IMAGE_PROGRAM      the program; default is to build it
#   SOURCE_DATE_EPOCH  the time in it; default that of the last commit. With
#                      buildah, the same sources give the same digest
set -euo pipefail
cd "$(dirname "$0")/.."

case $(uname -m) in
x86_64) here=amd64 ;;
aarch64) here=arm64 ;;
*) here=$(uname -m) ;;
esac
arch=${1:-$here}
case $arch in
amd64) triple=x86_64-unknown-linux-gnu ;;
arm64) triple=aarch64-unknown-linux-gnu ;;
*)
    echo "usage: scripts/image.sh [amd64|arm64]" >&2
    exit 64
    ;;
esac
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
image=${IMAGE:-ghcr.io/aufs-csi/aufs-csi:$version}
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
created=$(date --utc --date="@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)

say() { echo "image: $*" >&2; }

engine=${IMAGE_ENGINE:-}
if [[ -z $engine ]]; then
    if command -v buildah >/dev/null; then
        engine=buildah
    elif docker version >/dev/null 2>&1; then
        engine=docker
    else
        scripts/setup.sh image >&2
        engine=buildah
        command -v buildah >/dev/null || {
            say "docker is installed, but its daemon does not answer; start it, or install buildah"
            exit 69
        }
    fi
fi

# The program has no time in it, and what is written in C would be built anew.
program=${IMAGE_PROGRAM:-$(env -u SOURCE_DATE_EPOCH scripts/release.sh "$arch")}
out=target/image
context=$out/context-$arch
rm -rf "$context"
mkdir -p "$context/share"
scripts/sbom.py "$triple" "$program" "$context/share/sbom.spdx.json" "$context/share/LICENSES"
cp "$context/share/sbom.spdx.json" "$out/aufs-csi-$version-$arch.spdx.json"
install -m 0755 "$program" "$context/aufs-csi"
install -m 0644 LICENSE "$context/LICENSE"
chmod 0755 "$context/share"
chmod 0644 "$context"/share/*
# Docker's engine takes the times of files as they are.
find "$context" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +

archive=$out/aufs-csi-$version-$arch.tar
rm -f "$archive"
arguments=(--build-arg VERSION="$version" --build-arg REVISION="$revision"
    --build-arg CREATED="$created" --file Dockerfile)
case $engine in
buildah)
    # Its store is of no use afterwards, and the machine's own is left alone.
    store=$(mktemp -d)
    buildah=(buildah --root "$store/root" --runroot "$store/run" --storage-driver vfs)
    trap 'rm -rf "$store"' EXIT
    # A scratch image needs no privileges, and this is how buildah needs none.
    export BUILDAH_ISOLATION=chroot
    "${buildah[@]}" build --quiet --layers=false --identity-label=false --timestamp "$SOURCE_DATE_EPOCH" \
        --arch "$arch" --os linux --tag "$image" "${arguments[@]}" "$context" >"$store/id"
    "${buildah[@]}" push --quiet "$image" "docker-archive:$archive:$image" >&2
    ;;
docker)
    docker build --quiet --platform "linux/$arch" --tag "$image" "${arguments[@]}" "$context" >&2
    docker save --output "$archive" "$image"
    ;;
*)
    say "IMAGE_ENGINE is buildah or docker, not $engine"
    exit 64
    ;;
esac
say "$image for linux/$arch by $engine: $(stat --format=%s "$archive") bytes"
echo "$archive"
