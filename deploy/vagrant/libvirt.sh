# shellcheck shell=bash
#
# libvirt's system daemon for run.sh, which sources this: started where nothing else runs it, and whatever it and
# Vagrant made on the host taken away again. Uses CACHE, LOCAL_BOX and fail.

readonly POOL=default # where vagrant-libvirt puts the disks

# What of the host the machines could change, as lines of text.
host_state() {
    local setting
    for setting in net.ipv4.ip_forward net.ipv6.conf.all.forwarding net.ipv6.conf.default.forwarding; do
        echo "$setting = $(sysctl -n "$setting" 2>/dev/null || echo none)"
    done
    ip -o link show type bridge | awk '{print "bridge " $2}'
    ip -o link show type tun | awk '{print "tun " $2}'
    nft --stateless list ruleset
    # By name, not by number: daemons that ran before may have been started anew.
    ps -eo comm=,args= | awk '$1 ~ /^(libvirtd|virtlogd|virtlockd)$/ {print "process " $1}
        $1 ~ /^(dnsmasq|qemu-system)/ && /libvirt/ {print "process " $0}' | sort
    losetup --list --noheadings --output BACK-FILE | sort | sed 's/^/loop /'
    awk -v under="$CACHE" 'index($2, under) == 1 {print "mount " $2}' /proc/mounts
    find /sys/fs/cgroup -maxdepth 2 -name 'machine*' -printf 'cgroup %p\n' | sort
    find /var/lib/libvirt/images -type f -printf 'image %p\n' 2>/dev/null | sort
}

# Before the host is looked at: the copy of the box that a killed run left, which may be half of one and would be taken
# for whole. Machines that start from it find no system.
remove_half_copies() {
    rm -f /var/lib/libvirt/images/"$LOCAL_BOX"_vagrant_box_image_*
    virsh --quiet pool-refresh "$POOL" >/dev/null 2>&1 || true # nothing runs yet, or there is no such pool
}

start_libvirt() {
    libvirt_is_ours=false
    if ! virsh --quiet version >/dev/null 2>&1; then
        if [[ -d /run/systemd/system ]]; then
            systemctl start libvirtd
        else
            libvirt_is_ours=true # without run.sh's lock (9), which would outlive it in them
            setsid virtlogd >"$CACHE/virtlogd.log" 2>&1 </dev/null 9>&- &
            virtlogd_pid=$!
            setsid libvirtd >"$CACHE/libvirtd.log" 2>&1 </dev/null 9>&- &
            libvirtd_pid=$!
        fi
        await_libvirt
    fi
    domains_before=$(virsh --quiet list --all --name)
    networks_before=$(virsh --quiet net-list --all --name)
    pools_before=$(virsh --quiet pool-list --all --name)
    volumes_before=$(volumes)
}

await_libvirt() {
    local tries=0
    until virsh --quiet version >/dev/null 2>&1; do
        ((tries++ < 60)) || fail "libvirtd does not answer: $CACHE/libvirtd.log"
        sleep 0.5
    done
}

volumes() { virsh --quiet vol-list "$POOL" 2>/dev/null | awk '{print $1}' || true; } # without that pool: none

# Names in the first list that are not in the second.
added() { comm -23 <(sort <<<"$1") <(sort <<<"$2") | sed '/^$/d'; }

restore_libvirt() {
    local name
    [[ -n ${libvirt_is_ours:-} ]] || return 0 # it was never asked
    # Machines of which Vagrant knows nothing, as it was interrupted while it made them.
    for name in $(added "$(virsh --quiet list --all --name)" "${domains_before:-}" | grep -xE 'qos2_(sender|receiver)'); do
        virsh --quiet destroy "$name" >/dev/null 2>&1 || true # it may not run
        virsh --quiet undefine "$name" >/dev/null || true
    done
    # Their disks, and the copy of the box that vagrant-libvirt makes and never removes.
    for name in $(added "$(volumes)" "${volumes_before:-}" | grep -E '^qos2_(sender|receiver)|_vagrant_box_image_'); do
        virsh --quiet vol-delete --pool "$POOL" "$name" >/dev/null || true
    done
    for name in $(added "$(virsh --quiet net-list --all --name)" "${networks_before:-}"); do
        virsh --quiet net-destroy "$name" >/dev/null 2>&1 || true # it may be stopped already
        virsh --quiet net-undefine "$name" >/dev/null || true
    done
    for name in $(added "$(virsh --quiet pool-list --all --name)" "${pools_before:-}"); do
        virsh --quiet pool-destroy "$name" >/dev/null 2>&1 || true # as above
        virsh --quiet pool-undefine "$name" >/dev/null || true
    done
    if $libvirt_is_ours; then
        stop_libvirt
    fi
}

# Only for a daemon that was started here: rules of one that runs on are its own.
stop_libvirt() {
    local name setting
    # Those that begin with the daemon: they outlive it.
    for name in $(virsh --quiet net-list --name); do
        virsh --quiet net-destroy "$name" >/dev/null || true
    done
    kill "$libvirtd_pid" "$virtlogd_pid" 2>/dev/null || true # one that has failed is gone already
    wait "$libvirtd_pid" "$virtlogd_pid" 2>/dev/null || true # their status says only how they were ended
    remove_libvirt_chains
    find /sys/fs/cgroup -maxdepth 2 -name 'machine*' -type d | while read -r name; do
        grep -qxF "cgroup $name" "$CACHE/host.before" || find "$name" -depth -type d -exec rmdir {} + || true
    done
    for setting in net.ipv4.ip_forward net.ipv6.conf.all.forwarding; do
        name=$(sed -n "s/^$setting = //p" "$CACHE/host.before")
        [[ $name == none ]] || sysctl --quiet --write "$setting=$name"
    done
}

# libvirt leaves its chains when it ends, and with them tables that may not have been there.
remove_libvirt_chains() {
    local family table chain handle
    nft list tables | while read -r _ family table; do
        if ! grep -q "^table $family $table {" "$CACHE/host.before"; then
            [[ $(nft list table "$family" "$table") != *"chain LIBVIRT_"* ]] || nft delete table "$family" "$table"
            continue
        fi
        nft --handle list table "$family" "$table" | awk '/^\tchain/ {chain = $2} /jump LIBVIRT_/ {print chain, $NF}' |
            while read -r chain handle; do
                nft delete rule "$family" "$table" "$chain" handle "$handle"
            done
        for chain in $(nft list table "$family" "$table" | sed -n 's/^\tchain \(LIBVIRT_[A-Z]*\) {/\1/p'); do
            nft flush chain "$family" "$table" "$chain"
        done
        for chain in $(nft list table "$family" "$table" | sed -n 's/^\tchain \(LIBVIRT_[A-Z]*\) {/\1/p'); do
            nft delete chain "$family" "$table" "$chain"
        done
        # Those that its first rule made; one that somebody else uses by now is not empty, and stays.
        comm -13 <(chains_before "$family" "$table") <(nft list table "$family" "$table" | chains "$family" "$table") |
            while read -r chain; do
                nft delete chain "$family" "$table" "$chain" 2>/dev/null || true
            done
    done
}

# Of one table in a ruleset on standard input, sorted.
chains() {
    awk -v table="table $1 $2 {" '$0 == table {inside = 1} $0 == "}" {inside = 0} inside && /^\tchain/ {print $2}' | sort
}

chains_before() { chains "$@" <"$CACHE/host.before"; }
