#!/bin/sh
# The story of `make try`: builds the program and runs examples/try with it. As
# root it mounts directly; as anybody else it does so in a user and mount
# namespace of its own.
set -eu
cd "$(dirname "$0")/.."

cargo build --bin aufs-csi --example try
target="${CARGO_TARGET_DIR:-target}/debug"

if [ "$(id -u)" -eq 0 ]; then
    exec "$target/examples/try" "$target/aufs-csi"
fi

if unshare --user --map-root-user --mount true 2>/dev/null; then
    exec unshare --user --map-root-user --mount "$target/examples/try" --rootless "$target/aufs-csi"
fi

echo "try: this machine lets nobody but root make user namespaces and mounts. Run:" >&2
echo "    sudo $target/examples/try $target/aufs-csi" >&2
exit 1
