#!/usr/bin/env bash
#
# Installs this checkout as a service of this machine: packages and .venv (`./dev install`), configuration, group,
# systemd unit, and the command `qos2`. May be repeated: it then brings the service up to date and restarts it.
#
#   sudo deploy/vagrant/install.sh

set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."

readonly UNITS=/etc/systemd/system

fail() {
    printf 'install: %s\n' "$@" >&2
    exit 1
}

((EUID == 0)) || fail "needs root"
[[ -d /run/systemd/system ]] || fail "systemd does not run here"
case $PWD/ in
/home/* | /root/* | /run/user/*) fail "the service cannot read what is below /home, /root and /run/user" \
    "put the checkout elsewhere, as /opt/qos2" ;;
esac

./dev install
# The service may not write into the checkout: without this, each start would translate every module anew.
.venv/bin/python -m compileall -q controlplane/qos2

getent group qos2 >/dev/null || groupadd --system qos2
# An administrator's own configuration stays.
[[ -e /etc/qos2/qos2d.toml ]] || install -D -m 644 deploy/qos2d.toml /etc/qos2/qos2d.toml
install -m 644 deploy/systemd/qos2d.service "$UNITS/qos2d.service"
mkdir -p "$UNITS/qos2d.service.d"
cat >"$UNITS/qos2d.service.d/checkout.conf" <<CONF
# The daemon of the checkout in $PWD.
[Service]
ExecStart=
ExecStart="$PWD/.venv/bin/qos2d" --config /etc/qos2/qos2d.toml
CONF
ln -sfn "$PWD/.venv/bin/qos2" /usr/local/bin/qos2

systemctl daemon-reload
systemctl --quiet enable qos2d
if ! systemctl restart qos2d; then
    journalctl --no-pager --lines 40 --unit qos2d >&2
    fail "qos2d does not start"
fi
