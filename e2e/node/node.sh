#!/usr/bin/env bash
# One Kubernetes node with an API server, and the plugin on it: brings all of it
# up, runs the cases, and goes down with everything. Meant to be the first
# process of namespaces of its own (mount, network, PID, UTS, IPC), which run.sh
# and the virtual machine both give it.
#
# usage: e2e/node/node.sh [CASE…]
#
#   E2E_K8S     directory with kubelet, kube-apiserver, kubectl
#   E2E_TOOLS   directory with bin/etcd, bin/containerd, …
#   E2E_DRIVER  the program aufs-csi
#   E2E_IMAGES  what images.sh made
#   E2E_DISK    a directory on a disk, for the stores; emptied
#   E2E_LOGS    where logs go
#   E2E_UNION   aufs or overlay: what volumes must turn out to be
#   E2E_SLOW    by how much longer everything may take; default 1
#   E2E_INSTALL process: the plugin is a process of the node; chart: what helm
#               makes of the chart, with the image E2E_IMAGE and E2E_HELM;
#               E2E_CHART where that is not the repository's
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
: "${E2E_K8S:?}" "${E2E_TOOLS:?}" "${E2E_DRIVER:?}" "${E2E_IMAGES:?}" "${E2E_DISK:?}"
: "${E2E_LOGS:?}" "${E2E_UNION:?}" "${E2E_SLOW:=1}" "${E2E_CGROUP:=aufs-csi-e2e}"
: "${E2E_INSTALL:=process}"

# The names a node usually has. What is there of the machine's own is covered
# below, in this mount namespace only.
# shellcheck disable=SC2034 # cases.sh uses them
readonly KUBELET=/var/lib/kubelet STORE=/var/lib/aufs-csi RUN=/run/aufs-csi
readonly NODE=node-a ADDRESS=10.99.0.1 DRIVER_NAME=aufs-csi.dev
readonly CONTAINERD=/run/containerd/containerd.sock
readonly PROBES=http://127.0.0.1:9809 CERTS=$E2E_DISK/certs.d
export PATH=$E2E_K8S:$E2E_TOOLS/bin:/usr/sbin:/usr/bin:/sbin:/bin
export KUBECONFIG=$E2E_DISK/admin.kubeconfig HOME=$E2E_DISK

say() { printf 'e2e-node: %5ds %s\n' "$SECONDS" "$*"; }

# start NAME COMMAND…; a case may do so too, from a shell of its own.
start() {
    local name=$1
    shift
    "$@" >>"$E2E_LOGS/$name.log" 2>&1 </dev/null &
    echo $! >"/run/$name.pid"
    # Or bash would tell of its end in the middle of a case.
    disown
}

# signal NAME SIGNAL
signal() { kill "-$2" "$(</run/"$1".pid)"; }

is_running() { is_process_running "$@"; }
is_process_running() {
    local process state
    [[ -e /run/$1.pid ]] || return 1
    process=$(</run/"$1".pid)
    [[ -d /proc/$process ]] || return 1
    # A dead one that nobody has waited for yet does not run, unless threads of it
    # are left: they still hold its files and sockets.
    state=$(sed 's/.*) //; s/ .*//' "/proc/$process/stat" 2>/dev/null) || return 1
    [[ $state != Z || $(find "/proc/$process/task" -mindepth 1 -maxdepth 1 2>/dev/null | wc -l) -gt 1 ]]
}

# stop NAME [SIGNAL]: and waits until it is gone.
stop() {
    is_process_running "$1" || return 0
    signal "$1" "${2:-TERM}"
    while is_process_running "$1"; do sleep 0.05; done
}

prepare_machine() {
    mount --make-rshared /
    mount -t tmpfs -o mode=0755 run /run
    mount -t tmpfs -o mode=0755 lib /var/lib
    # kubelet knows no other place for /var/log/containers.
    mount -t tmpfs -o mode=0755 log /var/log
    rm -rf "${E2E_DISK:?}"/*
    local directory
    for directory in kubelet aufs-csi containerd etcd; do
        mkdir -p "$E2E_DISK/$directory" "/var/lib/$directory"
        mount --bind "$E2E_DISK/$directory" "/var/lib/$directory"
        # Shared, as on a node, but not with the directory's other name.
        mount --make-private "/var/lib/$directory"
        mount --make-shared "/var/lib/$directory"
    done
    mkdir -p /run/containerd /var/log/pods "$KUBELET"/{plugins,plugins_registry,pods}
    hostname "$NODE"
    ip link set lo up
    # The node's address; not every kernel has a dummy device.
    ip link add d0 type veth peer name d1
    ip address add "$ADDRESS/24" dev d0
    ip link set d0 up
    ip link set d1 up
    ip route add default via 10.99.0.254 dev d0
    echo 1 >/proc/sys/net/ipv4/ip_forward 2>/dev/null || true
    : >"$E2E_DISK/resolv.conf"
}

start_etcd() {
    start etcd etcd --data-dir "/var/lib/etcd/data" --unsafe-no-fsync=true \
        --listen-client-urls http://127.0.0.1:2379 \
        --advertise-client-urls http://127.0.0.1:2379 \
        --listen-peer-urls http://127.0.0.1:2380 --log-level warn
}

start_containerd() {
    mkdir -p "$E2E_DISK/cni"
    cat >"$E2E_DISK/cni/10-pods.conflist" <<CNI
{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipMasq": false,
 "ipam": {"type": "host-local", "dataDir": "/run/cni",
          "ranges": [[{"subnet": "10.88.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
CNI
    # Without restrict_oom_score_adj runc fails where CAP_SYS_RESOURCE is missing.
    cat >"$E2E_DISK/containerd.toml" <<TOML
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "$CONTAINERD"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/container:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$E2E_TOOLS/bin"
    conf_dir = "$E2E_DISK/cni"
TOML
    start containerd containerd --config "$E2E_DISK/containerd.toml"
    wait_for 30 "containerd" ctr -a "$CONTAINERD" version
    ctr -a "$CONTAINERD" -n k8s.io images import "$E2E_IMAGES/container.tar" \
        >>"$E2E_LOGS/containerd.log"
}

kubeconfig() {
    cat <<CONFIG
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:6443", insecure-skip-tls-verify: true}}]
users: [{name: u, user: {token: $1}}]
contexts: [{name: d, context: {cluster: c, user: u}}]
current-context: d
CONFIG
}

# What the plugin has to reach the API server with: verified, and with no right
# but that to make events.
driver_kubeconfig() {
    cat <<CONFIG
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:6443", certificate-authority: apiserver/apiserver.crt}}]
users: [{name: u, user: {tokenFile: driver.token}}]
contexts: [{name: d, context: {cluster: c, user: u}}]
current-context: d
CONFIG
}

start_apiserver() {
    cat >"$E2E_DISK/tokens" <<TOKENS
admin-token,admin,admin,system:masters
node-token,system:node:$NODE,$NODE,system:nodes
driver-token,aufs-csi,aufs-csi
TOKENS
    kubeconfig admin-token >"$E2E_DISK/admin.kubeconfig"
    kubeconfig node-token >"$E2E_DISK/node.kubeconfig"
    driver_kubeconfig >"$E2E_DISK/driver.kubeconfig"
    echo driver-token >"$E2E_DISK/driver.token"
    openssl ecparam -name prime256v1 -genkey -noout -out "$E2E_DISK/sa.key"
    # Where nobody makes service accounts, no pod can wait for one.
    local off=(--disable-admission-plugins ServiceAccount)
    [[ $E2E_INSTALL = process ]] || off=()
    start apiserver kube-apiserver --etcd-servers http://127.0.0.1:2379 \
        --cert-dir "$E2E_DISK/apiserver" --token-auth-file "$E2E_DISK/tokens" \
        --service-account-key-file "$E2E_DISK/sa.key" \
        --service-account-signing-key-file "$E2E_DISK/sa.key" \
        --service-account-issuer https://kubernetes.default.svc \
        --service-cluster-ip-range 10.96.0.0/16 --authorization-mode RBAC \
        "${off[@]}" --allow-privileged \
        --bind-address 127.0.0.1 --advertise-address "$ADDRESS" \
        --kubelet-preferred-address-types InternalIP
    wait_for 90 "the API server" kubectl get --raw /readyz
    wait_for 30 "the default namespace" kubectl get namespace default
    # kubelet's rights are not what is tried here.
    kubectl create clusterrolebinding node --clusterrole=cluster-admin --group=system:nodes
    kubectl create clusterrole driver --verb=create,patch --resource=events
    kubectl create clusterrolebinding driver --clusterrole=driver --user=aufs-csi
}

start_kubelet() {
    cat >"$E2E_DISK/kubelet.yaml" <<CONFIG
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
cgroupRoot: /$E2E_CGROUP
cgroupsPerQOS: false
enforceNodeAllocatable: []
containerRuntimeEndpoint: unix://$CONTAINERD
podLogsDir: /var/log/pods
volumePluginDir: /var/lib/kubelet/volume-plugins
resolvConf: $E2E_DISK/resolv.conf
clusterDNS: [10.96.0.10]
makeIPTablesUtilChains: false
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: 1Mi}
volumeStatsAggPeriod: 5s
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
CONFIG
    start kubelet kubelet --config "$E2E_DISK/kubelet.yaml" \
        --kubeconfig "$E2E_DISK/node.kubeconfig" --root-dir "$KUBELET" \
        --cert-dir "$E2E_DISK/kubelet-certificates" --hostname-override "$NODE" \
        --node-ip "$ADDRESS" --v 2
    wait_for 90 "the node" kubectl wait --for=condition=Ready --timeout=1s "node/$NODE"
}

start_driver() {
    start driver "$E2E_DRIVER" node --node-id "$NODE" --allow-local-images "$E2E_IMAGES" \
        --kubeconfig "$E2E_DISK/driver.kubeconfig" --certs-dir "$CERTS"
    # One that was killed is still registered, so ask the new one, too.
    wait_for 60 "the plugin to be ready" is_ready
    wait_for 60 "the plugin's registration" is_registered
}

is_ready() {
    [[ $(busybox wget -q -O - "$PROBES/metrics") = *$'\naufs_csi_registered 1\n'* ]] &&
        busybox wget -q -O /dev/null "$PROBES/readyz"
}

is_registered() {
    [[ $(kubectl get csinode "$NODE" -o jsonpath='{.spec.drivers[*].name}') = *$DRIVER_NAME* ]]
}

create_csidriver() {
    kubectl create -f - <<CSIDRIVER
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: $DRIVER_NAME}
spec: {attachRequired: false, podInfoOnMount: true, fsGroupPolicy: None, requiresRepublish: false,
  storageCapacity: false, seLinuxMount: false, volumeLifecycleModes: [Ephemeral]}
CSIDRIVER
}

go_down() {
    local status=$? name
    for name in driver kubelet scheduler controller-manager apiserver private-registry plain-registry throttle; do stop "$name"; done
    # Containers and their shims outlive containerd; their cgroups must be empty
    # before run.sh can remove them.
    ctr -a "$CONTAINERD" -n k8s.io tasks list -q 2>/dev/null | while read -r task; do
        ctr -a "$CONTAINERD" -n k8s.io tasks kill --signal KILL "$task" 2>/dev/null || true
    done
    for name in containerd etcd; do stop "$name"; done
    exit "$status"
}

# shellcheck source=e2e/node/cases.sh
. "$here/cases.sh"
# shellcheck source=e2e/node/volumes.sh
. "$here/volumes.sh"
# shellcheck source=e2e/node/registry.sh
. "$here/registry.sh"

if [[ $E2E_INSTALL = chart ]]; then
    : "${E2E_IMAGE:?}" "${E2E_HELM:?}"
    helm() { "$E2E_HELM" "$@"; }
    VERSION=$("$E2E_DRIVER" --version)
    readonly VERSION=${VERSION#* }
    # shellcheck source=e2e/node/chart.sh
    . "$here/chart.sh"
fi

trap go_down EXIT
say "kernel $(uname -r), union $E2E_UNION, $("$E2E_DRIVER" --version), $(kubelet --version)"
prepare_machine
start_etcd
start_containerd
start_apiserver >/dev/null
say "the API server is ready"
prepare_registries
start_kubelet
say "the node is ready"
if [[ $E2E_INSTALL = chart ]]; then
    start_controllers
    import_image
    [[ $# -gt 0 ]] || set -- "${CHART_CASES[@]}"
else
    create_csidriver >/dev/null
fi
run_cases "$@"
