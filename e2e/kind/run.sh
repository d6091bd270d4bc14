#!/usr/bin/env bash
# A cluster of two nodes in containers (kind), the plugin by the chart from its
# image, and pods: the quick start of the README as a test. Needs a Docker engine
# that runs, and the node image.
#
# usage: e2e/kind/run.sh IMAGE_ARCHIVE
#   KIND             the program; default is the pinned version, built from its module
#   KIND_NODE_IMAGE  default what that version takes, from the network
#   KIND_KEEP        yes: the cluster stays
set -euo pipefail
cd "$(dirname "$0")/../.."
archive=${1:?usage: e2e/kind/run.sh IMAGE_ARCHIVE}
readonly KIND_VERSION=v0.30.0 CLUSTER=aufs-csi-e2e
VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
readonly VERSION

die() {
    echo "e2e-kind: $*" >&2
    exit 69
}
docker version >/dev/null 2>&1 ||
    die "this machine cannot run kind: no Docker engine answers (make e2e-chart needs none)"
command -v kubectl >/dev/null || PATH=$(e2e/node/binaries.sh --cached):$PATH ||
    die "kubectl is missing"
helm=$(scripts/helm.sh)
kind=${KIND:-$PWD/.cache/kind-$KIND_VERSION/kind}
if [[ ! -x $kind ]] && ! command -v "$kind" >/dev/null; then
    go=$(scripts/go.sh)
    GOTOOLCHAIN=local GOWORK=off CGO_ENABLED=0 GOBIN=$(dirname "$kind") \
        "$go" install "sigs.k8s.io/kind@$KIND_VERSION"
fi

scratch=$(mktemp -d)
export KUBECONFIG=$scratch/kubeconfig
clean_up() {
    status=$?
    if [[ $status -ne 0 ]]; then
        kubectl get pods -A -o wide || true
        kubectl get events -A --sort-by=.metadata.creationTimestamp | tail -n 20 || true
        kubectl -n aufs-csi logs daemonset/aufs-csi-node --all-containers --tail 30 || true
    fi >&2 2>/dev/null
    [[ ${KIND_KEEP:-} = yes ]] || "$kind" delete cluster --name "$CLUSTER" >/dev/null 2>&1
    rm -rf "$scratch"
    exit "$status"
}
trap clean_up EXIT
if [[ -n ${KIND_NODE_IMAGE:-} ]]; then
    docker image inspect "$KIND_NODE_IMAGE" >/dev/null 2>&1 || docker pull --quiet "$KIND_NODE_IMAGE" ||
        die "KIND_NODE_IMAGE=$KIND_NODE_IMAGE is not here and cannot be pulled"
fi
"$kind" create cluster --name "$CLUSTER" --config e2e/kind/cluster.yaml --wait 180s \
    ${KIND_NODE_IMAGE:+--image "$KIND_NODE_IMAGE"} ||
    die "there is no cluster; where its node image cannot be pulled, KIND_NODE_IMAGE names one that is here"
"$kind" load image-archive "$archive" --name "$CLUSTER"
install() {
    "$helm" upgrade --install aufs-csi charts/aufs-csi --namespace aufs-csi --create-namespace \
        --set image.pullPolicy=Never --wait --timeout 180s "$@"
    kubectl -n aufs-csi rollout status daemonset/aufs-csi-node --timeout=180s
}
install
kubectl get nodes -L aufs-csi.dev/aufs,aufs-csi.dev/overlay

# The image is on the nodes' disks, so that no registry is needed; pods on both.
for node in $("$kind" get nodes --name "$CLUSTER"); do
    docker exec "$node" mkdir -p /srv/images
    docker cp "$archive" "$node:/srv/images/plugin.tar" >/dev/null
done
install --set 'localImages={/srv/images}' \
    --set test.image="docker-archive:/srv/images/plugin.tar"
"$helm" test aufs-csi --namespace aufs-csi --timeout 120s
kubectl apply -f - <<DEPLOYMENT
apiVersion: apps/v1
kind: Deployment
metadata: {name: spread}
spec:
  replicas: 4
  selector: {matchLabels: {app: spread}}
  template:
    metadata: {labels: {app: spread}}
    spec:
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: spread}}}
      containers:
      - name: c
        image: ghcr.io/aufs-csi/aufs-csi:$VERSION
        imagePullPolicy: Never
        # Nothing in this image sleeps; the plugin without a node does not end.
        command: [/data/aufs-csi, node, --node-id=x, --root=/tmp/store, --run-dir=/tmp/run, --no-registration, --http-address=, '--endpoint=unix:///tmp/x.sock']
        volumeMounts: [{name: data, mountPath: /data}, {name: tmp, mountPath: /tmp}]
      volumes:
      - name: tmp
        emptyDir: {medium: Memory}
      - name: data
        csi: {driver: aufs-csi.dev, volumeAttributes: {image: 'docker-archive:/srv/images/plugin.tar'}}
DEPLOYMENT
kubectl rollout status deployment/spread --timeout=180s
# A rolling upgrade restarts the plugin on each node, and no pod of ours.
before=$(kubectl get pods -l app=spread -o 'jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[0].restartCount}{"\n"}{end}' | sort)
install --set 'localImages={/srv/images}' --set log.level=debug
after=$(kubectl get pods -l app=spread -o 'jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[0].restartCount}{"\n"}{end}' | sort)
[[ $before = "$after" ]] || die "pods were restarted by an upgrade"
worker=$("$kind" get nodes --name "$CLUSTER" | grep worker | head -n 1)
kubectl drain "$worker" --ignore-daemonsets --delete-emptydir-data --timeout=120s
! docker exec "$worker" grep -q 'kubernetes.io~csi' /proc/mounts || die "$worker still has volumes"
kubectl uncordon "$worker"
kubectl delete deployment spread --timeout=120s
kubectl wait --for=delete pod -l app=spread --timeout=120s
"$helm" uninstall aufs-csi --namespace aufs-csi --cascade foreground --wait
docker cp "${PROGRAM:?}" "$worker:/usr/local/bin/aufs-csi" >/dev/null
docker exec "$worker" aufs-csi purge
docker exec "$worker" test ! -e /var/lib/aufs-csi
echo "e2e-kind: passed"
