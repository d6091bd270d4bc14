#!/usr/bin/env bash
# Pushes OCI layouts to a registry that keeps them in a directory, and ends it:
# DIRECTORY/<repository> becomes <repository>:1. In a network of its own, so that
# no port of this machine matters.
#
# usage: e2e/node/push.sh DOCKER_REGISTRY STORAGE DIRECTORY
set -euo pipefail
registry=${1:?} storage=${2:?} directory=${3:?}

if [[ ${PUSH_ISOLATED:-} != yes ]]; then
    user=()
    [[ $(id -u) -eq 0 ]] || user=(--user --map-root-user)
    export PUSH_ISOLATED=yes PATH=$PATH:/usr/sbin:/sbin
    exec unshare "${user[@]}" --net --pid --fork --kill-child=KILL "$0" "$@"
fi

ip link set lo up
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cat >"$scratch/config.yaml" <<YAML
version: 0.1
storage: {filesystem: {rootdirectory: $storage}}
http: {addr: "127.0.0.1:5000"}
YAML
OTEL_TRACES_EXPORTER=none "$registry" serve "$scratch/config.yaml" >"$scratch/log" 2>&1 &
for _ in $(seq 100); do
    (: </dev/tcp/127.0.0.1/5000) 2>/dev/null && break
    sleep 0.1
done
while read -r layout; do
    repository=${layout#"$directory"/} repository=${repository%/oci-layout}
    # What is unpacked is what was made, so the manifests stay as they are.
    skopeo --insecure-policy copy --quiet --preserve-digests --dest-tls-verify=false \
        "oci:$directory/$repository:1" "docker://127.0.0.1:5000/$repository:1" || {
        cat "$scratch/log" >&2
        exit 1
    }
done < <(find "$directory" -name oci-layout)
