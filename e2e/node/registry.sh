# shellcheck shell=bash disable=SC2154
# Registries on the node, and what pods get from them and are told of it. node.sh
# and ../kind/run.sh source this; the functions that cases are written in are in
# cases.sh.
#
# Both serve the same images, which images.sh made: one over TLS with a
# certificate of our own authority and a password, one on loopback without either.

readonly PRIVATE=$ADDRESS:5443 PLAIN=127.0.0.1:5000 SLOW=127.0.0.1:5001
readonly PULLER=puller PASSWORD=pulls-what-it-may
# Of that password, with bcrypt, which is all that the registry takes.
readonly PASSWORD_HASH='$2b$04$/5P5cKp/6vBlZv0ovMIl6uAL4fXxKXI.MdPccKEH4oetWthcBt7w2'
# How long the slow pull takes: kubelet gives up a call after two minutes.
readonly SLOW_SECONDS=150

# Before the plugin starts.
prepare_registries() {
    local directory=$E2E_DISK/registry
    mkdir -p "$directory" "$CERTS/$PRIVATE"
    (
        cd "$directory" || exit
        for name in ca server; do
            openssl ecparam -name prime256v1 -genkey -noout -out "$name.key"
        done
        openssl req -x509 -new -key ca.key -subj '/CN=e2e' -days 2 -out ca.crt
        openssl req -new -key server.key -subj '/CN=registry' -out server.csr
        # It may be a name.
        [[ $ADDRESS = *[!0-9.]* ]] && type=DNS || type=IP
        printf 'subjectAltName=%s:%s\n' "$type" "$ADDRESS" >server.ext
        openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -set_serial 1 -days 2 \
            -extfile server.ext -out server.crt
    ) 2>>"$E2E_LOGS/registry.log"
    echo "$PULLER:$PASSWORD_HASH" >"$directory/htpasswd"
    cp "$directory/ca.crt" "$CERTS/$PRIVATE/ca.crt"
    cat >"$CERTS/$PRIVATE/hosts.toml" <<TOML
server = "https://$PRIVATE"
ca = "ca.crt"
TOML
}

# start_registry NAME ADDRESS [MORE]: MORE is for the section http and after it.
start_registry() {
    ! is_running "$1" || return 0
    cat >"$E2E_DISK/$1.yaml" <<YAML
version: 0.1
log: {level: info}
storage:
  filesystem: {rootdirectory: $E2E_IMAGES/registry}
  maintenance: {uploadpurging: {enabled: false}, readonly: {enabled: true}}
http:
  addr: $2
${3-}
YAML
    start "$1" env OTEL_TRACES_EXPORTER=none docker-registry serve "$E2E_DISK/$1.yaml"
    wait_for 30 "the registry $1" is_open "$2"
}
is_open() { (: <"/dev/tcp/${1%:*}/${1#*:}"); }

start_private_registry() {
    local directory=$E2E_DISK/registry
    start_registry private-registry "$PRIVATE" "  tls: {certificate: $directory/server.crt, key: $directory/server.key}
auth: {htpasswd: {realm: e2e, path: $directory/htpasswd}}"
}

# create_secret NAME PASSWORD
create_secret() {
    kubectl create secret docker-registry "$1" --docker-server="$PRIVATE" \
        --docker-username="$PULLER" --docker-password="$2"
}

# told POD REASON: the messages of the plugin's events on a pod, one a line.
told() {
    kubectl get events --field-selector "involvedObject.name=$1,reason=$2,source=aufs-csi" \
        -o 'jsonpath={range .items[*]}{.message}{"\n"}{end}'
}
has_told() { [[ -n $(told "$1" "$2") ]]; }

# Kept from all but the registry: nothing of it may be where anybody looks.
nothing_has() {
    local found
    found=$(grep -rlF -- "$1" "$E2E_LOGS" "$STORE" "$RUN" 2>/dev/null || true)
    # Who tells of a failure of this case may quote it.
    expect "files with a secret" "$(grep -v '/case-' <<<"$found" || true)" ''
    expect "events with a secret" "$(kubectl get events -A -o yaml | grep -cF -- "$1" || true)" 0
    expect "metrics with a secret" "$(busybox wget -q -O - "$PROBES/metrics" | grep -cF -- "$1" || true)" 0
}

# ---- the cases -----------------------------------------------------------

case_failed_event() {
    create_pod told data=app,unoin=aufs
    # The same again is counted up.
    wait_for 60 "an event that came again" is_repeated told
    expect "events" "$(told told Failed | wc -l)" 1
    expect_in "the event" "$(told told Failed)" 'did you mean union?'
    expect "whose it is" "$(kubectl get events --field-selector involvedObject.name=told,reason=Failed \
        -o 'jsonpath={.items[0].type} {.items[0].reportingComponent} {.items[0].reportingInstance} {.items[0].source.host} {.items[0].involvedObject.uid}')" \
        "Warning $DRIVER_NAME $NODE $NODE $(uid told)"
    expect_in "kubectl describe" "$(kubectl describe pod told)" 'aufs-csi'
}
is_repeated() {
    [[ $(kubectl get events --field-selector "involvedObject.name=$1,reason=Failed,source=aufs-csi" \
        -o 'jsonpath={.items[*].count}') -ge 2 ]]
}

case_private_image() {
    start_private_registry
    create_secret right "$PASSWORD"
    create_secret wrong "not-$PASSWORD"
    local image=$PRIVATE/private/data:1
    create_pod allowed "data=$image,secret=right"
    ready allowed
    is_union allowed data
    expect "the image" "$(inside allowed 'cat /data/etc/version; echo mine >/data/etc/version; cat /data/etc/version')" \
        $'private\nmine'
    expect "pulling" "$(told allowed Pulling)" "Pulling image \"$image\""
    expect_in "pulled" "$(told allowed Pulled)" "Pulled image \"$image\" (sha256:"
    # It is on the node now, which is nothing to whoever has no credentials.
    create_pod refused "data=$image"
    create_pod mistaken "data=$image,secret=wrong"
    for pod in refused mistaken; do
        wait_for 60 "an event of $pod" has_told "$pod" Failed
        wait_for 60 "an event of kubelet for $pod" has_event "$pod"
        expect_in "the event" "$(told "$pod" Failed)" credentials
        expect_in "the event" "$(told "$pod" Failed)" nodePublishSecretRef
        expect_in "kubelet's event" "$(events "$pod")" 'code = Unauthenticated'
        expect "what is pulled for $pod" "$(told "$pod" Pulled)" ''
    done
    expect "volumes in the store" "$(find "$STORE/volumes" -mindepth 1 -maxdepth 1 -type d | wc -l)" 1
    # Whoever has them gets it without another pull.
    create_pod again "data=$image,secret=right"
    ready again
    expect_in "pulled" "$(told again Pulled)" "Image \"$image\" is on this node already (sha256:"
    expect "the image" "$(inside again 'cat /data/etc/version')" private
    nothing_has "$PASSWORD"
    nothing_has "$(printf %s "$PULLER:$PASSWORD" | base64)"
    delete allowed refused mistaken again
    kubectl delete secret right wrong
}

case_slow_pull() {
    local size rate began count passed=$E2E_DISK/passed image=$SLOW/public/slow:1
    size=$(<"$E2E_IMAGES/slow-bytes") rate=$((size / SLOW_SECONDS))
    start_registry plain-registry "$PLAIN"
    start throttle python3 "$here/throttle.py" "${SLOW#*:}" "${PLAIN#*:}" "$rate" "$passed"
    wait_for 30 "the slow line" is_open "$SLOW"
    began=$SECONDS
    create_pod slow "data=$image"
    wait_for 150 "kubelet's first call to end" has_event slow
    expect_in "the event" "$(events slow)" 'code = Aborted'
    expect_in "the event" "$(events slow)" 'work goes on'
    kubectl wait --for=condition=Ready pod/slow --timeout="$((2 * SLOW_SECONDS * E2E_SLOW))s"
    echo "ready after $((SECONDS - began)) s"
    ((SECONDS - began > 120))
    count=$(<"$passed")
    echo "$count bytes for an image of $size"
    ((count >= size && count * 10 <= size * 12))
    is_union slow data
    expect "the image" "$(inside slow 'cat /data/etc/version; ls /data')" $'slow\netc\nrandom-1\nrandom-2\nrandom-3'
    # One operation, however many calls it took.
    expect "pulling" "$(told slow Pulling)" "Pulling image \"$image\""
    expect "pulled" "$(told slow Pulled | wc -l)" 1
    expect "failures" "$(told slow Failed)" ''
    delete slow
    stop throttle
}
