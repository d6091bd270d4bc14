#!/usr/bin/env bash
# Prints the path of helm: $HELM, or the pinned version, which is built from its
# Go module into .cache, once.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly VERSION=v3.19.2
helm=$PWD/.cache/helm-${VERSION#v}/helm

if [[ -n ${HELM:-} ]]; then
    command -v "$HELM"
    exit
fi
if [[ ! -x $helm ]]; then
    go=$(scripts/go.sh)
    echo "helm: building helm $VERSION into .cache (once)" >&2
    mkdir -p "$(dirname "$helm")"
    # A module that is installed by version has no go.sum of ours; the checksum
    # database vouches for it.
    GOTOOLCHAIN=local GOWORK=off CGO_ENABLED=0 GOFLAGS=-trimpath GOBIN=$PWD/.cache/helm-partial \
        "$go" install "helm.sh/helm/v3/cmd/helm@$VERSION" >&2
    mv .cache/helm-partial/helm "$helm"
    rmdir .cache/helm-partial
fi
echo "$helm"
