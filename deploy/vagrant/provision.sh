#!/usr/bin/env bash
#
# Makes a machine of the Vagrantfile what its name says; Vagrant runs it as root inside. May be repeated.
#
#   deploy/vagrant/provision.sh sender|receiver SENDER_ADDRESS RECEIVER_ADDRESS
#
# The sender is a real installation (install.sh) and has the command `qos2-e2e`. The receiver has nothing of QoS2, only
# the service that captures what arrives (receiver.py).

set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."

readonly ROLE=$1 SENDER=$2 RECEIVER=$3
readonly UNITS=/etc/systemd/system
readonly RECEIVER_PACKAGES=(ethtool python3 tcpdump)

name_machines() {
    # Not by Vagrant, which would restart the network for it.
    hostnamectl set-hostname "$ROLE"
    sed -i "/ # qos2-e2e\$/d; s/^127\.0\.1\.1 .*/127.0.1.1 $ROLE/" /etc/hosts
    printf '%s # qos2-e2e\n' "$SENDER sender" "$RECEIVER receiver" >>/etc/hosts
}

provision_sender() {
    mkdir -p "$UNITS/qos2d.service.d"
    # The datapath is compiled at the start: seconds, but a minute on an emulated processor.
    printf '[Service]\nTimeoutStartSec=300\n' >"$UNITS/qos2d.service.d/slow-machine.conf"
    deploy/vagrant/install.sh
    .venv/bin/python -m compileall -q deploy
    cat >/usr/local/bin/qos2-e2e <<SCRIPT
#!/bin/sh
export PYTHONPATH='$PWD/deploy'
exec '$PWD/.venv/bin/python' -m vagrant.e2e --to $RECEIVER "\$@"
SCRIPT
    chmod 755 /usr/local/bin/qos2-e2e
}

provision_receiver() {
    # shellcheck disable=SC2016 # the format is dpkg-query's
    if [[ $(dpkg-query -W -f '${db:Status-Status}\n' "${RECEIVER_PACKAGES[@]}" 2>/dev/null |
        grep -cx installed) != "${#RECEIVER_PACKAGES[@]}" ]]; then
        apt-get -qq -o DPkg::Lock::Timeout=300 update
        DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 \
            install --no-install-recommends "${RECEIVER_PACKAGES[@]}" >/dev/null
    fi
    cat >"$UNITS/qos2-e2e-receiver.service" <<UNIT
[Unit]
Description=Receiving end of qos2-e2e: sinks and a capture, at the sender's order
After=network-online.target
Wants=network-online.target

[Service]
ExecStart=/usr/bin/python3 -m vagrant.receiver --listen $RECEIVER
Environment=PYTHONPATH=$PWD/deploy PYTHONDONTWRITEBYTECODE=1
# The address may appear later than this service.
Restart=on-failure
RestartSec=2s

[Install]
WantedBy=multi-user.target
UNIT
    systemctl daemon-reload
    systemctl --quiet enable qos2-e2e-receiver
    systemctl restart qos2-e2e-receiver
}

name_machines
"provision_$ROLE"
