#!/bin/bash
# Runs the union and property tests on real AUFS: boots the kernel AUFS_KERNEL
# in an emulated machine whose root is made on the spot, and reports.
#
#   AUFS_KERNEL=<bzImage> e2e/aufs/run.sh [tests] [limits] [power] [bench]
#
# The kernel is any with AUFS, overlay, ext4, virtio (PCI, block), initramfs,
# two 8250 serial ports, loop devices, and tmpfs with extended attributes, all built
# in. With XFS built in too, a part of the suite runs with branches on that.
#
#   PROPTEST_CASES     inputs of each property; default 100, for emulation is slow
#   POWER_CUTS         power cuts; default 3
#   AUFS_VM_ACCEL      accelerator of qemu: tcg (default) or kvm
#   AUFS_VM_MINUTES    longest time for one boot; default 30
#   AUFS_VM_FILTER     only tests with this in their names
#
# `bench` is not part of it unless asked for: what a pod and its use cost on both
# unions. Without AUFS_VM_ACCEL=kvm times compare with each other only.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly TARGET=x86_64-unknown-linux-gnu
readonly CARGO=$PWD/target/aufs-vm WORK=$PWD/target/aufs-vm/machine
# The test programs that the jobs need.
TESTS=()
readonly BENCHES=(density using)
: "${PROPTEST_CASES:=100}" "${POWER_CUTS:=3}" "${AUFS_VM_ACCEL:=tcg}" "${AUFS_VM_MINUTES:=30}"
: "${AUFS_VM_FILTER:=}"

say() { echo "aufs-vm: $*"; }
die() {
    echo "aufs-vm: $*" >&2
    exit 1
}

check_kernel() {
    if [[ -z ${AUFS_KERNEL:-} ]]; then
        die "AUFS_KERNEL is not set. Name a kernel image (bzImage, x86_64) with AUFS, overlay," \
            "ext4, virtio (PCI, block), initramfs, 8250 serial ports and tmpfs with extended" \
            "attributes built in:  make e2e-aufs AUFS_KERNEL=<bzImage>"
    fi
    [[ -r $AUFS_KERNEL ]] || die "the kernel $AUFS_KERNEL cannot be read"
    AUFS_KERNEL=$(realpath "$AUFS_KERNEL")
}

# What is missing is installed, where this is a Debian or Ubuntu and we are root.
install_programs() {
    local packages=()
    command -v qemu-system-x86_64 >/dev/null || packages+=(qemu-system-x86)
    command -v cpio >/dev/null || packages+=(cpio)
    command -v mke2fs >/dev/null || packages+=(e2fsprogs)
    command -v mkfs.xfs >/dev/null || packages+=(xfsprogs)
    # The shared one would need its libraries in the machine.
    if ! busybox=$(command -v busybox) || ldd "$busybox" >/dev/null 2>&1; then
        packages+=(busybox-static)
    fi
    [[ ${#packages[@]} -eq 0 ]] && return
    command -v apt-get >/dev/null || die "please install: ${packages[*]}"
    local sudo=()
    [[ $(id -u) -eq 0 ]] || sudo=(sudo)
    say "installing ${packages[*]}"
    "${sudo[@]}" apt-get update -qq
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
    busybox=$(command -v busybox)
}

# Prints the path of each test program, in the order of TESTS.
build_tests() {
    local arguments=() messages test program
    for test in "${TESTS[@]}"; do
        if [[ " ${BENCHES[*]} " = *" $test "* ]]; then
            arguments+=(--bench "$test")
        else
            arguments+=(--test "$test")
        fi
    done
    messages=$(RUSTFLAGS='-C target-feature=+crt-static' CARGO_TARGET_DIR=$CARGO \
        cargo test --profile vm --target "$TARGET" "${arguments[@]}" --no-run \
        --message-format=json-render-diagnostics)
    for test in "${TESTS[@]}"; do
        program=$(grep -o "\"executable\":\"[^\"]*/$test-[0-9a-f]*\"" <<<"$messages" |
            tail -n 1 | cut -d '"' -f 4) || die "cargo built no test program $test"
        echo "$program"
    done
}

# pack DIRECTORY FILE: an initramfs, or a part of one.
pack() {
    (cd "$1" && find . -mindepth 1 | sort | cpio --quiet --create --format=newc --owner=0:0) >"$2"
}

make_root() {
    local root=$WORK/root programs test
    rm -rf "$root"
    mkdir -p "$root/bin" "$root/tests"
    install -m 0755 "$busybox" "$root/bin/busybox"
    install -m 0755 e2e/aufs/init "$root/init"
    mapfile -t programs < <(build_tests)
    [[ ${#programs[@]} -eq ${#TESTS[@]} ]] || die "the test programs were not built"
    for test in "${!TESTS[@]}"; do
        # All of it is unpacked into the machine's memory.
        install -s -m 0755 "${programs[$test]}" "$root/tests/${TESTS[$test]}"
    done
    pack "$root" "$WORK/root.cpio"
}

make_disk() {
    rm -f "$WORK/$1.img"
    truncate -s 4G "$WORK/$1.img"
    mke2fs -q -t ext4 -m 0 "$WORK/$1.img"
}

# The second disk, in every machine: which filesystems a kernel has shows only there.
# Without shared extents: with them AUFS cannot shorten files of the image, see
# docs/aufs.md.
make_xfs_disk() {
    rm -f "$WORK/xfs.img"
    truncate -s 2G "$WORK/xfs.img"
    mkfs.xfs -q -m reflink=0 "$WORK/xfs.img"
}

# start NAME DISK CACHE <<<JOB: boots with that job, sets `machine` and `log`.
start() {
    local name=$1 disk=$2 cache=$3 job=$WORK/job
    rm -rf "$job"
    mkdir -p "$job"
    cat >"$job/job"
    pack "$job" "$WORK/job.cpio"
    cat "$WORK/root.cpio" "$WORK/job.cpio" >"$WORK/initramfs"
    log=$WORK/$name.log
    kernel_log=$WORK/$name.kernel.log
    : >"$log"
    # A kernel that stumbles goes down without saying how the job ended, which
    # is a failure too.
    qemu-system-x86_64 -M q35 -accel "$accel" -cpu max -smp 2 -m 2048 \
        -kernel "$AUFS_KERNEL" -initrd "$WORK/initramfs" \
        -append 'console=ttyS0 panic=-1 oops=panic random.trust_cpu=on' \
        -drive "file=$disk,if=virtio,format=raw,cache=$cache" \
        -drive "file=$WORK/xfs.img,if=virtio,format=raw,cache=unsafe" \
        -display none -nodefaults -no-reboot \
        -serial "file:$kernel_log" -serial "file:$log" </dev/null &
    machine=$!
}

stop_machine() {
    if [[ -n ${machine:-} ]]; then
        kill -KILL "$machine" 2>/dev/null || true
        wait "$machine" 2>/dev/null || true
        machine=
    fi
}

# Waits for the machine to go down by itself, showing what it says, and notes in
# `status` if it does not say that all passed.
finish() {
    local viewer waited=0
    tail -n +1 -s 0.3 -f "$log" --pid="$machine" &
    viewer=$!
    while kill -0 "$machine" 2>/dev/null; do
        if ((waited >= AUFS_VM_MINUTES * 60)); then
            stop_machine
            kill "$viewer" 2>/dev/null || true
            die "the machine was not done after $AUFS_VM_MINUTES minutes; its kernel says:" \
                $'\n'"$(tail -n 30 "$kernel_log")"
        fi
        sleep 1
        waited=$((waited + 1))
    done
    wait "$viewer" 2>/dev/null || true
    machine=
    if grep -qx '### PASSED' "$log"; then return; fi
    echo "aufs-vm: failed; the kernel's last words ($kernel_log):" >&2
    tail -n 30 "$kernel_log" >&2
    status=1
}

# The properties and tests, with branches on ext4, on tmpfs and on XFS. What AUFS
# makes of a branch is the same on all; so a part is enough on the last two.
run_tests() {
    local disk=$WORK/tests.img
    make_disk tests
    start tests "$disk" unsafe <<JOB
mkdir -p /mnt/t
export AUFS_CSI_BACKEND=aufs PROPTEST_CASES=$PROPTEST_CASES
export AUFS_CSI_TEST_DIR=/mnt/t
suite "meaning, ext4" meaning --nocapture $AUFS_VM_FILTER
suite "several, ext4" several $AUFS_VM_FILTER
suite "unions, ext4" unions $AUFS_VM_FILTER
suite "aufs, ext4" aufs $AUFS_VM_FILTER
suite "collect, ext4" collect a_mount_that_nothing_records what_a_volume_needs
suite "directories inside, ext4" sub_path $AUFS_VM_FILTER
suite "shared unions, ext4" shared $AUFS_VM_FILTER
suite "live volumes, ext4" live $AUFS_VM_FILTER
export AUFS_CSI_TEST_DIR=/memory
# A tmpfs has no user attributes before Linux 6.6, and an overlay made in a user
# namespace needs them.
suite "meaning, tmpfs" AUFS_CSI_TEST_XATTRS=none meaning random_stacks
suite "several, tmpfs" AUFS_CSI_TEST_XATTRS=none several random_images
suite "unions, tmpfs" unions $AUFS_VM_FILTER --skip a_user_namespace_can
if grep -qw xfs /proc/filesystems; then
    mkdir -p /xfs
    need "the disk's XFS" mount -t xfs /dev/vdb /xfs
    export AUFS_CSI_TEST_DIR=/xfs
    suite "meaning, XFS" meaning $AUFS_VM_FILTER
    suite "several, XFS" several $AUFS_VM_FILTER
    suite "unions, XFS" unions $AUFS_VM_FILTER
    umount /xfs
else
    echo "### result XFS: not tried, this kernel lacks it (CONFIG_XFS_FS=y)"
fi
JOB
    finish
}

# Writable layers with a limit, on both unions, and with their images on each disk
# that a store may be on.
run_limits() {
    local disk=$WORK/limits.img
    make_disk limits
    start limits "$disk" unsafe <<JOB
mkdir -p /mnt/t
need "loop devices (CONFIG_BLK_DEV_LOOP=y)" test -c /dev/loop-control
export AUFS_CSI_TEST_DIR=/mnt/t
suite "limits, aufs, ext4" AUFS_CSI_BACKEND=aufs limits $AUFS_VM_FILTER
suite "limits, overlay, ext4" AUFS_CSI_BACKEND=overlay limits $AUFS_VM_FILTER
if grep -qw xfs /proc/filesystems; then
    mkdir -p /xfs
    need "the disk's XFS" mount -t xfs /dev/vdb /xfs
    suite "limits, aufs, XFS" AUFS_CSI_BACKEND=aufs AUFS_CSI_TEST_DIR=/xfs limits $AUFS_VM_FILTER
    umount /xfs
else
    echo "### result XFS: not tried, this kernel lacks it (CONFIG_XFS_FS=y)"
fi
JOB
    finish
}

# Power cuts while images are staged: each time a machine is stopped dead at a
# random moment, and another one looks at what its disk then holds. What was
# called flushed must be there; what is there must be right.
run_power() {
    local disk=$WORK/power.img round seconds flushed
    make_disk power
    flushed=0
    for ((round = 1; round <= POWER_CUTS; round++)); do
        start "power-$round-write" "$disk" writeback <<JOB
export AUFS_CSI_BACKEND=aufs AUFS_CSI_POWER=write AUFS_CSI_POWER_DIR=/mnt
export AUFS_CSI_POWER_FIRST=$((flushed + 1))
suite "power, write" power --nocapture
JOB
        await_line '^flushed ' 120
        # Some time within the staging of the images that follow.
        seconds=$((RANDOM % 12)).$((RANDOM % 1000))
        sleep "$seconds"
        stop_machine
        flushed=$(sed -n 's/^flushed \([0-9]*\)$/\1/p' "$log" | tail -n 1)
        say "power cut $round after $seconds s, ${flushed} images flushed"
        start "power-$round-check" "$disk" writeback <<JOB
export AUFS_CSI_BACKEND=aufs AUFS_CSI_POWER=check AUFS_CSI_POWER_DIR=/mnt
export AUFS_CSI_POWER_FLUSHED=$flushed
suite "power, check" power --nocapture
JOB
        finish
    done
}

run_bench() {
    local disk=$WORK/bench.img
    make_disk bench
    start bench "$disk" unsafe <<JOB
mkdir -p /mnt/b
export BENCH_DIR=/mnt/b
suite "density" BENCH_PODS=${BENCH_PODS:-500} density
suite "using" BENCH_LARGEST=${BENCH_LARGEST:-1024} using
JOB
    finish
}

# await_line PATTERN SECONDS: until the machine says so.
await_line() {
    local waited=0
    until grep -q "$1" "$log"; do
        if ! kill -0 "$machine" 2>/dev/null || ((waited >= $2)); then
            cat "$log" >&2
            stop_machine
            die "the machine did not say $1; its kernel says:"$'\n'"$(tail -n 30 "$kernel_log")"
        fi
        sleep 1
        waited=$((waited + 1))
    done
}

check_kernel
jobs=("$@")
[[ ${#jobs[@]} -gt 0 ]] || jobs=(tests limits power)
for job in "${jobs[@]}"; do
    case $job in
    tests) TESTS+=(meaning several unions aufs collect sub_path shared live) ;;
    limits | power) TESTS+=("$job") ;;
    bench) TESTS+=("${BENCHES[@]}") ;;
    *) die "there is no job $job; there are: tests limits power bench" ;;
    esac
done
accel=$AUFS_VM_ACCEL
[[ $accel != tcg ]] || accel=tcg,thread=multi
mkdir -p "$WORK"
machine=
trap stop_machine EXIT
install_programs
rm -f "$WORK"/*.log
make_root
make_xfs_disk
started=$SECONDS
status=0
for job in "${jobs[@]}"; do
    case $job in
    tests) run_tests ;;
    limits) run_limits ;;
    power) run_power ;;
    bench) run_bench ;;
    esac
done
echo
say "summary of $((SECONDS - started)) s:"
grep -hE '^### (kernel|result|FAILED)|^test result' "$WORK"/*.log
exit "$status"
