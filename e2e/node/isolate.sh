#!/usr/bin/env bash
# Runs node.sh as the first process of namespaces of its own, on a directory of
# its own below E2E_DIR, and cleans up after it however it ends. As root.
#
# usage: e2e/node/isolate.sh [CASE…]
set -euo pipefail
: "${E2E_DIR:?}"

clean_up() {
    set +e
    # The first process takes all others along, and they their mounts.
    if [[ -n $node ]]; then
        kill -KILL "$node" 2>/dev/null || true
        wait "$node" 2>/dev/null || true
    fi
    local directory
    for directory in /sys/fs/cgroup/"$E2E_CGROUP" /sys/fs/cgroup/*/"$E2E_CGROUP"; do
        [[ -d $directory ]] || continue
        # The kernel takes a moment to see that the last process of one is gone.
        for _ in 1 2 3 4 5 6 7 8 9 10; do
            find "$directory" -depth -type d -exec rmdir {} \; 2>/dev/null
            [[ -d $directory ]] || break
            sleep 0.2
        done
    done
    rm -rf --one-file-system "$disk"
}

export E2E_CGROUP=aufs-csi-e2e-$$
node=
disk=$(mktemp -d "$E2E_DIR/e2e-node.XXXXXX")
trap clean_up EXIT
trap 'exit 130' INT TERM HUP
E2E_DISK=$disk unshare --mount --net --pid --uts --ipc --fork --mount-proc --kill-child=KILL \
    "$(dirname "$0")/node.sh" "$@" </dev/null &
node=$!
status=0
# Not in the foreground, where bash would keep its traps waiting.
wait "$node" || status=$?
node=
exit "$status"
