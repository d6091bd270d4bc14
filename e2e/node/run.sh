#!/usr/bin/env bash
# A real kubelet, API server and container runtime on this machine, and pods with
# volumes of this plugin: brings up a node in namespaces of its own (no kind, no
# cluster needed), runs the cases of cases.sh, and leaves nothing behind.
#
# usage: e2e/node/run.sh [CASE…]
#
#   K8S_BIN     directory with kubelet, kube-apiserver and kubectl; see binaries.sh
#   E2E_DRIVER  the program to test; `make e2e-node` gives the released one
#   E2E_DIR     where the node's disk is, not on an overlay; default /var/tmp
#   E2E_UNION   what volumes must be; default aufs where the kernel has it
#   E2E_SLOW    by how much longer everything may take; default 1
#   E2E_INSTALL chart: the plugin comes by the chart, from the image E2E_IMAGE
#
# Logs of the last run are in target/e2e-node/logs.
set -euo pipefail
cd "$(dirname "$0")/../.."
readonly WORK=$PWD/target/e2e-node

die() {
    echo "e2e-node: $*" >&2
    exit 1
}

as_root=()
if [[ $(id -u) -ne 0 ]]; then
    command -v sudo >/dev/null || die "a node needs root; run this as root, or install sudo"
    as_root=(sudo)
fi

# What is missing and is ordinary is installed; what would start services is not.
install_programs() {
    local packages=() program package
    while read -r program package; do
        command -v "$program" >/dev/null || [[ -x /usr/sbin/$program || -x /sbin/$program ]] ||
            packages+=("$package")
    done <<<'unshare util-linux
ip iproute2
openssl openssl
python3 python3
skopeo skopeo
gzip gzip
tar tar'
    [[ ${#packages[@]} -eq 0 ]] && return
    command -v apt-get >/dev/null || die "please install: ${packages[*]}"
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
}

[[ -x ${E2E_DRIVER:-} ]] || die "E2E_DRIVER is not a program; run: make e2e-node"
install_programs
tools=$(e2e/node/tools.sh)
binaries=$(e2e/node/binaries.sh)
if [[ -z ${E2E_UNION:-} ]]; then
    E2E_UNION=overlay
    ! grep -qw aufs /proc/filesystems || E2E_UNION=aufs
fi
mkdir -p "$WORK"
"${as_root[@]}" rm -rf "$WORK/logs"
mkdir "$WORK/logs"
e2e/node/images.sh "$WORK/images" "$tools"
helm=
if [[ ${E2E_INSTALL:=process} = chart ]]; then
    [[ -f ${E2E_IMAGE:-} ]] || die "E2E_IMAGE is not an archive of the image; run: make e2e-chart"
    helm=$(scripts/helm.sh)
    # What `helm test` mounts: the plugin's own image.
    skopeo copy --quiet "docker-archive:$E2E_IMAGE" "oci:$WORK/images/plugin:1"
fi

exec "${as_root[@]}" env E2E_K8S="$binaries" E2E_TOOLS="$tools" \
    E2E_DRIVER="$(realpath "$E2E_DRIVER")" E2E_IMAGES="$WORK/images" E2E_LOGS="$WORK/logs" \
    E2E_DIR="${E2E_DIR:-/var/tmp}" E2E_UNION="$E2E_UNION" E2E_SLOW="${E2E_SLOW:-1}" \
    E2E_INSTALL="$E2E_INSTALL" E2E_IMAGE="$(realpath "${E2E_IMAGE:-/dev/null}")" E2E_HELM="$helm" \
    ${E2E_KILLS:+E2E_KILLS="$E2E_KILLS"} e2e/node/isolate.sh "$@"
