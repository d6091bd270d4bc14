#!/usr/bin/env bash
# Prints a directory with the programs of Kubernetes. From, in order:
#
#   K8S_BIN          a directory that has them already
#   K8S_CACHE        where an earlier run left them; default .cache/k8s-<version>
#   the Go modules   go.mod here names one release and go.sum what it consists
#                    of; a quarter of an hour on two cores, once
#
# usage: e2e/node/binaries.sh [--cached]    --cached: fails instead of building
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../.." && pwd)

readonly PROGRAMS=(kubelet kube-apiserver kube-controller-manager kube-scheduler kubectl)
version=$(awk '$1 == "k8s.io/kubernetes" { print $2 }' "$here/go.mod")
readonly version

say() { echo "binaries: $*" >&2; }

complete() {
    local program
    for program in "${PROGRAMS[@]}"; do [[ -x $1/$program ]] || return 1; done
}

if [[ -n ${K8S_BIN:-} ]]; then
    complete "$K8S_BIN" || {
        say "K8S_BIN=$K8S_BIN does not have all of: ${PROGRAMS[*]}"
        exit 69
    }
    realpath "$K8S_BIN"
    exit
fi

cache=${K8S_CACHE:-$repository/.cache/k8s-${version#v}}
if complete "$cache"; then
    realpath "$cache"
    exit
fi
if [[ ${1-} = --cached ]]; then
    say "no Kubernetes $version in $cache; build it with: make e2e-node"
    exit 69
fi

go=$("$repository/scripts/go.sh")
export GOTOOLCHAIN=local GOWORK=off CGO_ENABLED=0
unset GOROOT
say "building Kubernetes $version in $cache (once; this takes a while)"
IFS=. read -r major minor _ <<<"${version#v}"
package=k8s.io/component-base/version
mkdir -p "$cache"
cd "$here"
for program in "${PROGRAMS[@]}"; do
    [[ -x $cache/$program ]] && continue
    say "$program"
    # Under another name until it is whole: an interrupted build leaves no
    # program that looks finished.
    nice -n 19 "$go" build -mod=readonly -trimpath -buildvcs=false \
        -ldflags "-s -w -X $package.gitVersion=$version -X $package.gitMajor=$major -X $package.gitMinor=$minor" \
        -o "$cache/$program.partial" "k8s.io/kubernetes/cmd/$program" >&2
    mv "$cache/$program.partial" "$cache/$program"
done
realpath "$cache"
