#!/usr/bin/env bash
#
# Builds a Vagrant box for libvirt out of Debian packages, with what `./dev install` installs already in it: inside a
# machine whose processor is emulated that takes many minutes, here it is done at native speed, by the same command.
#
#   deploy/vagrant/build-box.sh BOX
#
# Needs root, a Debian host on x86-64, .venv, and the packages that `./dev vagrant` installs. The box gets the release
# of the host and its package sources. Nothing of the host changes: the image is mounted in a mount namespace of this
# script alone, so mounts and loop device are gone when it ends, however it ends.

set -euo pipefail

SCRIPT=$(readlink -f "${BASH_SOURCE[0]}")
readonly SCRIPT CHECKOUT=${SCRIPT%/deploy/vagrant/*}
readonly DISK_GIB=10
readonly PARTITION_AT=1048576 # bytes; the one partition begins there, and is reached by this offset
# Of ext4, by name: extlinux knows neither 64bit nor the checksums that newer versions of mke2fs add.
readonly FEATURES=has_journal,ext_attr,resize_inode,dir_index,filetype,extent,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize
readonly BASE=(ca-certificates dbus ifupdown iproute2 iputils-ping isc-dhcp-client kmod linux-image-amd64
    openssh-server procps rsync sudo systemd-sysv udev)
# As in the Vagrantfile: what is made anew in each place.
readonly LEFT_OUT=(.git .vagrant .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis __pycache__ '*.egg-info')

step() { printf '==> box: %s (%s s)\n' "$1" "$SECONDS" >&2; }

fail() {
    printf 'build-box: %s\n' "$@" >&2
    exit 1
}

require() {
    local program
    ((EUID == 0)) || fail "needs root, to mount the image"
    [[ $(uname -m) == x86_64 ]] || fail "only x86-64 is known here"
    # shellcheck source=/dev/null # the host's own
    [[ $(. /etc/os-release && echo "$ID") == debian ]] ||
        fail "it takes the packages of a Debian host" "elsewhere name a box: QOS_VM_BOX=debian/bookworm64"
    for program in mmdebstrap sfdisk mke2fs extlinux qemu-img rsync vagrant; do
        command -v "$program" >/dev/null || fail "$program is not here" "./dev vagrant installs it"
    done
    [[ -x $CHECKOUT/.venv/bin/python ]] || fail ".venv is missing" "run: ./dev install"
}

# The host's own sources of this release, one line each, whatever format they are written in.
sources() {
    # shellcheck disable=SC2016 # the format is apt's
    apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 'Origin: Debian' |
        awk -v suite="$1" '$3 == suite || index($3, suite "-") == 1' | grep -v -e '-backports ' | sort -u
}

make_disk() {
    truncate -s "${DISK_GIB}G" disk.raw
    echo "start=$((PARTITION_AT / 512)), type=83, bootable" | sfdisk -q --no-reread --no-tell-kernel disk.raw
    dd if=/usr/lib/syslinux/mbr/mbr.bin of=disk.raw conv=notrunc status=none
    mke2fs -q -F -t ext4 -L root -E "offset=$PARTITION_AT,lazy_itable_init=1" -O "none,$FEATURES" \
        disk.raw "$(((DISK_GIB * 1024 - 2) * 1024))k"
    mkdir root
    # Nobody needs what is half written when the power fails.
    mount -o "loop,offset=$PARTITION_AT,barrier=0,data=writeback" disk.raw root
    rmdir root/lost+found
}

install_system() {
    local suite lines include
    # shellcheck source=/dev/null # the host's own
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    mapfile -t lines < <(sources "$suite")
    ((${#lines[@]})) || fail "apt knows no Debian source for $suite" "run: apt-get update"
    include=$(IFS=, && echo "${BASE[*]}")
    # Nothing in here needs /sys, and not every host lets it be mounted.
    mmdebstrap --quiet --variant=minbase --mode=root --skip=chroot/mount/sys --include="$include" \
        --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        "$suite" root "${lines[@]}" </dev/null
}

# As Vagrant wants it: a user `vagrant` with Vagrant's public key (exchanged when a machine first starts) and sudo.
configure_system() {
    local key
    key=$(dpkg -L vagrant | grep '/keys/vagrant\.pub$') || fail "the package vagrant holds no public key"
    printf 'LABEL=root / ext4 errors=remount-ro 0 1\n' >root/etc/fstab
    echo debian >root/etc/hostname
    printf '127.0.0.1 localhost\n127.0.1.1 debian\n' >root/etc/hosts
    printf 'source-directory /etc/network/interfaces.d\nauto lo\niface lo inet loopback\n' >root/etc/network/interfaces
    printf 'allow-hotplug eth0\niface eth0 inet dhcp\n' >>root/etc/network/interfaces
    chroot root useradd --create-home --shell /bin/bash vagrant
    echo 'vagrant ALL=(ALL) NOPASSWD:ALL' >root/etc/sudoers.d/vagrant
    chmod 440 root/etc/sudoers.d/vagrant
    install -d -m 700 root/home/vagrant/.ssh
    install -m 600 "$key" root/home/vagrant/.ssh/authorized_keys
    chroot root chown -R vagrant:vagrant /home/vagrant/.ssh
    echo 'UseDNS no' >root/etc/ssh/sshd_config.d/vagrant.conf
    chroot root systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer

    mkdir -p root/boot/extlinux
    # The clock: what an emulated processor has by default costs an exit of the guest each time it is read.
    cat >root/boot/extlinux/extlinux.conf <<'CONF'
DEFAULT linux
PROMPT 0
TIMEOUT 1
LABEL linux
  LINUX /vmlinuz
  INITRD /initrd.img
  APPEND root=LABEL=root ro console=ttyS0,115200 net.ifnames=0 mitigations=off tsc=reliable clocksource=tsc
CONF
    extlinux --install root/boot/extlinux >/dev/null 2>&1 || fail "extlinux could not be installed"
}

# The very step that provisioning repeats, where it then finds everything in place.
install_checkout() {
    local left_out=("${LEFT_OUT[@]/#/--exclude=}")
    mkdir -p root/vagrant wheels
    rsync -a "${left_out[@]}" "$CHECKOUT/" root/vagrant/
    "$CHECKOUT/.venv/bin/python" -m pip --disable-pip-version-check --no-input download --quiet --quiet --no-deps \
        --only-binary :all: --require-hashes --dest wheels -r "$CHECKOUT/requirements.lock"

    mount -t proc proc root/proc
    mount --bind /dev root/dev
    mount --bind wheels root/mnt
    cp /etc/resolv.conf root/etc/resolv.conf
    printf '#!/bin/sh\nexit 101\n' >root/usr/sbin/policy-rc.d # no service starts in here
    chmod 755 root/usr/sbin/policy-rc.d
    env -i HOME=/root LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin PIP_NO_INDEX=1 PIP_FIND_LINKS=/mnt \
        chroot root /vagrant/dev install </dev/null
    chroot root /vagrant/.venv/bin/python -m compileall -q /vagrant/controlplane/qos2 /vagrant/deploy
    chroot root chown -R vagrant:vagrant /vagrant
    rm -rf root/usr/sbin/policy-rc.d root/etc/resolv.conf root/var/lib/apt/lists/*
    chroot root apt-get clean
    umount root/mnt root/dev root/proc
}

pack() {
    fstrim root || step "the image keeps what was deleted in it: its file system cannot be trimmed"
    umount root
    qemu-img convert -O qcow2 disk.raw box.img
    rm disk.raw
    printf '{"provider":"libvirt","format":"qcow2","virtual_size":%s}\n' "$DISK_GIB" >metadata.json
    printf 'Vagrant.configure("2") { |config| }\n' >Vagrantfile
    tar cf "$1" metadata.json Vagrantfile box.img
}

main() {
    local box work
    (($# == 1)) || fail "usage: build-box.sh BOX"
    require
    if [[ -z ${QOS_BOX_WORK:-} ]]; then
        box=$(realpath "$1")
        mkdir -p "$(dirname "$box")"
        work=$(mktemp -d "$box.XXXXXX")
        chmod 755 "$work" # apt downloads as another user
        # Mounts are gone with the inner script's namespace, so this removes files of the image only.
        # shellcheck disable=SC2064 # as it is now
        trap "rm -rf '$work'" EXIT
        QOS_BOX_WORK=$work setpriv --pdeathsig TERM unshare --mount --propagation private "$SCRIPT" "$box"
        mv "$work/complete.box" "$box"
        return
    fi
    cd "$QOS_BOX_WORK"
    step "an empty disk"
    make_disk
    step "a minimal Debian"
    install_system
    step "boot loader, network, user"
    configure_system
    step "./dev install"
    install_checkout
    step "packing"
    pack complete.box
    step "$(du -h complete.box | cut -f 1) complete"
}

main "$@"
