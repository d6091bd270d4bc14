#!/usr/bin/env bash
# shellcheck disable=SC2034,SC2154 # shared with the files that are sourced
# A cluster of two nodes in containers (kind), the plugin by the chart from its
# image, and what becomes of pods: the quick start of the README, a private
# registry, restarts of plugin and kubelet, an upgrade, a drain, and the end. Needs
# a Docker engine that runs, and the node image.
#
# usage: e2e/kind/run.sh IMAGE_ARCHIVE
#   PROGRAM          the program aufs-csi that is in there
#   KIND             the program; default is the pinned version, built from its module
#   KIND_NODE_IMAGE  default what that version takes, from the network
#   KIND_CONFIG      the cluster, for machines that need another one; two nodes
#   KIND_KEEP        yes: the cluster stays; kind export kubeconfig makes it reachable
#   E2E_SLOW         by how much longer everything may take; default 1
set -Eeuo pipefail
cd "$(dirname "$0")/../.."
archive=$(realpath "${1:?usage: e2e/kind/run.sh IMAGE_ARCHIVE}")
: "${PROGRAM:?}" "${KIND_CONFIG:=e2e/kind/cluster.yaml}" "${E2E_SLOW:=1}"
# Its default node is of the Kubernetes of ../node, 1.36.
readonly KIND_VERSION=v0.32.0 CLUSTER=aufs-csi-e2e
VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
readonly VERSION IMAGE=ghcr.io/aufs-csi/aufs-csi

die() {
    echo "e2e-kind: $*" >&2
    exit 69
}
say() { printf 'e2e-kind: %5ds %s\n' "$SECONDS" "$*"; }
docker version >/dev/null 2>&1 ||
    die "this machine cannot run kind: no Docker engine answers (make e2e-chart needs none)"
helm=$(scripts/helm.sh)
kind=${KIND:-$PWD/.cache/kind-$KIND_VERSION/kind}
if [[ ! -x $kind ]] && ! command -v "$kind" >/dev/null; then
    go=$(scripts/go.sh)
    GOTOOLCHAIN=local GOWORK=off CGO_ENABLED=0 GOBIN=$(dirname "$kind") \
        "$go" install "sigs.k8s.io/kind@$KIND_VERSION"
fi

# What the cases of a single node are written in. NODE is the one that is meant.
scratch=$(mktemp -d)
export KUBECONFIG=$scratch/kubeconfig PATH=$PATH:$scratch
readonly KUBELET=/var/lib/kubelet STORE=/var/lib/aufs-csi DRIVER_NAME=aufs-csi.dev
readonly ADDRESS=$CLUSTER-registry CERTS=$scratch/certs.d
readonly E2E_IMAGES=$PWD/target/e2e-kind/images E2E_DISK=$scratch E2E_LOGS=$scratch
E2E_UNION=overlay
! grep -qw aufs /proc/filesystems || E2E_UNION=aufs
# shellcheck source=e2e/node/cases.sh
. e2e/node/cases.sh
# shellcheck source=e2e/node/registry.sh
. e2e/node/registry.sh
# shellcheck source=e2e/kind/cluster.sh
. e2e/kind/cluster.sh
on_node() { docker exec "$NODE" "$@"; }
mount_table() { on_node cat /proc/self/mountinfo; }

trap clean_up EXIT
trap 'echo "e2e-kind: line $LINENO: $BASH_COMMAND" >&2' ERR

tools=$(e2e/node/tools.sh)
BIG_FILES=1 e2e/node/images.sh "$E2E_IMAGES" "$tools"
cp "$archive" "$E2E_IMAGES/plugin.tar"
create_cluster
start_registry_container
prepare_nodes

plugin() { kubectl -n aufs-csi "$@"; }
ready_plugin() { kubectl -n aufs-csi rollout status daemonset/aufs-csi-node --timeout="$((180 * E2E_SLOW))s"; }
install() {
    "$helm" upgrade --install aufs-csi charts/aufs-csi --namespace aufs-csi --create-namespace "$@" >/dev/null
    ready_plugin
}

# ---- the quick start -----------------------------------------------------

say "the quick start"
install
kubectl get nodes -L aufs-csi.dev/aufs,aufs-csi.dev/overlay
expect "nodes of this union" "$(kubectl get nodes -l "aufs-csi.dev/$E2E_UNION=true" -o name | wc -l)" 2
# Images that are on the nodes' disks, here and below.
readonly SETTINGS=(--set "localImages={$E2E_IMAGES}" --set "test.image=docker-archive:$E2E_IMAGES/plugin.tar")
install "${SETTINGS[@]}"
"$helm" test aufs-csi --namespace aufs-csi --timeout "$((120 * E2E_SLOW))s" | grep Succeeded
sed "s,busybox:1.37,localhost/container:1,; s,image: docker.io/library/alpine.*,image: 'oci:$E2E_IMAGES/volumes/app:1'," \
    manifests/examples/pod.yaml | kubectl apply -f -
kubectl wait --for=condition=Ready pod/layers --timeout=2m
wait_for 20 "the image, and what the other writes" \
    kubectl exec layers -c reader -- cat /data/etc/version /data/written
delete layers --grace-period=1

# ---- pods that stay ------------------------------------------------------

# state POD: what must be as it was, whatever happens to plugin and kubelet.
state() {
    echo "$(uid "$1") $(restarts "$1")" "$(for volume in data more limited; do mounts_at "$(target "$1" "$volume")"; done)"
    inside "$1" 'cat /data/mine /more/etc/version /limited/etc/version; ls /data/etc'
}
start_pods() {
    # The loop devices behind limits are the kernel's, and so of both nodes.
    for NODE in "${nodes[@]}"; do create_pod "on-$NODE" data=app more=other,readOnly limited=app,sizeLimit=16Mi; done
    for NODE in "${nodes[@]}"; do
        ready "on-$NODE"
        is_union "on-$NODE" data
        inside "on-$NODE" "echo $NODE >/data/mine; rm /data/etc/kept"
        before[$NODE]=$(state "on-$NODE")
        expect_in "the pod" "${before[$NODE]}" " 0 "
        expect_in "the pod" "${before[$NODE]}" $'\n'"$NODE"$'\nother\napp\nversion'
    done
}
# They are as they were, can be written to, and others can come and go.
look_at_pods() {
    for NODE in "${nodes[@]}"; do
        expect "on $NODE" "$(state "on-$NODE")" "${before[$NODE]}"
        inside "on-$NODE" "echo $1 >/data/etc/version"
        expect "a change on $NODE" "$(inside "on-$NODE" 'cat /data/etc/version')" "$1"
        expect_in "the limit on $NODE" "$(inside "on-$NODE" 'dd if=/dev/zero of=/limited/zeros bs=64k; rm /limited/zeros')" 'No space left'
        create_pod "new-$NODE" data=app,sizeLimit=16Mi
        ready "new-$NODE"
        expect "a new pod on $NODE" "$(inside "new-$NODE" "$SEE")" "$SEEN"
        delete "new-$NODE"
    done
}
plugins() { plugin get pods -l app.kubernetes.io/component=node -o "jsonpath={range .items[*]}{$1} {end}"; }
are_restarted() { [[ $(plugins .status.containerStatuses[0].restartCount) = '1 1 ' && $(plugins .status.containerStatuses[0].ready) = 'true true ' ]]; }

say "a pod on each node"
declare -A before
start_pods

say "a private registry"
NODE=${nodes[1]} image=$PRIVATE/private/data:1
create_secret right "$PASSWORD"
create_secret wrong "not-$PASSWORD"
create_pod allowed "data=$image,secret=right"
ready allowed
expect "the image" "$(inside allowed 'cat /data/etc/version')" private
expect_in "pulled" "$(told allowed Pulled)" "Pulled image \"$image\" (sha256:"
create_pod refused "data=$image"
create_pod mistaken "data=$image,secret=wrong"
for pod in refused mistaken; do
    wait_for 60 "an event of $pod" has_told "$pod" Failed
    wait_for 60 "an event of kubelet for $pod" has_event "$pod"
    expect_in "the event" "$(events "$pod")" 'code = Unauthenticated'
    expect_in "the event" "$(told "$pod" Failed)" nodePublishSecretRef
done
delete allowed refused mistaken

say "the plugin's pods deleted"
plugin delete pods -l app.kubernetes.io/component=node --timeout="$((90 * E2E_SLOW))s"
ready_plugin
look_at_pods deleted

say "the plugin killed"
for NODE in "${nodes[@]}"; do on_node pkill -KILL -f '^/aufs-csi node '; done
wait_for 120 "the plugin's restart" are_restarted
look_at_pods killed

say "kubelet restarted"
for NODE in "${nodes[@]}"; do on_node systemctl restart kubelet; done
for NODE in "${nodes[@]}"; do wait_for 60 "kubelet to know its pods" inside "on-$NODE" true; done
look_at_pods restarted

say "a node restarted"
NODE=${nodes[1]}
docker restart "$NODE" >/dev/null
wait_for 120 "the pod's restart" has_restarted "on-$NODE"
ready "on-$NODE"
expect "what it had" "$(state "on-$NODE" | tail -n 4)" "$(tail -n 4 <<<"${before[$NODE]}")"
ready_plugin
before[$NODE]=$(state "on-$NODE")
look_at_pods rebooted

say "a rolling upgrade"
"$helm" upgrade aufs-csi charts/aufs-csi --namespace aufs-csi --reset-then-reuse-values --set image.tag=next >/dev/null
ready_plugin
expect "plugins" "$(plugins .spec.containers[0].image)" "$IMAGE:next $IMAGE:next "
look_at_pods upgraded

# ---- the end -------------------------------------------------------------

# What a node has of volumes.
leftovers() {
    on_node find "$STORE/volumes" "$STORE/ingest" -mindepth 1 -maxdepth 1
    mount_table | grep -E 'kubernetes.io~csi|aufs-csi' || true
}

say "a drain"
kubectl apply -f - <<DEPLOYMENT
apiVersion: apps/v1
kind: Deployment
metadata: {name: moves}
spec:
  replicas: 4
  selector: {matchLabels: {app: moves}}
  template:
    metadata: {labels: {app: moves}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{key: node-role.kubernetes.io/control-plane, operator: Exists}]
      nodeSelector: {aufs-csi.dev/$E2E_UNION: "true"}
      volumes:
      - name: data
        csi: {driver: $DRIVER_NAME, volumeAttributes: {image: 'oci:$E2E_IMAGES/volumes/app:1'}}
      containers:
      - name: c
        image: localhost/container:1
        command: [sh, -c, 'trap exit TERM; while :; do sleep 0.2; done']
        volumeMounts: [{name: data, mountPath: /data}]
DEPLOYMENT
kubectl rollout status deployment/moves --timeout="$((180 * E2E_SLOW))s"
pods_on() { kubectl get pods -l app=moves --field-selector "spec.nodeName=$1" -o name | wc -l; }
NODE=${nodes[1]}
expect_in "volumes of $NODE" "$(leftovers)" "$(target "on-$NODE" data)"
[[ $(pods_on "$NODE") -gt 0 ]]
# The pod of its own has nobody to make it again.
kubectl drain "$NODE" --ignore-daemonsets --force --timeout="$((120 * E2E_SLOW))s"
wait_for 60 "nothing left on $NODE" nothing_left
kubectl rollout status deployment/moves --timeout="$((180 * E2E_SLOW))s"
expect "pods on the other node" "$(pods_on "${nodes[0]}")" 4
NODE=${nodes[0]}
expect "the pod on $NODE" "$(state "on-$NODE")" "${before[$NODE]}"
kubectl uncordon "${nodes[1]}"

say "uninstalled"
kubectl delete deployment moves --timeout="$((90 * E2E_SLOW))s"
kubectl delete pods --all --timeout="$((90 * E2E_SLOW))s"
for NODE in "${nodes[@]}"; do wait_for 60 "nothing left on $NODE" nothing_left; done
"$helm" uninstall aufs-csi --namespace aufs-csi --cascade foreground --wait
expect "objects" "$(kubectl get csidriver,clusterrole,clusterrolebinding -l app.kubernetes.io/instance=aufs-csi -o name; plugin get all -o name)" ''
for NODE in "${nodes[@]}"; do
    expect "its registration" "$(kubectl get csinode "$NODE" -o 'jsonpath={.spec.drivers[*].name}')" ''
done
# With a shell on the node, and without one.
NODE=${nodes[0]}
docker cp "$PROGRAM" "$NODE:/usr/local/bin/aufs-csi" >/dev/null
on_node aufs-csi purge
kubectl debug "node/${nodes[1]}" --profile=sysadmin --image="$IMAGE:$VERSION" -- /aufs-csi purge \
    --root /host/var/lib/aufs-csi --run-dir /host/run/aufs-csi --kubelet-root /host/var/lib/kubelet
kubectl wait --for=jsonpath='{.status.phase}'=Succeeded pods --all --timeout="$((60 * E2E_SLOW))s"
for NODE in "${nodes[@]}"; do
    expect "what is left on $NODE" "$(on_node find /var/lib /run -xdev -name '*aufs-csi*' -not -path '*/containerd/*')" ''
done
echo "e2e-kind: passed"
