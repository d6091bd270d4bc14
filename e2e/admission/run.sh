#!/usr/bin/env bash
# Tries manifests/admission on a real API server: the same table of attributes that
# the node's parser is tested with, and one for each parameter. No node is needed,
# for pods are only tried.
#
# usage: e2e/admission/run.sh
#   K8S_BIN, K8S_CACHE, NODE_TOOLS   as for e2e/node/run.sh
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../.." && pwd)
k8s=$("$repository/e2e/node/binaries.sh")
tools=$("$repository/e2e/node/tools.sh")
work=$(mktemp -d)
processes=()

say() { echo "admission: $*" >&2; }
stop() {
    local process
    # Nothing of them is kept, and an API server without etcd takes minutes to end.
    for process in "${processes[@]}"; do kill -KILL "$process" 2>/dev/null || true; done
    wait 2>/dev/null
    rm -rf "$work"
}
trap stop EXIT

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

etcd_port=$(free_port)
peer_port=$(free_port)
port=$(free_port)
"$tools/bin/etcd" --data-dir "$work/etcd" \
    --listen-client-urls "http://127.0.0.1:$etcd_port" --advertise-client-urls "http://127.0.0.1:$etcd_port" \
    --listen-peer-urls "http://127.0.0.1:$peer_port" >"$work/etcd.log" 2>&1 &
processes+=($!)
openssl ecparam -name prime256v1 -genkey -noout -out "$work/sa.key"
echo 'admin-token,admin,admin,system:masters' >"$work/tokens"
# Nobody here makes service accounts, so no pod can wait for one.
"$k8s/kube-apiserver" --etcd-servers "http://127.0.0.1:$etcd_port" --secure-port "$port" \
    --cert-dir "$work/apiserver" --token-auth-file "$work/tokens" \
    --service-account-key-file "$work/sa.key" --service-account-signing-key-file "$work/sa.key" \
    --service-account-issuer https://kubernetes.default.svc --service-cluster-ip-range 10.96.0.0/16 \
    --authorization-mode RBAC --disable-admission-plugins ServiceAccount \
    --bind-address 127.0.0.1 --advertise-address 192.0.2.1 >"$work/apiserver.log" 2>&1 &
processes+=($!)
kubectl=("$k8s/kubectl" --server "https://127.0.0.1:$port" --token admin-token
    --insecure-skip-tls-verify --kubeconfig /dev/null)
for ((tries = 0; ; tries++)); do
    if "${kubectl[@]}" get namespace default >/dev/null 2>&1 &&
        "${kubectl[@]}" get namespace kube-system >/dev/null 2>&1; then
        break
    fi
    if ((tries >= 120)); then
        tail -n 20 "$work/apiserver.log" >&2
        say "the API server does not come up"
        exit 1
    fi
    sleep 1
done
# A fault in an expression is refused here.
"${kubectl[@]}" apply -f "$repository/manifests/admission" >&2
python3 "$here/ask.py" "https://127.0.0.1:$port" admin-token "$here/cases.json" "$here/rules.json"
