#!/usr/bin/env bash
# Prints a directory whose bin/ has etcd, containerd, runc, the CNI plugins, a
# registry and a static busybox: from this machine where it has them, else out of Debian's
# packages. These are only unpacked, not installed, for installing them would
# start services and could push out another container runtime.
#
# usage: e2e/node/tools.sh
#   NODE_TOOLS       where they are kept; default .cache/node-tools
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
tools=${NODE_TOOLS:-$here/../../.cache/node-tools}

# A program, the package that has it, and where in there.
readonly PROGRAMS='
etcd                     etcd-server                 usr/bin/etcd
containerd               containerd                  usr/bin/containerd
containerd-shim-runc-v2  containerd                  usr/bin/containerd-shim-runc-v2
ctr                      containerd                  usr/bin/ctr
runc                     runc                        usr/sbin/runc
ptp                      containernetworking-plugins usr/lib/cni/ptp
host-local               containernetworking-plugins usr/lib/cni/host-local
loopback                 containernetworking-plugins usr/lib/cni/loopback
docker-registry          docker-registry             usr/bin/docker-registry
busybox                  busybox-static              bin/busybox
'

say() { echo "tools: $*" >&2; }

# Where this machine has a program that will do.
find_here() {
    local path
    path=$(PATH="$PATH:/usr/sbin:/sbin:/usr/lib/cni:/opt/cni/bin" command -v "$1") || return 1
    # It goes into images that have no libraries.
    [[ $1 != busybox ]] || ! ldd "$path" >/dev/null 2>&1 || return 1
    echo "$path"
}

mkdir -p "$tools/bin"
missing=()
while read -r program package path; do
    [[ -n $program && ! -x $tools/bin/$program ]] || continue
    if found=$(find_here "$program"); then
        cp -L "$found" "$tools/bin/$program"
    else
        missing+=("$program $package $path")
    fi
done <<<"$PROGRAMS"

if [[ ${#missing[@]} -gt 0 ]]; then
    mapfile -t packages < <(printf '%s\n' "${missing[@]}" | cut -d ' ' -f 2 | sort -u)
    command -v apt-get >/dev/null || {
        say "please install what has: ${missing[*]%% *}"
        exit 69
    }
    say "unpacking ${packages[*]}"
    unpacked=$(mktemp -d)
    trap 'rm -rf "$unpacked"' EXIT
    chmod 0755 "$unpacked"
    (
        cd "$unpacked"
        # A list of packages that is too old names files that are gone.
        apt-get download -q "${packages[@]}" >/dev/null 2>&1 || {
            sudo=()
            [[ $(id -u) -eq 0 ]] || sudo=(sudo)
            "${sudo[@]}" apt-get update -q >&2
            apt-get download -q "${packages[@]}" >&2
        }
        for archive in *.deb; do dpkg-deb -x "$archive" root; done
    )
    for line in "${missing[@]}"; do
        read -r program package path <<<"$line"
        # Distributions that merged /usr have some of them elsewhere.
        [[ -e $unpacked/root/$path ]] || path=usr/$path
        cp -L "$unpacked/root/$path" "$tools/bin/$program"
    done
fi
for program in "$tools"/bin/*; do
    if ldd "$program" 2>/dev/null | grep 'not found' >&2; then
        say "$program needs a library that is missing here"
        exit 69
    fi
done
realpath "$tools"
