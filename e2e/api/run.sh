#!/usr/bin/env bash
# Has a real API server look at everything that is applied to one: what the chart
# makes of its values, manifests/, and the YAML of the documentation. Nothing of
# these is kept (--dry-run=server), and unknown or doubled fields are errors. Then
# it runs the documentation's commands of kubectl and helm as they stand, where no
# node has to answer. As root.
#
# usage: e2e/api/run.sh
#   K8S_BIN      directory with kube-apiserver and kubectl; see e2e/node/binaries.sh
set -euo pipefail
cd "$(dirname "$0")/../.."

if [[ ${API_ISOLATED:-} != yes ]]; then
    K8S=$(e2e/node/binaries.sh)
    TOOLS=$(e2e/node/tools.sh)
    HELM=$(scripts/helm.sh)
    export K8S TOOLS HELM API_ISOLATED=yes
    exec unshare --mount --net --pid --fork --kill-child=KILL "$0" "$@"
fi

export PATH=$K8S:$TOOLS/bin:$PATH
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
die() {
    echo "e2e-api: $*" >&2
    tail -n 20 "$scratch"/*.log >&2 || true
    exit 1
}
# A pod has to have a service account where nobody makes one.
readonly OFF=ServiceAccount

ip link set lo up
etcd --data-dir "$scratch/etcd" --unsafe-no-fsync=true --listen-client-urls http://127.0.0.1:2379 \
    --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 \
    --log-level warn >"$scratch/etcd.log" 2>&1 &
etcd=$!
openssl ecparam -name prime256v1 -genkey -noout -out "$scratch/sa.key"
echo 'admin-token,admin,admin,system:masters' >"$scratch/tokens"
kube-apiserver --etcd-servers http://127.0.0.1:2379 --cert-dir "$scratch/certificates" \
    --token-auth-file "$scratch/tokens" --service-account-key-file "$scratch/sa.key" \
    --service-account-signing-key-file "$scratch/sa.key" \
    --service-account-issuer https://kubernetes.default.svc --authorization-mode RBAC \
    --disable-admission-plugins "$OFF" --allow-privileged --bind-address 127.0.0.1 \
    --advertise-address 127.0.0.1 --service-cluster-ip-range 10.96.0.0/16 >"$scratch/apiserver.log" 2>&1 &
apiserver=$!
cat >"$scratch/kubeconfig" <<'CONFIG'
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:6443", insecure-skip-tls-verify: true}}]
users: [{name: u, user: {token: admin-token}}]
contexts: [{name: d, context: {cluster: c, user: u}}]
current-context: d
CONFIG
export KUBECONFIG=$scratch/kubeconfig HOME=$scratch
for _ in $(seq 600); do
    kubectl get --raw /readyz >/dev/null 2>&1 && kubectl get namespace default >/dev/null 2>&1 && break
    kill -0 "$etcd" "$apiserver" 2>/dev/null || die "etcd or the API server has ended"
    sleep 0.2
done
kubectl get namespace default >/dev/null || die "the API server does not start"
# What a dry run refers to has to be there.
kubectl create namespace team >/dev/null
# Only that they are there: what is in them is the operator's to judge.
for kind in PodMonitor PrometheusRule; do
    plural=${kind,,}s
    kubectl create -f - >/dev/null <<CRD
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: $plural.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  scope: Namespaced
  names: {kind: $kind, plural: $plural}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
CRD
done
for kind in podmonitors prometheusrules; do
    kubectl wait --for=condition=Established --timeout=60s "crd/$kind.monitoring.coreos.com" >/dev/null
done

# check NAME [OPTION…] <YAML
check() {
    local name=$1
    shift
    cat >"$scratch/$name.yaml"
    # A warning is of something that is ignored, or will not work any more.
    kubectl create --dry-run=server --validate=strict --warnings-as-errors "$@" -f "$scratch/$name.yaml" \
        >"$scratch/said" 2>&1 || {
        cat "$scratch/said" >&2
        die "the API server does not take $name"
    }
    cat "$scratch/said" >>"$scratch/checked"
}
render() { "$HELM" template aufs-csi charts/aufs-csi --namespace team --kube-version 1.36.2 "$@"; }

render | check default
for switches in aufsOnly.enabled=true check.mode=Skip hostNetwork=false networkPolicy.enabled=true \
    events.enabled=false startupTaint.enabled=true openshift.scc.enabled=true \
    policy.content.maxImages=4 admissionPolicy.enabled=true localImages='{/srv/images}' \
    policy.content.localImages='{/srv/policy}' \
    registries.credentialsSecret=s,registries.caConfigMap=c \
    registries.credentialProviders.config=/etc/p,registries.credentialProviders.binDir=/usr/p \
    sidecars.nodeDriverRegistrar.enabled=true,sidecars.livenessProbe.enabled=true \
    metrics.podMonitor.enabled=true,metrics.prometheusRule.enabled=true,metrics.dashboard.enabled=true \
    kubeletRootDir=/var/snap/microk8s/common/var/lib/kubelet; do
    render --set "$switches" | check "$(tr -c 'a-zA-Z0-9\n' - <<<"$switches")"
done
for variant in default aufs-only; do
    # Its namespace is not there yet where nothing is kept.
    kubectl kustomize "manifests/$variant" >"$scratch/all.yaml"
    grep -q '^kind: Namespace' "$scratch/all.yaml" || die "manifests/$variant makes no namespace"
    sed 's/namespace: aufs-csi$/namespace: team/' "$scratch/all.yaml" | check "manifests-$variant-kept"
done
for file in manifests/examples/*.yaml; do check "$(basename "$file" .yaml)" <"$file"; done

# Every whole object in the documentation.
python3 scripts/blocks.py objects README.md docs/*.md charts/aufs-csi/README.md >"$scratch/documents"
while read -r number name; do
    python3 scripts/blocks.py object "$number" README.md docs/*.md charts/aufs-csi/README.md |
        check "document-$number-$name"
done <"$scratch/documents"

mkdir "$scratch/bin"
ln -s "$HELM" "$scratch/bin/helm"
PATH=$scratch/bin:$PATH
: >"$scratch/ran"
# documented BEGINNING: all commands of the documentation that begin so. What they
# say is in $scratch/said.
documented() {
    local command
    : >"$scratch/said"
    python3 scripts/blocks.py commands "$1" README.md docs/*.md charts/aufs-csi/README.md >"$scratch/commands"
    while read -r command; do
        [[ $command != "" ]] || die "no page has a command that begins with: $1"
        bash -euo pipefail -c "$command" >>"$scratch/said" 2>&1 </dev/null || {
            cat "$scratch/said" >&2
            die "a documented command fails: $command"
        }
        echo "$command" >>"$scratch/ran"
    done <"$scratch/commands"
}
# expect WHAT ACTUAL WANTED
expect() { [[ $2 = "$3" ]] || die "$1: is $(printf %q "$2"), wanted $(printf %q "$3")"; }

kubectl create -f - >/dev/null <<'OBJECTS'
apiVersion: v1
kind: Node
metadata: {name: worker-1}
---
apiVersion: v1
kind: Pod
metadata: {name: left}
spec:
  containers: [{name: c, image: busybox}]
  volumes: [{name: data, csi: {driver: container-image.csi.k8s.io, volumeAttributes: {image: busybox}}}]
OBJECTS
documented 'helm show values'
grep -q '^kubeletRootDir:' "$scratch/said" || die "the chart's values are not shown"
documented 'helm upgrade --install aufs-csi'
documented 'kubectl label namespace'
documented 'kubectl label node'
expect "the node's label" "$(kubectl get node worker-1 -o 'jsonpath={.metadata.labels.node\.aufs-csi\.dev/kernel}')" aufs
documented 'kubectl apply -f manifests/examples/pod.yaml'
documented 'kubectl get pods -A -o go-template='
expect "pods of the two drivers" "$(sort "$scratch/said")" $'default/layers\ndefault/left'
# From a chart with another default, and a value of the user's.
cp -r charts/aufs-csi "$scratch/older"
sed -i 's/^  maxDownloads: 6$/  maxDownloads: 5/' "$scratch/older/values.yaml"
helm upgrade aufs-csi "$scratch/older" --namespace aufs-csi --set log.level=debug >/dev/null
arguments() { kubectl -n aufs-csi get daemonset aufs-csi-node -o 'jsonpath={.spec.template.spec.containers[0].args}'; }
[[ $(arguments) = *--max-downloads=5* ]] || die "the older chart has no other default"
documented 'helm upgrade aufs-csi'
[[ $(arguments) = *--max-downloads=6* ]] || die "an upgrade keeps defaults of the older chart"
[[ $(arguments) = *--log-level=debug* ]] || die "an upgrade forgets a value of the user's"
kubectl -n aufs-csi get daemonset aufs-csi-node -o yaml | grep -q agent-not-ready || die "no startup taint is set"
documented 'kubectl -n aufs-csi describe daemonset'
grep -q '^Name: *aufs-csi-node' "$scratch/said" || die "the DaemonSet is not described"
documented 'kubectl debug node/worker-1'
expect "where the debugger has the node" "$(kubectl get pods -o 'jsonpath={.items[?(@.spec.nodeName=="worker-1")].spec.containers[0].volumeMounts[?(@.name=="host-root")].mountPath}')" /host
helm uninstall aufs-csi --namespace aufs-csi >/dev/null
documented 'kubectl apply -k manifests/'
documented 'kubectl apply -f manifests/admission'
echo "e2e-api: $(grep -c '(server dry run)' "$scratch/checked") objects, $(wc -l <"$scratch/documents") of them blocks of the documentation; $(wc -l <"$scratch/ran") of its commands run"
