#!/usr/bin/env bash
#
# Runs pytest of this checkout as root on another kernel: boots that kernel in a virtual machine whose file
# system is this host's, read-only (virtme-ng), and returns pytest's exit status. Needs .venv. Nothing outside
# .cache/vm is written, but what `make -C clients/c` makes.
#
#   tests/vm/boot.sh KERNEL PYTEST...
#
# KERNEL is what kernels.sh takes, or a release that it has unpacked. PYTEST are pytest's arguments.
# Status 99: the machine died or took longer than QOS_VM_SECONDS (default 3600). 98: there is no such kernel, or no
# virtme-ng to be had.
# What pytest, the console and the kernel said stays in QOS_VM_RUN (default: .cache/vm/runs/RELEASE); a second machine
# for the same folder waits for the first.

set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."

readonly CACHE=$PWD/.cache/vm
readonly VIRTME='virtme-ng~=1.42'
readonly PACKAGES=(busybox-static file kmod qemu-system-x86 udev)

fail() {
    printf 'boot: %s\n' "$@" >&2
    exit 2
}

require() {
    [[ $(uname -m) == x86_64 ]] || fail "only x86-64 is known here"
    [[ -x .venv/bin/python ]] || fail ".venv is missing" "run: ./dev install"
    local program
    for program in busybox depmod file flock qemu-system-x86_64 udevadm; do
        command -v "$program" >/dev/null || fail "$program is not here" "install: ${PACKAGES[*]}"
    done
}

ensure_virtme() {
    [[ -x $CACHE/virtme/bin/vng ]] && return
    mkdir -p "$CACHE"
    if ! { python3 -m venv "$CACHE/virtme" && "$CACHE/virtme/bin/pip" install --quiet "$VIRTME"; } >&2; then
        echo "boot: $VIRTME cannot be installed" >&2
        exit 98
    fi
}

# /dev/kvm alone says little: in many containers and machines it is there and its guests hang.
have_kvm() { [[ -w /dev/kvm ]] && grep -qwE 'vmx|svm' /proc/cpuinfo; }

# A processor that emulation is quick with, and that numpy accepts (x86-64-v2, no wider vector units).
machine_options() {
    have_kvm && return
    echo "==> no usable KVM here: the processor is emulated, 20 to 30 times slower" >&2
    printf '%s\n' --disable-kvm --qemu-opts="-cpu Nehalem" --append "tsc=reliable clocksource=tsc"
}

# What runs in the guest. It sees the host's /tmp, so it gets another; and what the host has compiled, so it gets another
# place for that too, empty, and compiles once. tun has no device node without its module.
guest_script() {
    local release=$1 run=$2
    shift 2
    cat <<GUEST
mkdir /run/tmp-of-tests
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs -o mode=0700 datapath '$PWD/.cache/datapath'
modprobe tun
cd '$PWD'
export TMPDIR=/run/tmp-of-tests HYPOTHESIS_STORAGE_DIRECTORY=/run/tmp-of-tests/hypothesis PYTHONDONTWRITEBYTECODE=1
export QOS_GUEST_RELEASE='$release' $(have_kvm || echo QOS_GUEST_EMULATED=1)
.venv/bin/python -m pytest -p no:cacheprovider --timeout=900 -o faulthandler_timeout=600 \\
    --junitxml='$run/junit.xml' $(printf '%q ' "$@") >'$run/pytest.log' 2>&1
status=\$?
dmesg >'$run/dmesg.log'
echo \$status >'$run/status'
sync
GUEST
}

# PATH for virtme-ng: its own programs, and the stand-in where only the old virtiofsd is here, which needs root.
search_path() {
    local old=/usr/lib/qemu/virtiofsd path=$CACHE/virtme/bin:$PATH
    if ((EUID == 0)) && [[ $("$old" --help 2>&1) == *"-o source=PATH"* ]] && ! command -v virtiofsd >/dev/null; then
        path=$CACHE/bin:$path
    fi
    echo "$path"
}

# The guest cannot write into the checkout: what its tests need from there is made before.
build_for_guest() {
    mkdir -p .cache/datapath
    flock clients/c/Makefile make --silent -C clients/c >&2 || echo "==> clients/c cannot be built: its tests will fail" >&2
}

main() {
    local kernel=$1 seconds=${QOS_VM_SECONDS:-3600} release run options follower machine
    shift
    require
    release=$kernel
    if [[ ! -e $CACHE/kernels/$kernel/complete ]]; then
        release=$(tests/vm/kernels.sh "$kernel") || {
            echo "boot: $kernel: $release" >&2
            exit 98
        }
    fi
    ensure_virtme
    build_for_guest

    run=${QOS_VM_RUN:-$CACHE/runs/$release}
    mkdir -p "$run" "$CACHE/bin"
    run=$(realpath "$run")
    exec 9>"$run/lock"
    flock --timeout "$seconds" 9 || {
        echo "boot: another machine has been running for $run since $seconds s" >&2
        exit 99
    }
    rm -f "$run"/{status,junit.xml,pytest.log,dmesg.log,console.log}
    guest_script "$release" "$run" "$@" >"$run/guest.sh"
    ln -sf "$PWD/tests/vm/virtiofsd" "$CACHE/bin/virtiofsd"
    mapfile -t options < <(machine_options)

    echo "==> Linux $release: pytest $*" >&2
    : >"$run/pytest.log"
    tail -n +1 -f "$run/pytest.log" 9>&- &
    follower=$!
    # By a pipe: QEMU opens its standard output anew, and a file would be cut. In a process group of its own
    # (timeout makes it), which Ctrl-C does not reach: so it is ended on every way out.
    PATH=$(search_path) timeout --kill-after=10 "$seconds" vng "${options[@]}" --user root --cpus 2 \
        --memory 2G --run "$CACHE/kernels/$release/boot/vmlinuz-$release" --rwdir="$run" -- bash "$run/guest.sh" \
        </dev/null > >(cat >"$run/console.log") 2>&1 9>&- &
    machine=$!
    trap 'kill "$machine" "$follower" 2>/dev/null || true' EXIT
    wait "$machine" || true
    sleep 0.5 # for what `tail` has still to show
    if [[ ! -s $run/status ]]; then
        tail -n 20 "$run/console.log" >&2
        echo "boot: the machine ended before pytest did; its console: $run/console.log" >&2
        exit 99
    fi
    exit "$(<"$run/status")"
}

(($# >= 2)) || {
    echo "usage: tests/vm/boot.sh KERNEL PYTEST..." >&2
    exit 2
}
main "$@"
