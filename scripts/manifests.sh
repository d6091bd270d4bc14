#!/usr/bin/env bash
# Renders manifests/ from the chart: for whoever uses kubectl or kustomize and not
# helm. With --check it changes nothing, and fails where a file is not as it
# would be made.
#
# usage: scripts/manifests.sh [--check]
set -euo pipefail
cd "$(dirname "$0")/.."
helm=$(scripts/helm.sh)
out=manifests
if [[ ${1-} = --check ]]; then
    out=$(mktemp -d)
    trap 'rm -rf "$out"' EXIT
fi

# render VARIANT [SETTING…]
render() {
    local variant=$1 setting set=()
    shift
    for setting in "$@"; do set+=(--set "$setting"); done
    mkdir -p "$out/$variant"
    {
        echo "# Made from charts/aufs-csi by \`make manifests\`${*:+ with: $*}"
        # Not helm's to manage, and not helm's tests.
        "$helm" template aufs-csi charts/aufs-csi --namespace aufs-csi --kube-version 1.36.2 \
            --skip-tests --set namespace.create=true "${set[@]}" |
            sed -E '/^ *(helm\.sh\/chart|app\.kubernetes\.io\/managed-by): /d; /^# Source: /d'
    } >"$out/$variant/aufs-csi.yaml"
}

# A chart has no files but its own.
if [[ $out = manifests ]]; then
    cp manifests/admission/policy.yaml charts/aufs-csi/files/admission-policy.yaml
else
    cmp manifests/admission/policy.yaml charts/aufs-csi/files/admission-policy.yaml
fi
render default
render aufs-only aufsOnly.enabled=true
if [[ $out != manifests ]]; then
    for variant in default aufs-only; do
        diff -u "manifests/$variant/aufs-csi.yaml" "$out/$variant/aufs-csi.yaml" || {
            echo "manifests: manifests/$variant is not what the chart makes; run: make manifests" >&2
            exit 1
        }
    done
    echo "manifests: as the chart makes them"
fi
