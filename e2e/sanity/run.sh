#!/usr/bin/env bash
# Lets csi-sanity, the test suite of the CSI project, judge the node plugin:
#
#   A  alone: what it says of itself, and what it refuses
#   B  beside a controller that makes volumes for it: those are published too
#   C  as if that controller were its own: with it come the specs that publish
#      a volume as an orchestrator does, once and ten times
#
# `build` makes the programs, as any user; `test` mounts, as root. The image of
# the volumes is made on the spot, and all is done below one directory, of which
# nothing may be left: no mount, no volume, no socket. Logs are shown where
# something fails.
#
# usage: e2e/sanity/run.sh build
#        e2e/sanity/run.sh test PROGRAM
set -euo pipefail

usage() {
    sed -n '/^# usage:/,/^set/{/^#/{s/^# //;p}}' "$0" >&2
    exit 64
}

HERE=$(realpath "$(dirname "$0")")
readonly HERE
readonly TOOLS=$HERE/../../target/sanity
readonly SUITE=github.com/kubernetes-csi/csi-test/v5
# The driver has no controller, so the specs of one are not for it. Without any,
# there is no volume either, which is what the two that A skips are about.
readonly FOCUS='Identity Service|Node Service'
readonly SKIP='should remove target path|does not exist on the specified path'

say() { echo "sanity: $*"; }
# The reason is said after the logs, which are long.
die() {
    reason=$*
    exit 1
}

build() {
    local go
    go=$("$HERE/../../scripts/go.sh")
    # That go and no other, and no C compiler.
    export GOTOOLCHAIN=local GOWORK=off CGO_ENABLED=0
    unset GOROOT
    cd "$HERE"
    mkdir -p "$TOOLS"
    say "building csi-sanity $("$go" list -m -f '{{.Version}}' "$SUITE") and the peer with $("$go" env GOVERSION)"
    "$go" build -o "$TOOLS/csi-sanity" "$SUITE/cmd/csi-sanity"
    "$go" vet .
    "$go" test .
    "$go" build -o "$TOOLS/peer" .
}

# What runs is in `processes`, by its id, and what is written is below `work`.
declare -A processes=()
work=
outcome=failed
reason=

# within SECONDS COMMAND...: until the command succeeds.
within() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < end)) || return 1
        sleep 0.1
    done
}

gone() { ! kill -0 "$1" 2>/dev/null; }

# stop PID: gives the exit code. Only once for each, since its id can become
# that of another process.
stop() {
    local code=0
    unset "processes[$1]"
    kill -TERM "$1" 2>/dev/null || true
    within 30 gone "$1" || kill -KILL "$1" 2>/dev/null || true
    wait "$1" || code=$?
    return "$code"
}

# Mount points below the directory, the latest first.
mounts() {
    awk -v below="$work/" 'index($5, below) == 1 { print $5 }' /proc/self/mountinfo | tac
}

cleanup() {
    trap '' INT TERM
    local process mount log
    for process in "${!processes[@]}"; do
        stop "$process" || true
    done
    if [ "$outcome" != passed ]; then
        while read -r log; do
            echo "--- $(basename "$log")" >&2
            tail -n 200 "$log" >&2 || true
        done < <([ ! "$work" ] || find "$work" -maxdepth 1 -name '*.log')
        [ ! "$reason" ] || echo "sanity: $reason" >&2
    fi
    [ "$work" ] || return 0
    while read -r mount; do
        umount "$mount" || true
    done < <(mounts)
    if [ "$(mounts)" ]; then
        echo "sanity: still mounted, so $work stays:" >&2
        mounts >&2
        return 0
    fi
    rm -rf "$work"
}

# start NAME COMMAND...: in the background, its output in NAME.log; sets `$NAME`.
start() {
    local name=$1
    shift
    "$@" >"$work/$name.log" 2>&1 </dev/null &
    printf -v "$name" %s "$!"
    processes[$!]=$name
}

# reachable PID SOCKET: or fails for good where the process has ended.
reachable() {
    gone "$1" && die "the process of $2 has ended"
    [ -S "$2" ]
}

make_image() {
    mkdir "$work/images"
    umoci init --layout "$work/images/app"
    umoci new --image "$work/images/app:1"
    # Two layers, so that there is something to unite.
    local name
    for name in motd version; do
        echo "$name" >"$work/$name"
        umoci insert --image "$work/images/app:1" "$work/$name" "/etc/$name"
    done
    cat >"$work/params.yaml" <<END
image: oci:$work/images/app:1
csi.storage.k8s.io/ephemeral: "true"
csi.storage.k8s.io/pod.name: sanity
csi.storage.k8s.io/pod.namespace: default
csi.storage.k8s.io/pod.uid: 00000000-0000-0000-0000-000000000000
csi.storage.k8s.io/serviceAccount.name: ""
END
}

# Fails where a volume, a mount or a file in kubelet's directory is left.
nothing_left() {
    local listed left
    listed=$("$program" volumes --root "$work/store" --run-dir "$work/run" --output json)
    [ "$(tr -d '[:space:]' <<<"$listed")" = '[]' ] || die "$1: volumes are left: $listed"
    left=$(mounts | grep "^$work/kubelet/" || true)
    [ -z "$left" ] || die "$1: mounts are left: $left"
    left=$(find "$work/kubelet" -mindepth 1)
    [ -z "$left" ] || die "$1: files are left: $left"
}

# mode NAME SPECS FLAG...: fails unless so many specs ran, and all passed.
mode() {
    local name=$1 specs=$2 log=$work/mode-$1.log
    shift 2
    # csi-sanity makes both directories itself and refuses those that are there.
    if ! timeout --foreground 300 "$TOOLS/csi-sanity" "$@" --ginkgo.focus="$FOCUS" --ginkgo.no-color --ginkgo.v \
        --csi.mountdir="$work/kubelet/mount" --csi.stagingdir="$work/kubelet/staging" \
        >"$log" 2>&1 </dev/null; then
        die "mode $name: specs failed"
    fi
    # A spec that is not chosen, or skips itself, is no failure to csi-sanity.
    if ! grep -q "^Ran $specs of [0-9]* Specs in " "$log" ||
        ! grep -q "^SUCCESS! -- $specs Passed | 0 Failed | " "$log"; then
        die "mode $name: not $specs specs passed, but: $(grep '^Ran \|^SUCCESS\|^FAIL' "$log")"
    fi
    nothing_left "mode $name"
    rm "$log"
    say "mode $name: $specs specs passed"
    total=$((total + specs))
}

run() {
    trap cleanup EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    [ "$(id -u)" -eq 0 ] || die "the plugin mounts filesystems; run this as root"
    [ -x "$program" ] || die "there is no program $program"
    [ -x "$TOOLS/peer" ] || die "csi-sanity is not built; first run: $0 build"
    # Short, because a socket's path can have no more than 107 bytes.
    work=$(realpath "$(mktemp --directory --tmpdir aufs-csi-sanity.XXXXXX)")
    mkdir "$work/kubelet" "$work/sockets"
    make_image

    # Of a user's settings, none; this is about the defaults.
    local variable
    while read -r variable; do unset "$variable"; done < <(compgen -e AUFS_CSI_)

    local plugin='' peer='' code=0 driver=$work/sockets/driver proxy=$work/sockets/proxy
    local controller=$work/sockets/controller
    start plugin "$program" node --node-id sanity --endpoint "unix://$driver" \
        --root "$work/store" --run-dir "$work/run" --kubelet-root "$work/kubelet" \
        --allow-local-images "$work/images" --no-registration --http-address ''
    start peer "$TOOLS/peer" -driver "$driver" -controller "$controller" -proxy "$proxy"
    within 60 reachable "$plugin" "$driver" || die "the plugin does not serve $driver"
    within 10 reachable "$peer" "$proxy" || die "the peer does not serve $proxy"
    within 10 reachable "$peer" "$controller" || die "the peer does not serve $controller"

    local total=0
    local beside=(--csi.controllerendpoint="unix://$controller"
        --csi.testvolumeparameters="$work/params.yaml")
    mode A 13 --csi.endpoint="unix://$driver" --ginkgo.skip="$SKIP"
    mode B 15 --csi.endpoint="unix://$driver" "${beside[@]}"
    mode C 17 --csi.endpoint="unix://$proxy" "${beside[@]}"

    stop "$peer" || die "the peer ended with $?"
    stop "$plugin" || code=$?
    [ "$code" = 0 ] || die "on SIGTERM the plugin ended with $code"
    [ -z "$(ls "$work/sockets")" ] || die "sockets are left: $(ls "$work/sockets")"
    nothing_left 'at the end'
    [ -z "$(mounts)" ] || die "mounts are left: $(mounts)"
    outcome=passed
    cleanup
    trap - EXIT
    # It has said what it could not unmount.
    [ ! -e "$work" ] || exit 1
    say "$total passed, 0 failed"
}

case "${1-} $#" in
'build 1') build ;;
'test 2')
    program=$(realpath "$2")
    run
    ;;
*) usage ;;
esac
