#!/usr/bin/env bash
# Prints the path of a go that is new enough for the tests made of Go modules.
# One on PATH is taken as it is. Otherwise a newer one is fetched with whatever
# go there is, for the toolchain is itself published as a module; no other way
# of getting it is needed, and where modules come from is the user's setting.
# It is kept in .cache/go, and nothing else learns of it.
#
# usage: go=$(scripts/go.sh)
set -euo pipefail
cd "$(dirname "$0")/.."

# csi-test 5.5 asks for 1.25, Kubernetes 1.36 for 1.26.
readonly OLDEST=1.26 VERSION=1.26.8
# Of the modules, as go.sum would have them: they are checked even where the
# user has turned the checksum database off.
declare -rA SUMS=(
    [amd64]=h1:ZOmGe1OnfREDMIdb1Qi4G9JSuDPBLGExZMQ4nis1RXM=
    [arm64]=h1:sYL/O6MqS68ML0kjsQ36WoYIpJqkw60TxizWUYUKQMc=
)
readonly CACHE=$PWD/.cache/go
readonly FETCHED=$CACHE/go$VERSION/bin/go

# A go that may fetch another one by itself would give that one's version.
export GOTOOLCHAIN=local
unset GOROOT

new_enough() {
    local version
    version=$("$1" env GOVERSION 2>/dev/null) || return 1
    [[ $version =~ ^go([0-9.]+) ]] || return 1
    printf '%s\n' "$OLDEST" "${BASH_REMATCH[1]}" | sort --version-sort --check=quiet
}

# field NAME <<<JSON, as `go mod download -json` prints it: one field a line.
field() { sed -n "s/^\t\"$1\": \"\(.*\)\",\{0,1\}\$/\1/p"; }

if present=$(command -v go) && new_enough "$present"; then
    realpath --no-symlinks "$present"
    exit
fi
if new_enough "$FETCHED"; then
    echo "$FETCHED"
    exit
fi
if ! [ "$present" ]; then
    scripts/setup.sh go >&2
    hash -r
    present=$(command -v go)
    if new_enough "$present"; then
        realpath --no-symlinks "$present"
        exit
    fi
fi

arch=$("$present" env GOHOSTARCH)
wanted=${SUMS[$arch]-}
if ! [ "$wanted" ]; then
    echo "go: no toolchain is pinned for $arch; install go $OLDEST or newer" >&2
    exit 69
fi
module=golang.org/toolchain@v0.0.1-go$VERSION.linux-$arch
echo "go: $present is older than $OLDEST; fetching go $VERSION into .cache/go" >&2

mkdir -p "$CACHE"
modules=$(mktemp --directory "$CACHE/fetch.XXXXXX")
trap 'rm -rf "$modules"' EXIT
# The user's GOFLAGS can be of a newer go. Without -modcacherw, nobody but root
# could remove or move the directories.
export GOMODCACHE=$modules GOFLAGS=-modcacherw GO111MODULE=on GOWORK=off
if ! answer=$(cd "$modules" && "$present" mod download -json "$module"); then
    echo "go: $module cannot be fetched:" >&2
    echo "$answer" >&2
    exit 69
fi
got=$(field Sum <<<"$answer")
if [ "$got" != "$wanted" ]; then
    echo "go: $module has the sum $got, not $wanted" >&2
    exit 1
fi

# No file of a module is executable, nor called go.mod below its root. A go that
# fetches a toolchain for itself mends both, and so it is done here.
directory=$(field Dir <<<"$answer")
chmod -R a+x "$directory/bin" "$directory/pkg/tool"
find "$directory/src" -name _go.mod -execdir cp _go.mod go.mod \;
# In one step, so that a toolchain that is there is whole; another target may
# have been faster.
mv --no-target-directory "$directory" "$CACHE/go$VERSION" 2>/dev/null || true
if ! new_enough "$FETCHED"; then
    echo "go: $FETCHED does not work" >&2
    exit 1
fi
echo "$FETCHED"
