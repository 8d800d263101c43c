#!/usr/bin/env bash
#
# Makes /opt/qos2 in the image: a virtual environment without pip, of the distribution's Python, which sees its bcc.
#
#   install.sh releases    what the daemon needs of requirements.lock, checked by its hashes
#   install.sh package     this checkout, built without the network
#
# In two steps, so that a change of the sources does not fetch the releases again.

set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"

# Of the releases that requirements.lock pins; the others are for tests.
readonly RUNTIME=(markdown-it-py mdurl msgspec numpy prometheus-client pygments pyroute2 rich)
readonly BUILD=(setuptools)
readonly PREFIX=/opt/qos2

# The lines of these projects in requirements.lock, with their hashes.
pinned() {
    awk -v wanted=" $* " '/^[a-z]/ { split($1, name, "=="); on = index(wanted, " " name[1] " ") } on' requirements.lock
}

# pip for another environment than its own.
pip() { build/bin/python -m pip --disable-pip-version-check --no-input --python "$@"; }

releases() {
    python3 -m venv build
    python3 -m venv --system-site-packages --without-pip "$PREFIX"
    pinned "${BUILD[@]}" >build.lock
    pinned "${RUNTIME[@]}" >runtime.lock
    local install=(install --quiet --no-deps --only-binary :all: --require-hashes)
    pip build/bin/python "${install[@]}" -r build.lock
    pip "$PREFIX/bin/python" "${install[@]}" -r runtime.lock
}

package() {
    pip build/bin/python wheel --quiet --no-deps --no-index --no-build-isolation --wheel-dir wheel .
    pip "$PREFIX/bin/python" install --quiet --no-deps --no-index wheel/*.whl
}

case ${1:-} in
releases | package) "$1" ;;
*)
    echo "usage: install.sh releases | package" >&2
    exit 2
    ;;
esac
