# shellcheck shell=bash disable=SC2154
# The cluster of run.sh, which sources this, and what it needs beside the plugin.

create_cluster() {
    if [[ -n ${KIND_NODE_IMAGE:-} ]]; then
        docker image inspect "$KIND_NODE_IMAGE" >/dev/null 2>&1 || docker pull --quiet "$KIND_NODE_IMAGE" ||
            die "KIND_NODE_IMAGE=$KIND_NODE_IMAGE is not here and cannot be pulled"
    fi
    "$kind" create cluster --name "$CLUSTER" --config "$KIND_CONFIG" --wait 180s \
        ${KIND_NODE_IMAGE:+--image "$KIND_NODE_IMAGE"} ||
        die "there is no cluster, see above; KIND_NODE_IMAGE names a node image that is here, KIND_CONFIG another cluster, as for cgroup v1 (CONTRIBUTING.md)"
    mapfile -t nodes < <("$kind" get nodes --name "$CLUSTER" | sort)
    [[ ${#nodes[@]} -eq 2 && ${nodes[1]} = *worker ]] || die "$KIND_CONFIG must make two nodes, one a worker"
    command -v kubectl >/dev/null || docker cp "${nodes[0]}:/usr/bin/kubectl" "$scratch/kubectl" >/dev/null
    "$kind" load image-archive "$archive" --name "$CLUSTER"
    "$kind" load image-archive "$E2E_IMAGES/container.tar" --name "$CLUSTER"
}

# A container beside the nodes, of the registry's program and its libraries.
start_registry_container() {
    local libraries
    prepare_registries
    mapfile -t libraries < <(ldd "$tools/bin/docker-registry" | grep -oE '/[^ ]+')
    tar --create --dereference --directory "$tools/bin" docker-registry --directory / "${libraries[@]#/}" |
        docker import - "$ADDRESS" >/dev/null
    cat >"$scratch/registry/config.yaml" <<YAML
version: 0.1
storage: {filesystem: {rootdirectory: /images}, maintenance: {readonly: {enabled: true}}}
http: {addr: ":5443", tls: {certificate: /config/server.crt, key: /config/server.key}}
auth: {htpasswd: {realm: e2e, path: /config/htpasswd}}
YAML
    docker run --detach --name "$ADDRESS" --network kind --env OTEL_TRACES_EXPORTER=none \
        --volume "$E2E_IMAGES/registry:/images:ro" --volume "$scratch/registry:/config:ro" \
        "$ADDRESS" /docker-registry serve /config/config.yaml >/dev/null
}

# Images of volumes, and the certificates of the registry, where the plugin looks for
# both; and a second name for the plugin's image.
prepare_nodes() {
    for NODE in "${nodes[@]}"; do
        on_node mkdir -p /etc/containerd/certs.d "$E2E_IMAGES"
        docker cp "$CERTS/." "$NODE:/etc/containerd/certs.d"
        docker cp "$E2E_IMAGES/volumes" "$NODE:$E2E_IMAGES"
        docker cp "$E2E_IMAGES/plugin.tar" "$NODE:$E2E_IMAGES"
        on_node ctr -n k8s.io images tag "$IMAGE:$VERSION" "$IMAGE:next"
    done >/dev/null
}

clean_up() {
    status=$?
    if [[ $status -ne 0 ]]; then
        kubectl get pods -A -o wide || true
        kubectl get events -A --sort-by=.metadata.creationTimestamp | tail -n 20 || true
        plugin logs daemonset/aufs-csi-node --all-containers --tail 30 || true
    fi >&2 2>/dev/null
    if [[ ${KIND_KEEP:-} != yes ]]; then
        "$kind" delete cluster --name "$CLUSTER"
        docker rm --force "$ADDRESS"
        docker rmi "$ADDRESS"
    fi >/dev/null 2>&1
    rm -rf "$scratch"
    exit "$status"
}
