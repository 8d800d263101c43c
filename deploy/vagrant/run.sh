#!/usr/bin/env bash
#
# The two machines of the Vagrantfile from nothing to nothing: box, `vagrant up`, the end-to-end test, `vagrant destroy`.
# `./dev vagrant` calls it once the packages are there. Needs root, for libvirt's system daemon, which it starts where
# no systemd runs one. Nothing outside .cache/vagrant is left: what the host looked like is written down before and
# compared afterwards.
#
#   deploy/vagrant/run.sh [E2E...]      arguments for qos2-e2e
#
# Exit status: that of the test; 3 where a step before it failed, 4 where something was left behind.
# QOS_VM_BOX names a box other than the one that is built here from packages.

set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."

readonly CACHE=$PWD/.cache/vagrant
readonly LOCAL_BOX=qos2-local
export VAGRANT_HOME=$CACHE/home VAGRANT_DOTFILE_PATH=$CACHE/machines VAGRANT_DEFAULT_PROVIDER=libvirt
export VAGRANT_CHECKPOINT_DISABLE=1 VAGRANT_BOX_UPDATE_CHECK_DISABLE=1 LIBVIRT_DEFAULT_URI=qemu:///system

# shellcheck source=deploy/vagrant/libvirt.sh
source deploy/vagrant/libvirt.sh

step() { printf '==> %s (%s s)\n' "$1" "$SECONDS" >&2; }

fail() {
    printf 'vagrant: %s\n' "$@" >&2
    exit 3
}

# A step that may not take for ever. In the background, so that a signal to this script is obeyed at once.
child=
within() {
    local status=0
    timeout --foreground --kill-after=10 "$@" </dev/null 9>&- &
    child=$!
    wait "$child" || status=$?
    child=
    return "$status"
}

# What a signal has interrupted.
end_child() {
    if [[ -n $child ]]; then
        kill "$child" || true # it may just have ended
        wait "$child" || true # it says only how it was ended
        child=
    fi
}

# Each per cent is several lines that overwrite each other, which is for terminals.
without_progress() { sed -u 's/\r\x1b\[K\(Progress: [0-9]*%\)\?//g; s/\x1b\[K//g'; }

# What the box depends on. A checkout that differs in other things is brought up to date by provisioning.
box_stamp() { cat deploy/vagrant/build-box.sh requirements.lock pyproject.toml /etc/os-release | sha256sum; }

ensure_box() {
    [[ -z ${QOS_VM_BOX:-} ]] || return 0
    export QOS_VM_BOX=$LOCAL_BOX
    if [[ -e $CACHE/box.stamp && $(<"$CACHE/box.stamp") == "$(box_stamp)" ]]; then
        return
    fi
    step "building the box out of packages (once)"
    within 1200 deploy/vagrant/build-box.sh "$CACHE/$LOCAL_BOX.box" || fail "the box could not be built"
    within 300 vagrant box add --force --name "$LOCAL_BOX" "$CACHE/$LOCAL_BOX.box" >"$CACHE/box-add.log" 2>&1 ||
        fail "vagrant refuses the box: $CACHE/box-add.log"
    rm "$CACHE/$LOCAL_BOX.box"
    box_stamp >"$CACHE/box.stamp"
}

# On every way out. The first to fail gives the status; what is left behind is told in any case.
tidy() {
    local status=$?
    trap '' INT TERM HUP
    end_child
    step "vagrant destroy"
    within 180 vagrant destroy --force >"$CACHE/destroy.log" 2>&1 ||
        { tail "$CACHE/destroy.log" >&2 && status=${status/#0/3}; }
    restore_libvirt
    host_state >"$CACHE/host.after"
    if ! diff -u "$CACHE/host.before" "$CACHE/host.after" >&2; then
        echo "vagrant: this differs from before (-) on the host" >&2
        status=${status/#0/4}
    fi
    step "done"
    exit "$status"
}

keep_journals() {
    local name
    for name in sender receiver; do
        within 60 vagrant ssh "$name" --no-tty -c 'sudo journalctl --boot --no-pager' >"$CACHE/$name.journal" 2>&1 ||
            echo "vagrant: no journal of the $name" >&2
    done
    step "what the machines said is in $CACHE/*.journal"
}

main() {
    local status
    ((EUID == 0)) || fail "needs root"
    mkdir -p "$CACHE"
    exec 9>"$CACHE/lock"
    flock --nonblock 9 || fail "it is running already"
    trap end_child EXIT
    trap 'exit 130' INT TERM HUP
    ensure_box

    remove_half_copies
    host_state >"$CACHE/host.before"
    trap tidy EXIT
    start_libvirt
    step "vagrant up: two machines"
    within 1500 vagrant up --no-color > >(without_progress) 2>&1 || fail "the machines did not come up"
    step "qos2-e2e"
    within 900 vagrant ssh sender --no-tty -c "qos2-e2e ${*@Q}" || {
        status=$?
        keep_journals
        exit "$status"
    }
}

main "$@"
