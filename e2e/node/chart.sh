# shellcheck shell=bash disable=SC2154
# The plugin as a cluster installs it: the chart, with the container image, by a
# DaemonSet. node.sh sources this after cases.sh where E2E_INSTALL=chart, and it
# replaces what starts the plugin there.

readonly NAMESPACE=aufs-csi RELEASE=aufs-csi
readonly CHART=${E2E_CHART:-$here/../../charts/aufs-csi}
readonly IMAGE=ghcr.io/aufs-csi/aufs-csi
# Nobody here makes packets for the cluster's addresses reach the API server, so
# the plugin is told where it is. And there is no port free for a second one.
readonly SETTINGS="
image: {pullPolicy: Never}
registries: {certsDirs: [$CERTS], caHostDirs: []}
localImages: ['$E2E_IMAGES']
env: [{name: KUBERNETES_SERVICE_HOST, value: 127.0.0.1}, {name: KUBERNETES_SERVICE_PORT, value: '6443'}]
log: {format: text}
test: {image: 'oci:$E2E_IMAGES/plugin:1'}
"
readonly CHART_CASES=(
    install first_pod read_only two_pods fs_group container_restart private_image
    private_image_events plugin_pod_deleted plugin_killed kubelet_restart rolling_upgrade
    failed_upgrade drain startup_taint registrar_sidecar_refused uninstall purge
)

start_controllers() {
    start controller-manager kube-controller-manager --kubeconfig "$KUBECONFIG" \
        --service-account-private-key-file "$E2E_DISK/sa.key" \
        --root-ca-file "$E2E_DISK/apiserver/apiserver.crt" --leader-elect=false \
        --bind-address 127.0.0.1 --cert-dir "$E2E_DISK/controller-manager" \
        --node-monitor-grace-period=60s
    start scheduler kube-scheduler --kubeconfig "$KUBECONFIG" --leader-elect=false \
        --bind-address 127.0.0.1 --cert-dir "$E2E_DISK/scheduler"
    wait_for 60 "the default service account" kubectl get serviceaccount default
}

import_image() {
    ctr -a "$CONTAINERD" -n k8s.io images import "$E2E_IMAGE" >>"$E2E_LOGS/containerd.log"
    ctr -a "$CONTAINERD" -n k8s.io images tag "$IMAGE:$VERSION" "$IMAGE:next" >>"$E2E_LOGS/containerd.log"
}

# upgrade SECONDS [VALUES…]: or install; more values as --set has them. helm's own
# --wait is content while no more than maxUnavailable nodes are without, which with
# one node is always.
upgrade() {
    local value more=() within=$1s
    shift
    for value in "$@"; do more+=(--set "$value"); done
    helm upgrade --install "$RELEASE" "$CHART" --namespace "$NAMESPACE" --create-namespace \
        --values - "${more[@]}" --wait --timeout "$within" <<<"$SETTINGS" &&
        kubectl -n "$NAMESPACE" rollout status "daemonset/$RELEASE-node" --timeout="$within"
}
install() { upgrade "$((120 * E2E_SLOW))" "$@"; }
# In the foreground, or helm is done while the plugin still ends.
uninstall() {
    helm -n "$NAMESPACE" uninstall "$RELEASE" --cascade foreground --wait --timeout "$((90 * E2E_SLOW))s"
}
rollback() {
    helm -n "$NAMESPACE" rollback "$RELEASE" --wait --timeout "$((120 * E2E_SLOW))s"
    kubectl -n "$NAMESPACE" rollout status "daemonset/$RELEASE-node" --timeout="$((120 * E2E_SLOW))s"
}

# In cases.sh these are of a process of the node's.
start_driver() {
    install >>"$E2E_LOGS/helm.log"
    wait_for 60 "the plugin to be ready" is_ready
    wait_for 60 "the plugin's registration" is_registered
}
is_running() {
    [[ $1 != driver ]] || { helm -n "$NAMESPACE" status "$RELEASE" >/dev/null 2>&1 && is_ready; return; }
    is_process_running "$1"
}
plugin_log() { kubectl -n "$NAMESPACE" logs "daemonset/$RELEASE-node" --all-containers "$@" || true; }

plugin_pods() { kubectl -n "$NAMESPACE" get pods -o 'jsonpath={.items[*].metadata.uid}' 2>/dev/null || true; }
plugin_pod() { kubectl -n "$NAMESPACE" get pods -l app.kubernetes.io/component=node -o 'jsonpath={.items[*].metadata.name}'; }
plugin_image() { kubectl -n "$NAMESPACE" get pods -l app.kubernetes.io/component=node -o 'jsonpath={.items[*].spec.containers[0].image}'; }
# plugin_process: the plugin's process, as this namespace sees it.
plugin_process() {
    local process words
    for process in /proc/[0-9]*; do
        # It may be gone by now.
        words=$({ tr '\0' ' ' <"$process/cmdline"; } 2>/dev/null || true)
        [[ $words != '/aufs-csi node '* ]] || echo "${process#/proc/}"
    done
}

# ---- the cases -----------------------------------------------------------

case_install() {
    expect "the driver" "$(kubectl get csidriver "$DRIVER_NAME" -o 'jsonpath={.spec.volumeLifecycleModes[*]} {.spec.fsGroupPolicy} {.spec.attachRequired} {.spec.podInfoOnMount}')" \
        'Ephemeral None false true'
    expect "the topology" "$(kubectl get node "$NODE" -o "jsonpath={.metadata.labels.aufs-csi\.dev/$E2E_UNION}")" true
    expect "plugins" "$(plugin_image)" "$IMAGE:$VERSION"
    # The check's report is where NOTES say it is.
    expect_in "the check" "$(kubectl -n "$NAMESPACE" logs "daemonset/$RELEASE-node" -c check)" \
        "Volumes use $E2E_UNION here."
    expect "warnings" "$(kubectl -n "$NAMESPACE" get events --field-selector type=Warning,involvedObject.kind=DaemonSet -o name)" ''
    helm -n "$NAMESPACE" test "$RELEASE" --timeout "$((90 * E2E_SLOW))s"
    # What it may do in the cluster, and nothing else.
    local may=(kubectl auth can-i --as "system:serviceaccount:$NAMESPACE:$RELEASE")
    expect "events" "$("${may[@]}" create events -n default)" yes
    expect "secrets" "$("${may[@]}" get secrets -n default || true)" no
    expect "pods" "$("${may[@]}" list pods -n default || true)" no
    expect "nodes" "$("${may[@]}" patch nodes || true)" no
}

# The commands of the quick start, as README has them.
case_first_pod() {
    create_pod first data=app
    ready first
    is_union first data
    expect "the image" "$(inside first "$SEE")" "$SEEN"
    inside first 'echo mine >/data/note; rm /data/etc/kept'
    expect "changes" "$(inside first 'cat /data/note; ls /data/etc')" $'mine\nversion'
    expect_in "volumes, in the plugin's pod" \
        "$(kubectl -n "$NAMESPACE" exec "ds/$RELEASE-node" -- /aufs-csi volumes)" "$(target first data)"
    expect_in "what would go, in the plugin's pod" \
        "$(kubectl -n "$NAMESPACE" exec "ds/$RELEASE-node" -- /aufs-csi gc --dry-run)" 'needed: volume'
}

# What the plugin's events look like when it is known by its service account.
case_private_image_events() {
    create_pod told data=app,unoin=aufs
    wait_for 60 "an event" has_told told Failed
    expect_in "the event" "$(told told Failed)" 'did you mean union?'
    expect "refused events" "$(busybox wget -q -O - "$PROBES/metrics" | grep -E '^aufs_csi_events_total\{outcome="(refused|failed)"\} [1-9]' || true)" ''
}

case_plugin_pod_deleted() {
    local mount before
    create_pod stays data=app more=other,readOnly
    ready stays
    inside stays 'echo mine >/data/mine'
    mount=$(mounts_at "$(target stays data)"; mounts_at "$(target stays more)")
    before=$(plugin_pod)
    kubectl -n "$NAMESPACE" delete pod "$before" --timeout="$((90 * E2E_SLOW))s"
    expect "without the plugin" "$(inside stays 'cat /data/mine; echo x >/data/x; cat /data/x /more/etc/version')" \
        $'mine\nx\nother'
    kubectl -n "$NAMESPACE" rollout status "daemonset/$RELEASE-node" --timeout="$((120 * E2E_SLOW))s"
    [[ $(plugin_pod) != "$before" ]]
    expect "the mount" "$(mounts_at "$(target stays data)"; mounts_at "$(target stays more)")" "$mount"
    expect "changes" "$(inside stays 'cat /data/mine /data/x')" $'mine\nx'
    delete stays
    wait_for 60 "nothing left" nothing_left
}

case_plugin_killed() {
    local mount process
    create_pod stays data=app
    ready stays
    inside stays 'echo mine >/data/mine'
    mount=$(mounts_at "$(target stays data)")
    process=$(plugin_process)
    kill -KILL "$process"
    wait_for 120 "another process" is_another_process "$process"
    wait_for 120 "the plugin to be ready" is_ready
    wait_for 60 "the plugin's registration" is_registered
    expect_in "the log of the killed one" "$(kubectl -n "$NAMESPACE" logs --previous "$(plugin_pod)")" serving
    expect "the mount" "$(mounts_at "$(target stays data)")" "$mount"
    expect "changes" "$(inside stays 'cat /data/mine')" mine
    expect "the pod's restarts" "$(restarts stays)" 0
    create_pod next data=app
    ready next
    is_union next data
}
is_another_process() { [[ -n $(plugin_process) && $(plugin_process) != "$1" ]]; }

case_rolling_upgrade() {
    local mount driver
    create_pod stays data=app
    ready stays
    inside stays 'echo mine >/data/mine'
    mount=$(mounts_at "$(target stays data)")
    driver=$(kubectl get csidriver "$DRIVER_NAME" -o 'jsonpath={.metadata.uid}')
    install image.tag=next log.level=debug
    expect "plugins" "$(plugin_image)" "$IMAGE:next"
    expect "the mount" "$(mounts_at "$(target stays data)")" "$mount"
    expect "changes" "$(inside stays 'cat /data/mine; echo x >/data/x; cat /data/x')" $'mine\nx'
    expect "the pod's restarts" "$(restarts stays)" 0
    # Changed, not made anew: pods that come meanwhile would find no driver.
    expect "the driver" "$(kubectl get csidriver "$DRIVER_NAME" -o 'jsonpath={.metadata.uid}')" "$driver"
    create_pod next data=app
    ready next
    delete stays
    rollback
    expect "plugins" "$(plugin_image)" "$IMAGE:$VERSION"
    expect "a pod of the newer plugin" "$(inside next 'cat /data/etc/version')" app
    delete next
    wait_for 60 "nothing left" nothing_left
}

# A wrong upgrade stops at the node that it broke, and is taken back.
case_failed_upgrade() {
    create_pod stays data=app
    ready stays
    ! upgrade 20 image.tag=missing || return 1
    expect "the pod" "$(inside stays 'cat /data/etc/version')" app
    rollback
    wait_for 60 "the plugin to be ready" is_ready
    delete stays
}

case_drain() {
    kubectl apply -f - <<DEPLOYMENT
apiVersion: apps/v1
kind: Deployment
metadata: {name: drained}
spec:
  replicas: 2
  selector: {matchLabels: {app: drained}}
  template:
    metadata: {labels: {app: drained}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 1
      nodeSelector: {aufs-csi.dev/$E2E_UNION: "true"}
      volumes:
      - name: data
        csi: {driver: $DRIVER_NAME, volumeAttributes: {image: 'oci:$E2E_IMAGES/volumes/app:1', union: $E2E_UNION}}
      containers:
      - name: c
        image: localhost/container:1
        imagePullPolicy: Never
        command: [sh, -c, 'trap exit TERM; while :; do sleep 0.2; done']
        volumeMounts: [{name: data, mountPath: /data}]
DEPLOYMENT
    kubectl rollout status deployment/drained --timeout="$((120 * E2E_SLOW))s"
    kubectl drain "$NODE" --ignore-daemonsets --timeout="$((120 * E2E_SLOW))s"
    # The plugin is still there, so every volume could go.
    wait_for 60 "no volume left" no_volumes
    wait_for 60 "the plugin to be ready" is_ready
    kubectl uncordon "$NODE"
    kubectl rollout status deployment/drained --timeout="$((120 * E2E_SLOW))s"
    kubectl delete deployment drained --timeout="$((90 * E2E_SLOW))s"
    wait_for 90 "the pods' end" is_gone
}
no_volumes() { [[ $(entries "$STORE/volumes") = 0 ]]; }

case_startup_taint() {
    local key=aufs-csi.dev/agent-not-ready
    kubectl taint node "$NODE" "$key=:NoSchedule" "other=stays:PreferNoSchedule"
    install startupTaint.enabled=true
    wait_for 60 "the taint's end" is_untainted "$key"
    expect "other taints" "$(kubectl get node "$NODE" -o 'jsonpath={.spec.taints[*].key}')" other
    # A node that joins again, while the plugin runs.
    kubectl taint node "$NODE" "$key=:NoSchedule" "other-"
    stop kubelet
    start_kubelet
    wait_for 90 "the taint's end" is_untainted "$key"
    install
}
is_untainted() { [[ $(kubectl get node "$NODE" -o 'jsonpath={.spec.taints[*].key}') != *"$1"* ]]; }

# Whoever asks for the sidecar gets no plugin that registers itself as well. The
# sidecar's image is not here, so its container waits, and nothing is registered.
case_registrar_sidecar_refused() {
    ! upgrade 25 sidecars.nodeDriverRegistrar.enabled=true || return 1
    expect "sockets" "$(find "$KUBELET/plugins_registry" -type s)" ''
    rollback
    wait_for 60 "the plugin's registration" is_registered
}

# Uninstalled too early: the pod runs on, cannot go, and goes when the plugin is
# there again.
case_uninstall() {
    create_pod stays data=app
    ready stays
    inside stays 'echo mine >/data/mine'
    uninstall
    expect "sockets" "$(find "$KUBELET/plugins_registry" "$KUBELET/plugins" -type s)" ''
    wait_for 30 "the end of the registration" is_unregistered
    expect "the pod" "$(inside stays 'cat /data/mine; echo x >/data/x; cat /data/x')" $'mine\nx'
    # It would say so, and not what is lost.
    expect "purge" "$("$E2E_DRIVER" purge 2>&1 >/dev/null || echo $?)" \
        "aufs-csi: cannot purge this node: still in use: pod default/stays at $(target stays data); delete these pods, or unmount these volumes, then try again"$'\n'75
    kubectl delete pod stays --wait=false
    sleep "$((5 * E2E_SLOW))"
    expect "the pod" "$(kubectl get pods -o name)" pod/stays
    start_driver
    wait_for 180 "the pod's end" is_gone
    wait_for 60 "nothing left" nothing_left
}

case_purge() {
    expect_in "while it runs" "$("$E2E_DRIVER" purge 2>&1 || true)" 'the plugin runs'
    uninstall
    expect "objects" "$(kubectl get csidriver,clusterrole,clusterrolebinding -l "app.kubernetes.io/instance=$RELEASE" -o name; kubectl -n "$NAMESPACE" get all -o name)" ''
    # NOTES say what stays, and nothing else does.
    expect "what stays" "$(find "$STORE" "$RUN" "$KUBELET/plugins" "$KUBELET/plugins_registry" -maxdepth 0 | sort)" \
        "$(printf '%s\n' "$STORE" "$RUN" "$KUBELET/plugins" "$KUBELET/plugins_registry" | sort)"
    "$E2E_DRIVER" purge
    # The store is a mount here, as it may be on a node.
    expect "what is left" "$(find "$STORE" "$RUN" "$KUBELET/plugins" "$KUBELET/plugins_registry" -mindepth 1 2>/dev/null || true)" ''
    "$E2E_DRIVER" purge
    start_driver
    create_pod anew data=app
    ready anew
}
