#!/usr/bin/env bash
# The same node and the same cases as run.sh, on real AUFS: boots the kernel
# AUFS_KERNEL in an emulated machine whose disks are made here.
#
#   AUFS_KERNEL=<bzImage> e2e/node/vm.sh [CASE…]
#
# Built into that kernel (x86_64): what e2e/aufs/run.sh needs, and for containers
# namespaces, cgroups (v2: pids, memory, cpu, cpuset; BPF for devices), veth,
# POSIX message queues, and devtmpfs.
#
#   AUFS_VM_ACCEL    accelerator of qemu: tcg (default) or kvm
#   AUFS_VM_MINUTES  longest time for all; default 60
#   E2E_DRIVER, K8S_BIN, E2E_SLOW, E2E_INSTALL, E2E_IMAGE    as for run.sh
#
# Logs of the last run are in target/e2e-node/vm/logs.
set -euo pipefail
cd "$(dirname "$0")/../.."
readonly WORK=$PWD/target/e2e-node/vm
: "${AUFS_VM_ACCEL:=tcg}" "${AUFS_VM_MINUTES:=60}"

say() { echo "e2e-node-vm: $*"; }
die() {
    echo "e2e-node-vm: $*" >&2
    exit 1
}

as_root=()
[[ $(id -u) -eq 0 ]] || as_root=(sudo)

install_programs() {
    local packages=()
    command -v qemu-system-x86_64 >/dev/null || packages+=(qemu-system-x86)
    command -v mmdebstrap >/dev/null || packages+=(mmdebstrap)
    command -v skopeo >/dev/null || packages+=(skopeo)
    PATH=$PATH:/usr/sbin:/sbin command -v mke2fs >/dev/null || packages+=(e2fsprogs)
    [[ ${#packages[@]} -eq 0 ]] && return
    command -v apt-get >/dev/null || die "please install: ${packages[*]}"
    say "installing ${packages[*]}"
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
}

# The machine's root: a minimal system of the same release as this one, from the
# same mirror, because the programs of tools.sh are this one's. Kept, for it
# does not change; the machine's writes to it are thrown away.
make_root() {
    local include=iproute2,libseccomp2,mount,openssl,python3-minimal release mirror components=main
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    [[ $(. /etc/os-release && echo "$ID") != ubuntu ]] || components=main,universe
    root=$PWD/.cache/node-vm/$release-$(sha256sum <<<"$include" | cut -c 1-8).img
    [[ ! -e $root ]] || return 0
    # Of a package that is too dull for updates.
    mirror=$(apt-get download --print-uris hostname | sed "s/^'//; s|/pool/.*||")
    if [[ -z $mirror ]]; then
        "${as_root[@]}" apt-get update -qq
        mirror=$(apt-get download --print-uris hostname | sed "s/^'//; s|/pool/.*||")
    fi
    say "making a root of $release"
    mkdir -p "$(dirname "$root")"
    rm -f "$root.partial"
    # Bound, so that what is mounted in there for the hooks is not copied.
    "${as_root[@]}" mmdebstrap --quiet --variant=essential --include="$include" --components="$components" \
        --format=null \
        --customize-hook='mkdir -p "$1/e2e" "$1/sys" "$1/proc" "$1/dev"' \
        --customize-hook='rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/*' \
        --customize-hook="unshare --mount sh -c 'mount --bind \"\$1\" /mnt &&
            mke2fs -q -t ext4 -m 0 -d /mnt \"$root.partial\" 6G' sh \"\$1\"" \
        "$release" /dev/null "$mirror"
    mv "$root.partial" "$root"
}

# A disk with everything the machine needs of this one.
make_job() {
    local job=$WORK/job tools binaries
    tools=$(e2e/node/tools.sh)
    binaries=$(e2e/node/binaries.sh)
    rm -rf "$job"
    mkdir -p "$job"/{k8s,node}
    cp -L "$binaries"/{kubelet,kube-apiserver,kubectl} "$job/k8s"
    cp -RL "$tools" "$job/tools"
    install -m 0755 "$E2E_DRIVER" "$job/aufs-csi"
    install -m 0755 e2e/node/{node.sh,cases.sh,volumes.sh,chart.sh,registry.sh,throttle.py,vm-init} "$job/node"
    # Small ones are big enough for a slow machine.
    BIG_FILES=${BIG_FILES:-2000} e2e/node/images.sh "$job/images" "$tools"
    if [[ $install = chart ]]; then
        cp -L "$binaries"/{kube-controller-manager,kube-scheduler} "$job/k8s"
        install -m 0755 "$(scripts/helm.sh)" "$job/helm"
        cp -R charts/aufs-csi "$job/chart"
        cp "$E2E_IMAGE" "$job/image.tar"
        skopeo copy --quiet "docker-archive:$E2E_IMAGE" "oci:$job/images/plugin:1"
    fi
    {
        printf 'export E2E_INSTALL=%q\n' "$install"
        printf 'export E2E_SLOW=%q\n' "$slow"
        printf 'export E2E_KILLS=%q\n' "${E2E_KILLS:-record mount 5}"
        printf 'cases=('
        [[ $# -eq 0 ]] || printf ' %q' "$@"
        echo ')'
    } >"$job/job"
    rm -f "$WORK/job.img"
    mke2fs -q -t ext4 -m 0 -d "$job" "$WORK/job.img" 3G
    rm -rf "$job"
}

stop_machine() {
    if [[ -n ${machine:-} ]]; then
        kill -KILL "$machine" 2>/dev/null || true
        wait "$machine" 2>/dev/null || true
        machine=
    fi
}

[[ -n ${AUFS_KERNEL:-} ]] || die "AUFS_KERNEL is not set; name a kernel image with AUFS, see the head of $0"
[[ -r $AUFS_KERNEL ]] || die "the kernel $AUFS_KERNEL cannot be read"
install=${E2E_INSTALL:-process}
[[ $install != chart || -f ${E2E_IMAGE:-} ]] ||
    die "E2E_IMAGE is not an archive of the image; run: make e2e-chart-aufs"
[[ -x ${E2E_DRIVER:-} ]] || die "E2E_DRIVER is not a program; run: make e2e-node-aufs"
accel=$AUFS_VM_ACCEL slow=${E2E_SLOW:-1}
if [[ $accel = tcg ]]; then
    accel=tcg,thread=multi slow=${E2E_SLOW:-3}
fi
export PATH=$PATH:/usr/sbin:/sbin
install_programs
mkdir -p "$WORK"
make_root
make_job "$@"
rm -rf "$WORK/logs" "$WORK"/*.log
mkdir "$WORK/logs"
rm -f "$WORK/logs.img"
truncate -s 256M "$WORK/logs.img"
log=$WORK/node.log kernel_log=$WORK/kernel.log
: >"$log"

machine=
trap stop_machine EXIT
trap 'exit 130' INT TERM HUP
say "booting; the kernel's words are in $kernel_log"
qemu-system-x86_64 -M q35 -accel "$accel" -cpu max -smp 2 -m 4096 \
    -kernel "$AUFS_KERNEL" \
    -append 'console=ttyS0 panic=-1 oops=panic random.trust_cpu=on root=/dev/vda rw rootfstype=ext4 init=/bin/sh -- -c "mount -o ro -t ext4 /dev/vdb /e2e && exec /e2e/node/vm-init"' \
    -drive "file=$root,if=virtio,format=raw,snapshot=on,cache=unsafe" \
    -drive "file=$WORK/job.img,if=virtio,format=raw,readonly=on" \
    -drive "file=$WORK/logs.img,if=virtio,format=raw,cache=unsafe" \
    -display none -nodefaults -no-reboot \
    -serial "file:$kernel_log" -serial "file:$log" </dev/null &
machine=$!
tail -n +1 -s 0.5 -f "$log" --pid="$machine" &
viewer=$!
end=$((SECONDS + AUFS_VM_MINUTES * 60))
while kill -0 "$machine" 2>/dev/null; do
    if ((SECONDS >= end)); then
        stop_machine
        say "the machine was not done after $AUFS_VM_MINUTES minutes" >&2
        break
    fi
    sleep 1
done
machine=
wait "$viewer" 2>/dev/null || true
tar -xf "$WORK/logs.img" -C "$WORK/logs" 2>/dev/null || true
rm -f "$WORK/logs.img" "$WORK/job.img"
if ! grep -qx '### PASSED' "$log"; then
    say "failed; the kernel's last words:" >&2
    tail -n 20 "$kernel_log" >&2
    exit 1
fi
