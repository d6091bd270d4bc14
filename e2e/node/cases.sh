# shellcheck shell=bash disable=SC2154
# What is tried on a real node, whatever its union filesystem. node.sh sources
# this, and ../kind/run.sh for what cases are written in. Each case is a function
# case_…, runs in a shell of its own in which any failing command ends it, and is
# judged together with what it leaves behind.

readonly CASES=(
    read_write read_only two_pods two_volumes container_restart deletion fs_group
    sub_path_mount statistics wrong_attribute kubelet_restart driver_restart
    driver_away force_delete killed_while_staging killed_while_publishing
    killed_while_unpublishing failed_event private_image slow_pull
)
# When the plugin is killed in one short operation: as soon as its record, or the
# mount, shows how far it is, or so many milliseconds after it began.
: "${E2E_KILLS:=record mount 0 3 12}"

# ---- what cases are written in -------------------------------------------

# wait_for SECONDS WHAT COMMAND…: until the command succeeds, tried each PAUSE.
wait_for() {
    local end=$((SECONDS + $1 * E2E_SLOW)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS >= end)); then
            echo "timed out: $what" >&2
            return 1
        fi
        sleep "${PAUSE:-0.2}"
    done
}

# images_of IMAGE[+IMAGE…]: as attributes; the first is on top.
images_of() {
    local image images='' key=image
    [[ $1 != *+* ]] || key=images
    for image in ${1//+/ }; do
        [[ $image = */* ]] || image=oci:$E2E_IMAGES/volumes/$image:1
        images+=${images:+,}$image
    done
    echo "$key: '$images'"
}

# create_pod NAME VOLUME… [-- SPEC]: a VOLUME is NAME=IMAGE[,readOnly][,secret=NAME]
# [,KEY=VALUE…] and is mounted at /NAME; SPEC is more lines of the pod's spec. An
# IMAGE without a slash is one of volumes/, and
# IMAGE+IMAGE are several.
create_pod() {
    local pod=$1 volume name image options option read_only secret attributes volumes='' mounts=''
    shift
    while [[ $# -gt 0 && $1 != -- ]]; do
        volume=$1 name=${1%%=*} read_only=false secret=''
        shift
        IFS=, read -r image options <<<"${volume#*=}"
        attributes="$(images_of "$image")"
        IFS=, read -ra options <<<"$options"
        for option in "${options[@]}"; do
            case $option in
            readOnly) read_only=true ;;
            secret=*) secret=", nodePublishSecretRef: {name: ${option#*=}}" ;;
            *) attributes+=", ${option%%=*}: '${option#*=}'" ;;
            esac
        done
        volumes+="${volumes:+, }{name: $name, csi: {driver: $DRIVER_NAME, readOnly: $read_only$secret, volumeAttributes: {$attributes}}}"
        mounts+="${mounts:+, }{name: $name, mountPath: /$name}"
    done
    shift || true
    kubectl create -f - <<POD
apiVersion: v1
kind: Pod
metadata: {name: $pod}
spec:
  nodeName: $NODE
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: 1
  volumes: [$volumes]
  containers:
  - name: c
    image: localhost/container:1
    imagePullPolicy: Never
    command: [sh, -c, 'trap exit TERM; while :; do sleep 0.2; done']
    volumeMounts: ${MOUNTS:-[$mounts]}
  ${1-}
POD
}

ready() {
    local pod
    for pod in "$@"; do
        kubectl wait --for=condition=Ready "pod/$pod" --timeout="$((90 * E2E_SLOW))s"
    done
}

# inside POD SCRIPT: what a shell in its container says.
inside() { kubectl exec "$1" -- sh -c "$2" 2>&1; }

delete() { kubectl delete pod "$@" --timeout="$((90 * E2E_SLOW))s"; }

# expect WHAT ACTUAL WANTED
expect() {
    [[ $2 = "$3" ]] || {
        printf '%s\n  is     %q\n  wanted %q\n' "$1" "$2" "$3" >&2
        return 1
    }
}

# expect_in WHAT TEXT PART
expect_in() {
    [[ $2 = *"$3"* ]] || {
        printf '%s\n  is           %q\n  and lacks    %q\n' "$1" "$2" "$3" >&2
        return 1
    }
}

uid() { kubectl get pod "$1" -o 'jsonpath={.metadata.uid}'; }
restarts() { kubectl get pod "$1" -o 'jsonpath={.status.containerStatuses[0].restartCount}'; }
is_gone() { [[ -z $(kubectl get pods -o name) ]]; }

# target POD VOLUME: kubelet's path of it.
target() { echo "$KUBELET/pods/$(uid "$1")/volumes/kubernetes.io~csi/$2/mount"; }

# mounts_at PATH: "<mount id> <filesystem>" of each mount at a path.
mounts_at() {
    mount_table | awk -v path="$1" '$5 == path { for (i = 7; $i != "-"; i++); print $1, $(i + 1) }'
}
# The node's.
mount_table() { cat /proc/self/mountinfo; }

# is_union POD VOLUME: it is one mount, of the right filesystem.
is_union() {
    local mounts
    mounts=$(mounts_at "$(target "$1" "$2")")
    expect "mounts of $1/$2" "${mounts#* }" "$E2E_UNION"
    echo "${mounts#* }" >>"$E2E_LOGS/unions"
}

# entries DIRECTORY: how many it has; none where there is no directory.
entries() { find "$1" -mindepth 1 -maxdepth 1 2>/dev/null | wc -l; }

# published: how many publish calls the plugin has answered with OK.
published() {
    busybox wget -q -O - "$PROBES/metrics" | awk '
        /^csi_plugin_operations_seconds_count/ && /NodePublishVolume"/ && /"OK"/ { sum += $NF }
        END { print sum + 0 }'
}

# What is there of volumes although there are no pods. Prints it. A pod in which
# the plugin runs has to be there.
leftovers() {
    local own
    own=$(plugin_pods)
    all_leftovers | if [[ -n $own ]]; then grep -vE "/pods/(${own// /|})(/|$)" || true; else cat; fi
}
plugin_pods() { :; }
all_leftovers() {
    find "$STORE/volumes" "$STORE/ingest" -mindepth 1 -maxdepth 1 2>/dev/null
    find "$RUN/xino" -mindepth 1 2>/dev/null
    find "$KUBELET/pods" -mindepth 1 -maxdepth 1
    awk -v pods="$KUBELET/pods/" -v store="$STORE/" -v run="$RUN/" '
        index($5, pods) == 1 || index($5, store) == 1 || index($5, run) == 1 { print "mount", $5 }
    ' /proc/self/mountinfo
}
nothing_left() { [[ -z $(leftovers) ]]; }

# ---- the cases -----------------------------------------------------------

# What every pod must see of the image `app`.
readonly SEE='cat /data/etc/version /data/etc/kept /data/srv/app/current; ls /data/etc /data/srv/old'
readonly SEEN=$'app\nkept\nHello from the image.\n/data/etc:\nkept\nversion\n\n/data/srv/old:\nnew'

case_read_write() {
    create_pod rw data=app
    ready rw
    is_union rw data
    expect "the image" "$(inside rw "$SEE")" "$SEEN"
    expect "changes" "$(inside rw '
        echo mine >/data/etc/version && echo new >/data/etc/added && rm /data/etc/kept &&
        mkdir /data/srv/dir && mv /data/etc/added /data/srv/dir/moved &&
        cat /data/etc/version /data/srv/dir/moved && ls /data/etc')" $'mine\nnew\nversion'
    expect "mount options" "$(inside rw 'grep " /data " /proc/mounts' |
        grep -oE '\b(rw|nosuid|nodev)\b' | sort | tr '\n' ' ')" 'nodev nosuid rw '
}

case_read_only() {
    create_pod ro data=app,readOnly one=other,readOnly
    ready ro
    # One layer needs no union: it may be a bind mount of the layer.
    is_union ro data
    expect "the image" "$(inside ro "$SEE")" "$SEEN"
    expect_in "a write" "$(inside ro 'touch /data/file; touch /one/file')" \
        'touch: /one/file: Read-only file system'
    expect "the other image" "$(inside ro 'cat /one/etc/version')" other
    expect "writable layers" "$(find "$STORE/volumes" -name upper | wc -l)" 0
}

case_two_pods() {
    local before
    create_pod first data=app
    ready first
    before=$(ls "$STORE/diff")
    create_pod second data=app
    ready second
    is_union first data
    is_union second data
    expect "layers on disk" "$(ls "$STORE/diff")" "$before"
    inside first 'echo first >/data/etc/version; rm /data/etc/kept; echo x >/data/mine'
    expect "the other pod" "$(inside second "$SEE; ls /data")" "$SEEN"$'\netc\nsrv\nusr'
    inside second 'echo second >/data/etc/version'
    expect "this pod" "$(inside first 'cat /data/etc/version')" first
    delete first
    expect "after one is gone" "$(inside second 'cat /data/etc/version /data/etc/kept')" $'second\nkept'
}

case_two_volumes() {
    create_pod both data=app more=other same=app
    ready both
    is_union both data
    is_union both more
    is_union both same
    inside both 'echo changed >/data/etc/version'
    expect "each volume" "$(inside both 'cat /data/etc/version /more/etc/version /same/etc/version')" \
        $'changed\nother\napp'
}

case_container_restart() {
    local mount
    create_pod again data=app
    ready again
    mount=$(mounts_at "$(target again data)")
    inside again 'echo kept >/data/note; rm /data/etc/kept; kill 1' || true
    wait_for 60 "the container's restart" has_restarted again
    ready again
    expect "changes" "$(inside again 'cat /data/note; ls /data/etc')" $'kept\nversion'
    expect "the mount" "$(mounts_at "$(target again data)")" "$mount"
}
has_restarted() { [[ $(restarts "$1") -ge 1 ]]; }

case_deletion() {
    local directory
    create_pod gone data=app
    ready gone
    directory=$KUBELET/pods/$(uid gone)
    inside gone 'echo x >/data/mine'
    expect "volumes in the store" "$(find "$STORE/volumes" -mindepth 1 -maxdepth 1 -type d | wc -l)" 1
    delete gone
    wait_for 60 "nothing left" nothing_left
    [[ ! -e $directory ]]
    # The next one of this name begins with the image.
    create_pod gone data=app
    ready gone
    expect "a new pod" "$(inside gone "$SEE; ls /data")" "$SEEN"$'\netc\nsrv\nusr'
}

case_fs_group() {
    local upper
    create_pod group data=app -- 'securityContext: {runAsUser: 1234, runAsGroup: 1234, fsGroup: 4321}'
    ready group
    is_union group data
    expect "the root" "$(inside group 'id -u; echo mine >/data/file && cat /data/file; stat -c %u:%g:%a /data; stat -c %u:%g /data/file')" \
        $'1234\nmine\n0:4321:2775\n1234:4321'
    # Below the root the image's own permissions hold.
    expect_in "a write below" "$(inside group 'echo x >/data/etc/version')" 'Permission denied'
    upper=$(find "$STORE/volumes" -name upper)
    # AUFS keeps names of its own there.
    expect "what was copied up" "$(cd "$upper" && find . -mindepth 1 ! -path './.wh..wh.*')" ./file
}

case_sub_path_mount() {
    MOUNTS='[{name: data, mountPath: /app, subPath: srv/app}, {name: data, mountPath: /etc/version, subPath: etc/version, readOnly: true}]' \
        create_pod sub data=app
    ready sub
    expect "directories of it" "$(inside sub 'cat /app/current /etc/version; echo x >/app/new; ls /app')" \
        $'Hello from the image.\napp\ncurrent\ngreeting\nnew'
}

case_statistics() {
    create_pod counted data=app
    ready counted
    inside counted 'head -c 3000000 /dev/zero >/data/zeros'
    wait_for 90 "the volume in kubelet's statistics" has_statistics
}
has_statistics() {
    local volume
    # {"…","usedBytes":N,"…","name":"data"}, and no other volume is so called.
    volume=$(kubectl get --raw "/api/v1/nodes/$NODE/proxy/stats/summary" | tr -d ' \n' |
        grep -oE '"usedBytes":[0-9]+,[^{}]*"name":"data"') || return 1
    volume=${volume#*:}
    # What the pod wrote, and not the image.
    ((${volume%%,*} >= 3000000 && ${volume%%,*} < 4000000))
}

case_wrong_attribute() {
    create_pod wrong data=app,unoin=aufs
    wait_for 60 "an event" has_event wrong
    local message
    message=$(events wrong)
    expect_in "the event" "$message" 'rpc error: code = InvalidArgument desc = '
    expect_in "the event" "$message" '"unoin"'
    expect_in "the event" "$message" 'did you mean union?'
    # Verbatim: the plugin's log has the same words.
    message=${message#*desc = }
    grep -qF -- "${message%%$'\n'*}" <(tr -d '\\' <"$E2E_LOGS/driver.log")
    # kubelet will not ask for this volume's removal.
    expect "volumes in the store" "$(entries "$STORE/volumes")" 0
}
events() { kubectl get events --field-selector "involvedObject.name=$1,reason=FailedMount" -o 'jsonpath={range .items[*]}{.message}{"\n"}{end}'; }
has_event() { [[ $(events "$1") = *desc* ]]; }

case_kubelet_restart() {
    local mounts before
    create_pod one data=app more=other
    create_pod two data=app,readOnly
    ready one two
    inside one 'echo mine >/data/mine'
    mounts=$(mounts_at "$(target one data)"; mounts_at "$(target one more)"; mounts_at "$(target two data)")
    stop kubelet KILL
    before=$(published)
    start_kubelet
    wait_for 90 "the plugin's registration" is_registered
    wait_for 90 "kubelet asking for all volumes again" has_published "$((before + 3))"
    expect "mounts" "$(mounts_at "$(target one data)"; mounts_at "$(target one more)"; mounts_at "$(target two data)")" "$mounts"
    ready one two
    expect "volumes" "$(inside one 'cat /data/mine; echo x >/data/etc/version; cat /data/etc/version /more/etc/version')" \
        $'mine\nx\nother'
    expect "the other pod" "$(inside two "$SEE")" "$SEEN"
    expect "restarts of containers" "$(restarts one) $(restarts two)" '0 0'
    expect "failed mounts" "$(events one; events two)" ''
}
has_published() { [[ $(published) -ge $1 ]]; }

case_driver_restart() {
    local mount
    create_pod stays data=app
    ready stays
    inside stays 'echo mine >/data/mine'
    mount=$(mounts_at "$(target stays data)")
    stop driver TERM
    expect "sockets after its end" "$(find "$KUBELET/plugins_registry" "$KUBELET/plugins" -type s)" ''
    wait_for 30 "the end of the registration" is_unregistered
    expect "without the plugin" "$(inside stays 'cat /data/mine; echo x >/data/x; cat /data/x')" $'mine\nx'
    start_driver
    expect "the mount" "$(mounts_at "$(target stays data)")" "$mount"
    expect "changes" "$(inside stays 'cat /data/mine /data/x')" $'mine\nx'
    stop driver KILL
    start_driver
    expect "the mount" "$(mounts_at "$(target stays data)")" "$mount"
    expect "changes" "$(inside stays 'cat /data/mine /data/x')" $'mine\nx'
}
is_unregistered() { ! is_registered; }

case_driver_away() {
    create_pod waits data=app
    ready waits
    inside waits 'echo mine >/data/mine'
    stop driver TERM
    kubectl delete pod waits --wait=false
    sleep "$((5 * E2E_SLOW))"
    # kubelet cannot take the volume down, and must not pretend to.
    expect "the pod" "$(kubectl get pods -o name)" pod/waits
    expect "mounts" "$(mounts_at "$(target waits data)" | wc -l)" 1
    start_driver
    wait_for 180 "the pod's end" is_gone
}

case_force_delete() {
    local directory
    create_pod forced data=app
    ready forced
    directory=$KUBELET/pods/$(uid forced)
    inside forced 'echo mine >/data/mine'
    delete forced --grace-period=0 --force
    wait_for 90 "nothing left" nothing_left
    [[ ! -e $directory ]]
}

# The plugin dies while it unpacks an image.
case_killed_while_staging() {
    local number
    for number in 1 2 3; do
        create_pod "big-$number" "data=big-$number"
        PAUSE=0.01 wait_for 60 "the staging to begin" is_staging
        stop driver KILL
        is_staging # it was in the middle of it
        start_driver
        ready "big-$number"
        is_union "big-$number" data
        expect "the image" "$(inside "big-$number" 'cat /data/etc/version; find /data/many -type f | wc -l')" \
            "big $number"$'\n'"$(<"$E2E_IMAGES/big-files")"
        delete "big-$number"
        wait_for 90 "nothing left" nothing_left
    done
}
is_staging() { compgen -G "$STORE/ingest/*/*"; }

# The plugin dies within the few milliseconds of a mount. It is stopped before
# it is asked, so that the moment of the question is known.
case_killed_while_publishing() {
    local moment pod number=0 hits=0
    for moment in $E2E_KILLS; do
        pod=publish-$((++number))
        signal driver STOP
        create_pod "$pod" data=app
        PAUSE=0.01 wait_for 60 "kubelet's call" is_called
        await "$moment" is_mounting is_half_mounted has_been_mounted
        stop driver KILL
        ! has_state intended || hits=$((hits + 1))
        start_driver
        ready "$pod"
        is_union "$pod" data
        expect "the image" "$(inside "$pod" "$SEE")" "$SEEN"
        delete "$pod"
        wait_for 90 "nothing left" nothing_left
    done
    echo "killed in the middle: $hits of $number"
    [[ $hits -gt 0 ]]
}

# The same while it takes a volume down. There is something to remove.
case_killed_while_unpublishing() {
    local moment pod number=0 hits=0
    for moment in $E2E_KILLS; do
        pod=unpublish-$((++number))
        create_pod "$pod" data=app
        ready "$pod"
        inside "$pod" 'mkdir /data/many; for i in $(seq 1000); do echo $i >/data/many/$i; done'
        signal driver STOP
        kubectl delete pod "$pod" --wait=false
        wait_for 60 "the containers' end" no_containers
        wait_for 60 "kubelet's call" is_called
        # It may have been one for statistics.
        sleep 1
        await "$moment" is_leaving is_half_gone has_been_removed
        stop driver KILL
        ! has_state leaving || hits=$((hits + 1))
        start_driver
        wait_for 180 "the pod's end" is_gone
        wait_for 90 "nothing left" nothing_left
    done
    echo "killed in the middle: $hits of $number"
    [[ $hits -gt 0 ]]
}

# await MOMENT RECORD MOUNT OVER: see E2E_KILLS. The plugin is let go for an
# instant at a time until the command RECORD, or MOUNT, sees what it looks for,
# or OVER that it was missed. None of them may start a program: that takes longer
# than the whole operation.
await() {
    local process look=$2 end=$((SECONDS + 60 * E2E_SLOW))
    process=$(</run/driver.pid)
    case $1 in
    record) ;;
    mount) look=$3 ;;
    *)
        kill -CONT "$process"
        sleep "$(milliseconds "$1")"
        return
        ;;
    esac
    until "$look" || "$4" || ((SECONDS > end)); do
        kill -CONT "$process"
        "$look" || true
        kill -STOP "$process"
    done
}
milliseconds() { printf '%d.%03d' $(($1 * E2E_SLOW / 1000)) $(($1 * E2E_SLOW % 1000)); }
is_mounting() { has_state intended; }
is_half_mounted() { has_mount && has_state intended; }
has_been_mounted() { has_state mounted; }
is_leaving() { has_state leaving; }
is_half_gone() { ! has_mount && has_state leaving; }
has_been_removed() { ! compgen -G "$STORE/volumes/*/record.json" >/dev/null; }
has_state() {
    local file content
    for file in "$STORE"/volumes/*/record.json; do
        mapfile -d '' -t content <"$file" && [[ ${content[*]} = *"\"$1\""* ]] && return
    done 2>/dev/null
    return 1
}
has_mount() {
    local mounts
    mapfile -t mounts </proc/self/mountinfo
    [[ ${mounts[*]} = *" $KUBELET/pods/"* ]]
}
# Beside the socket that listens there is one that waits to be accepted.
is_called() { [[ $(grep -cF "/plugins/$DRIVER_NAME/csi.sock" /proc/net/unix) -gt 1 ]]; }
no_containers() { [[ -z $(ctr -a "$CONTAINERD" -n k8s.io tasks list -q) ]]; }

# ---- running them --------------------------------------------------------

plugin_log() { tail -n "${2:-25}" "$E2E_LOGS/driver.log"; }

# What helps to see why a case failed.
tell() {
    echo "--- pods and events"
    kubectl get pods -o wide || true
    kubectl get events --sort-by=.metadata.creationTimestamp \
        -o 'custom-columns=POD:.involvedObject.name,REASON:.reason,MESSAGE:.message' 2>&1 | uniq | tail -n 15
    echo "--- what is there"
    leftovers
    echo "--- the plugin's log"
    plugin_log --tail 25 2>&1
    echo "--- kubelet's log"
    grep -E '^[EW]' "$E2E_LOGS/kubelet.log" | grep -E 'csi|[Vv]olume|[Mm]ount|pod=' | tail -n 15
    echo "---"
}

# After each case: all pods go the ordinary way, and nothing may be left.
clear_away() {
    is_running kubelet || start_kubelet
    is_running driver || start_driver
    kubectl delete pods --all --timeout="$((120 * E2E_SLOW))s"
    wait_for 90 "nothing left" nothing_left
}

# After a failed case, by any means, so that the next one says something.
force_away() {
    set +e
    local path
    is_running kubelet || start_kubelet
    # It may be one that was stopped.
    stop driver KILL
    start_driver
    kubectl delete pods --all --timeout=20s --grace-period=0 --force
    wait_for 30 "nothing left" nothing_left && return
    stop driver KILL
    leftovers | sed -n 's/^mount //p' | sort -r | while read -r path; do umount "$path"; done
    find "$STORE/volumes" "$STORE/ingest" -mindepth 1 -delete
    start_driver
}

# run_cases [CASE…]: all, or those named; the status is the verdict.
run_cases() {
    local name began status passed=0 failed=() output
    [[ $# -gt 0 ]] || set -- "${CASES[@]}" "${VOLUME_CASES[@]}"
    start_driver
    say "the plugin is registered"
    # Where no case looks at one, there is none.
    : >>"$E2E_LOGS/unions"
    for name in "$@"; do
        declare -F "case_$name" >/dev/null || {
            echo "there is no case $name; there are: ${CASES[*]} ${VOLUME_CASES[*]}" >&2
            return 64
        }
    done
    for name in "$@"; do
        began=$SECONDS output=$E2E_LOGS/case-$name.log
        # Not as a condition: there bash would go on after a failing command.
        set +e
        (
            set -eE
            trap 'echo "line $LINENO: $BASH_COMMAND"' ERR
            "case_$name"
            clear_away
        ) >"$output" 2>&1
        status=$?
        set -e
        if [[ $status -eq 0 ]]; then
            echo "PASS $name ($((SECONDS - began)) s)"
            passed=$((passed + 1))
        else
            echo "FAIL $name ($((SECONDS - began)) s)"
            failed+=("$name")
            sed 's/^/  /' "$output"
            tell 2>&1 | cut -c 1-500 | sed 's/^/  /' || true
            (force_away) >>"$output" 2>&1
        fi
    done
    sort "$E2E_LOGS/unions" 2>/dev/null | uniq -c | while read -r count union; do
        echo "unions looked at: $count, all $union"
    done
    [[ ${#failed[@]} -eq 0 ]] || echo "failed: ${failed[*]}"
    echo "$passed passed, ${#failed[@]} failed"
    [[ ${#failed[@]} -eq 0 ]]
}
