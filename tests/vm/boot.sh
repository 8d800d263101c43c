#!/usr/bin/env bash
#
# Runs pytest of this checkout as root on another kernel: boots that kernel in a virtual machine whose file
# system is this host's, read-only (virtme-ng), and returns pytest's exit status. Needs .venv; the kernel is
# a package of the distribution, downloaded but never installed. Nothing outside .cache/vm is written.
#
#   tests/vm/boot.sh [KERNEL [PYTEST...]]
#
# KERNEL is a package, as linux-image-6.12-amd64, or a version, as 6.1 (default: the distribution's own). PYTEST is
# by default what only such a kernel can show; with KVM also tests/datapath, for which emulation takes too long.
# Status 99: the machine died or took longer than QOS_VM_SECONDS (default 3600).
# What pytest, the console and the kernel said stays in .cache/vm/RELEASE/run.

set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."

readonly CACHE=$PWD/.cache/vm
readonly VIRTME='virtme-ng~=1.42'
readonly PACKAGES=(qemu-system-x86 busybox-static kmod udev)

fail() {
    printf 'boot: %s\n' "$@" >&2
    exit 2
}

require() {
    [[ $(uname -m) == x86_64 ]] || fail "only x86-64 is known here"
    [[ -x .venv/bin/python ]] || fail ".venv is missing" "run: ./dev install"
    local program
    for program in apt-get busybox depmod flock qemu-system-x86_64 udevadm; do
        command -v "$program" >/dev/null || fail "$program is not here" "install: ${PACKAGES[*]}"
    done
}

ensure_virtme() {
    [[ -x $CACHE/virtme/bin/vng ]] && return
    python3 -m venv "$CACHE/virtme"
    "$CACHE/virtme/bin/pip" install --quiet "$VIRTME"
}

# The newest package of a version, as 6.1; of anything else itself.
package_of() {
    local version=${1//./\\.} newest=
    if [[ $1 =~ ^[0-9]+\.[0-9]+$ ]]; then
        newest=$(apt-cache pkgnames "linux-image-$1" |
            grep -E "^linux-image-$version(\.[0-9]+)*(-[0-9]+|\+[a-z0-9]+)?-(amd64|generic)\$" | sort -V | tail -n 1) || true
    fi
    echo "${newest:-$1}"
}

# The release (as uname -r says it) of a kernel package, which may be one that only depends on the newest.
release_of() {
    local package=$1 real
    real=$(apt-cache depends --important "$package" 2>/dev/null |
        sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1)
    package=${real:-$package}
    [[ $package == linux-image-[0-9]* && -n $(apt-cache show --no-all-versions "$package" 2>/dev/null) ]] ||
        fail "apt knows no kernel package $1" "see: apt-cache search --names-only linux-image"
    echo "${package#linux-image-}"
}

ensure_kernel() {
    local release=$1 folder=$CACHE/$1
    [[ -e $folder/complete ]] && return
    echo "==> linux-image-$release: downloading and unpacking it into ${folder#"$PWD"/}" >&2
    rm -rf "$folder"
    mkdir -p "$folder"
    (cd "$folder" && apt-get -qq -o APT::Sandbox::User=root download "linux-image-$release")
    dpkg-deb -x "$folder"/*.deb "$folder"
    rm "$folder"/*.deb
    depmod -b "$folder" "$release"
    touch "$folder/complete"
}

# /dev/kvm alone says little: in many containers and machines it is there and its guests hang.
have_kvm() { [[ -w /dev/kvm ]] && grep -qwE 'vmx|svm' /proc/cpuinfo; }

default_tests() {
    printf '%s\n' tests/lab/test_netem.py tests/vm
    if have_kvm; then
        echo tests/datapath
    else
        echo "==> left out, as emulation takes long for it: tests/datapath (name it behind the kernel)" >&2
    fi
}

# A processor that emulation is quick with, and that numpy accepts (x86-64-v2, no wider vector units).
machine_options() {
    have_kvm && return
    echo "==> no usable KVM here: the processor is emulated, 20 to 30 times slower" >&2
    printf '%s\n' --disable-kvm --qemu-opts="-cpu Nehalem" --append "tsc=reliable clocksource=tsc"
}

# What runs in the guest. It sees the host's /tmp, so it gets another; tun has no device node without its module.
guest_script() {
    cat <<GUEST
mkdir /run/tmp-of-tests
mount -t bpf bpf /sys/fs/bpf
modprobe tun
cd '$PWD'
export TMPDIR=/run/tmp-of-tests HYPOTHESIS_STORAGE_DIRECTORY=/run/tmp-of-tests/hypothesis PYTHONDONTWRITEBYTECODE=1
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

main() {
    local release run options tests follower machine
    require
    mkdir -p "$CACHE"
    release=$(release_of "$(package_of "${1:-linux-image-amd64}")")
    shift || true
    if (($# == 0)); then
        mapfile -t tests < <(default_tests)
        set -- "${tests[@]}"
    fi
    ensure_virtme
    ensure_kernel "$release"

    run=$CACHE/$release/run
    mkdir -p "$run" "$CACHE/bin"
    exec 9>"$run/lock"
    flock --nonblock 9 || fail "a machine with this kernel is running already"
    rm -f "$run"/{status,junit.xml,pytest.log,dmesg.log,console.log}
    guest_script "$@" >"$run/guest.sh"
    ln -sf "$PWD/tests/vm/virtiofsd" "$CACHE/bin/virtiofsd"
    mapfile -t options < <(machine_options)

    echo "==> Linux $release: pytest $*" >&2
    : >"$run/pytest.log"
    tail -n +1 -f "$run/pytest.log" 9>&- &
    follower=$!
    # By a pipe: QEMU opens its standard output anew, and a file would be cut. In a process group of its own
    # (timeout makes it), which Ctrl-C does not reach: so it is ended on every way out.
    PATH=$(search_path) timeout --kill-after=10 "${QOS_VM_SECONDS:-3600}" vng "${options[@]}" --user root --cpus 2 \
        --memory 2G --run "$CACHE/$release/boot/vmlinuz-$release" --rwdir="$run" -- bash "$run/guest.sh" \
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

main "$@"
