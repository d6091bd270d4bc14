# shellcheck shell=bash disable=SC2154
# What a volume can be asked for, as pods ask for it: several images, a directory
# of one, limits, read-only volumes. cases.sh is sourced before this, and has what
# it is written in.

readonly VOLUME_CASES=(
    several_images several_read_only sub_path sub_path_missing size_limit memory
    limit_statistics shared_read_only fs_group_of_sub_path changes_by_pod collection
)

# The image `over` deletes files of its own lower layer only, whatever the image
# below it has under the same names.
case_several_images() {
    local layers
    create_pod single data=app
    ready single
    layers=$(entries "$STORE/diff")
    create_pod several data=over+app
    ready several
    is_union several data
    expect "the images" "$(inside several 'cat /data/etc/version /data/etc/kept /data/srv/app/current /data/opt/over; ls /data/srv/old /data/opt')" \
        $'over\nkept\nHello from the image.\nover\n/data/opt:\nover\n\n/data/srv/old:\nmine\nnew'
    inside several 'rm /data/etc/kept /data/opt/over; echo x >/data/srv/old/new'
    expect "after changes" "$(inside several 'ls /data/etc /data/opt; cat /data/srv/old/new')" \
        $'/data/etc:\nversion\n\n/data/opt:\nx'
    expect "the other pod" "$(inside single "$SEE")" "$SEEN"
    # The layers of `app` are there once, whoever shows them.
    expect "new directories, at most" "$(($(entries "$STORE/diff") - layers <= 3))" 1
}

case_several_read_only() {
    create_pod several data=other+app,readOnly
    ready several
    is_union several data
    expect "the images" "$(inside several 'cat /data/etc/version /data/etc/kept')" $'other\nkept'
    expect_in "a write" "$(inside several 'touch /data/file')" 'Read-only file system'
}

case_sub_path() {
    create_pod part data=app,subPath=srv/app same=app,subPath=srv/app,readOnly one=other,subPath=etc,readOnly
    ready part
    expect "the directory" "$(inside part 'cat /data/current /same/current /one/version; ls /data')" \
        $'Hello from the image.\nHello from the image.\nother\ncurrent\ngreeting'
    expect "a write" "$(inside part 'echo mine >/data/greeting; cat /data/greeting /same/greeting')" \
        $'mine\nHello from the image.'
    expect_in "a write to the other" "$(inside part 'touch /same/file')" 'Read-only file system'
    expect "a way out" "$(inside part 'ls /data/../same')" $'current\ngreeting'
}

case_sub_path_missing() {
    create_pod missing data=app,subPath=srv/none
    wait_for 60 "an event" has_event missing
    expect_in "the event" "$(events missing)" srv/none
    delete missing
    create_pod file data=app,subPath=etc/version
    wait_for 60 "an event" has_event file
    expect_in "the event" "$(events file)" etc/version
    delete file
    expect "volumes in the store" "$(entries "$STORE/volumes")" 0
}

# fills POD FILE: writes until nothing more fits, and says so; the bytes that went.
fills() {
    inside "$1" "dd if=/dev/zero of=$2 bs=64k 2>/tmp/said; tail -n 3 /tmp/said; stat -c %s $2"
}

# At most the limit can be written, by root in a container as by anybody, whether
# it is new or of the image; others do not notice.
limited() {
    local pod=$1 said bytes
    said=$(fills "$pod" /data/zeros)
    expect_in "$pod: the limit" "$said" 'No space left on device'
    bytes=$(tail -n 1 <<<"$said")
    ((bytes <= 16777216 && bytes > 12000000)) || {
        echo "$pod: $bytes bytes were written below a limit of 16 Mi" >&2
        return 1
    }
    # A file of the image is copied up before its first byte is changed.
    expect_in "$pod: a copy-up" "$(inside "$pod" 'echo x >>/data/usr/share/data' || true)" 'No space left on device'
    expect "$pod: the image" "$(inside "$pod" 'head -c 5 /data/usr/share/data; cat /data/etc/kept')" xxxxxkept
    inside "$pod" 'rm /data/zeros; echo x >>/data/usr/share/data; echo y >/data/new'
    expect "$pod: after room was made" "$(inside "$pod" 'tail -c 2 /data/usr/share/data; cat /data/new')" $'x\ny'
}

case_size_limit() {
    create_pod limited data=app,sizeLimit=16Mi
    create_pod neighbour data=app
    create_pod user data=app,sizeLimit=16Mi -- 'securityContext: {runAsUser: 1234, fsGroup: 1234}'
    ready limited neighbour user
    is_union limited data
    limited limited
    expect_in "a user's limit" "$(inside user 'dd if=/dev/zero of=/data/zeros bs=64k')" 'No space left on device'
    expect "the neighbour" "$(inside neighbour 'head -c 30000000 /dev/zero >/data/zeros && stat -c %s /data/zeros')" 30000000
    # The limit holds whoever serves it.
    stop driver KILL
    start_driver
    expect_in "after a restart" "$(fills limited /data/zeros)" 'No space left on device'
}

case_memory() {
    create_pod memory data=app,medium=Memory,sizeLimit=16Mi
    ready memory
    is_union memory data
    limited memory
    expect "writable layers on the disk" "$(find "$STORE"/volumes/*/ -xdev -size +1000k | wc -l)" 0
}

case_limit_statistics() {
    create_pod limited data=app,sizeLimit=16Mi
    ready limited
    inside limited 'head -c 3000000 /dev/zero >/data/zeros'
    wait_for 90 "the limit in kubelet's statistics" has_limit
}
# {"…","capacityBytes":N,"usedBytes":N,"…","name":"data"}, and no other volume is so called.
has_limit() {
    local volume capacity used
    volume=$(kubectl get --raw "/api/v1/nodes/$NODE/proxy/stats/summary" | tr -d ' \n' |
        grep -oE '"capacityBytes":[0-9]+,"usedBytes":[0-9]+,[^{}]*"name":"data"') || return 1
    capacity=${volume#*:} used=${volume#*usedBytes\":}
    ((${capacity%%,*} <= 17000000 && ${capacity%%,*} > 12000000)) &&
        ((${used%%,*} >= 2500000 && ${used%%,*} < 5000000))
}

case_shared_read_only() {
    local pod pods=(first second third)
    for pod in "${pods[@]}"; do create_pod "$pod" data=app,readOnly; done
    ready "${pods[@]}"
    for pod in "${pods[@]}"; do
        is_union "$pod" data
        expect "the image" "$(inside "$pod" "$SEE")" "$SEEN"
    done
    # One union for all of them.
    expect "unions" "$(for pod in "${pods[@]}"; do inside "$pod" 'stat -c %d /data'; done | sort -u | wc -l)" 1
    delete first
    expect "after one is gone" "$(inside second "$SEE")" "$SEEN"
    stop driver KILL
    start_driver
    delete second
    expect "after a restart" "$(inside third "$SEE")" "$SEEN"
    create_pod fourth data=app,readOnly
    ready fourth
    delete third
    expect "the last one" "$(inside fourth "$SEE")" "$SEEN"
}

case_fs_group_of_sub_path() {
    local upper
    create_pod group data=app,subPath=srv/app -- 'securityContext: {runAsUser: 1234, runAsGroup: 1234, fsGroup: 4321}'
    ready group
    expect "the directory" "$(inside group 'echo mine >/data/file && cat /data/file; stat -c %g:%a /data; stat -c %u:%g /data/greeting')" \
        $'mine\n4321:2775\n0:0'
    upper=$(find "$STORE/volumes" -name upper)
    expect "what was copied up" "$(cd "$upper" && find . -mindepth 1 ! -path './.wh..wh.*' | sort)" \
        $'./srv\n./srv/app\n./srv/app/file'
}

case_changes_by_pod() {
    create_pod changed data=app
    create_pod two data=app more=other
    ready changed two
    inside changed 'echo mine >/data/etc/version; rm /data/etc/kept; mkdir /data/new'
    expect "diff" "$("$E2E_DRIVER" diff default/changed)" \
        $'C /etc\nD /etc/kept\nC /etc/version\nA /new'
    "$E2E_DRIVER" export default/changed >"$E2E_DISK/changes.tar"
    # What is below a new directory is hidden, though there is nothing.
    expect "export" "$(tar --list --file "$E2E_DISK/changes.tar" | sed 's,^\./,,; s,/$,,' | grep -vE '^$|opq$' | sort)" \
        $'etc\netc/.wh.kept\netc/version\nnew'
    rm "$E2E_DISK/changes.tar"
    expect_in "one of two" "$("$E2E_DRIVER" diff default/two 2>&1 || true)" more
}

# What pods use stays, whatever is collected; what nobody uses goes.
case_collection() {
    create_pod used data=app
    create_pod ended data=big-1
    ready used ended
    delete ended
    "$E2E_DRIVER" gc --gc-min-age 0s --all
    expect "the image" "$(inside used "$SEE")" "$SEEN"
    expect "images" "$("$E2E_DRIVER" images --output json | grep -c '"manifest"')" 1
    create_pod again data=big-1
    ready again
    expect "fetched again" "$(inside again 'cat /data/etc/version')" 'big 1'
}
