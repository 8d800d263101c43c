#!/usr/bin/env bash
#
# Builds the Debian packages of this checkout, uncommitted work included, and has lintian judge them.
#
#   deploy/debian/build.sh
#
# The packages are for the release and the architecture of this machine; they lie in .cache/deb. Needs neither root nor
# .venv; of the network only a Python package index, for what requirements.lock pins (docs/packaging.md says why).
# What has been built from the same sources already is not built again.

set -euo pipefail

SCRIPT=$(readlink -f "${BASH_SOURCE[0]}")
readonly CHECKOUT=${SCRIPT%/deploy/debian/*}
readonly OUTPUT=$CHECKOUT/.cache/deb
readonly TREE=$OUTPUT/source
readonly PYTHON=/usr/bin/python3 # the packages are for it, and hold modules compiled for its version

readonly EXPORTED=(CHANGELOG.md LICENSE README.md bpf clients/c controlplane deploy docs pyproject.toml requirements.lock)
readonly LEFT_OUT=(__pycache__ '*.egg-info' clients/c/build .mypy_cache .ruff_cache)

# What Debian lacks, or has only in versions that are too old. bcc, numpy and pygments are Debian's own.
readonly FOR_CLIENTS=(msgspec)
readonly FOR_COMMANDS=(markdown-it-py mdurl prometheus-client pyroute2 rich)
readonly FOR_BUILDING=(setuptools)

step() { printf '==> deb: %s (%s s)\n' "$1" "$SECONDS" >&2; }

fail() {
    printf 'build: %s\n' "$@" >&2
    exit 1
}

require() {
    local program
    for program in dpkg-buildpackage dh dh_python3 lintian; do
        command -v "$program" >/dev/null || fail "$program is not here" "./dev deb installs it"
    done
    "$PYTHON" -c 'import ensurepip, numpy' 2>/dev/null ||
        fail "python3-numpy or python3-venv is not here" "./dev deb installs them"
}

last_change() {
    git -C "$CHECKOUT" log -1 --format=%cD 2>/dev/null || date -R -r "$CHECKOUT/CHANGELOG.md"
}

export_sources() {
    rm -rf "$TREE"
    mkdir -p "$TREE"
    # Byte by byte the same sources make the same archive: its sum tells whether there is anything to build.
    # Times within packages are those of the last commit, whatever was checked out when.
    tar -C "$CHECKOUT" "${LEFT_OUT[@]/#/--exclude=}" --sort=name --owner=0 --group=0 --numeric-owner --mtime="$(last_change)" \
        -cf "$OUTPUT/source.tar" "${EXPORTED[@]}"
    tar -C "$TREE" -xf "$OUTPUT/source.tar"
    mv "$TREE/deploy/debian/debian" "$TREE/debian"
}

# The sources, and for what the packages are made.
fingerprint() { { sha256sum <"$OUTPUT/source.tar" && cat /etc/os-release && "$PYTHON" --version; } | sha256sum; }

is_built() {
    local changes
    [[ -f $OUTPUT/stamp && $(<"$OUTPUT/stamp") == "$(fingerprint)" ]] || return
    for changes in "$OUTPUT"/qos2_*.changes; do
        (cd "$OUTPUT" && sed -n '/^Checksums-Sha256:/,/^[^ ]/s/^ \(\S*\) \S* /\1  /p' "$changes" |
            sha256sum --quiet --check -) >/dev/null 2>&1
    done
}

# The lines of requirements.lock that pin these, hashes included.
pinned() {
    awk -v names=" $* " '
        /^[a-z0-9]/ { split($1, pin, "=="); taken = index(names, " " pin[1] " ") }
        /^ *#/ { next }
        taken' "$CHECKOUT/requirements.lock"
}

# pip of a .venv is not needed: every Python that can make one brings its own.
pip() {
    local bundled
    # Debian keeps it elsewhere than Python does.
    bundled=$("$PYTHON" -c 'import ensurepip, glob
print(*glob.glob(str(ensurepip._WHEEL_PKG_DIR or ensurepip.__path__[0] + "/_bundled") + "/pip-*.whl"))')
    "$PYTHON" -I "$bundled/pip" --disable-pip-version-check --no-input "$@"
}

fetch_wheels() {
    local folder=$1 wanted=$OUTPUT/$1.txt
    shift
    pinned "$@" >"$wanted.new"
    (($(grep -c == "$wanted.new") == $#)) || fail "requirements.lock does not pin all of: $*"
    if ! cmp -s "$wanted.new" "$wanted" || [[ ! -d $OUTPUT/wheels/$folder ]]; then
        rm -rf "$OUTPUT/wheels/$folder"
        pip download --quiet --quiet --no-deps --only-binary :all: --require-hashes \
            --dest "$OUTPUT/wheels/$folder" -r "$wanted.new"
        mv "$wanted.new" "$wanted"
    fi
    rm -f "$wanted.new"
    mkdir -p "$TREE/wheels"
    cp -r "$OUTPUT/wheels/$folder" "$TREE/wheels/"
}

# The release is part of the version, so that the packages for the next one are an upgrade of these.
write_changelog() {
    local version release
    version=$("$PYTHON" -c 'import sys, tomllib; print(tomllib.load(sys.stdin.buffer)["project"]["version"])' \
        <"$CHECKOUT/pyproject.toml")
    # shellcheck source=/dev/null # the host's own
    release=$(. /etc/os-release && echo "$ID${VERSION_ID:-}")
    cat >"$TREE/debian/changelog" <<CHANGES
qos2 ($version-1~$release) unstable; urgency=medium

  * Built from a checkout; what changed for users is in changelog.gz.

 -- $(sed -n 's/^Maintainer: //p' "$TREE/debian/control")  $(last_change)
CHANGES
}

show_steps() {
    local line
    while IFS= read -r line; do
        if [[ $line =~ ^\ +(debian/rules\ (override|execute_after)_)?dh_(auto_build|auto_test|auto_install|python3|builddeb) ]]; then
            printf '    %s (%s s)\n' "${BASH_REMATCH[3]}" "$SECONDS" >&2
        fi
    done
}

# What debhelper does is the progress; everything that it says is in the log.
build_packages() {
    local log=$OUTPUT/build.log
    # In a fresh tree there is nothing to clean.
    if ! (cd "$TREE" && dpkg-buildpackage --build=binary --no-sign --no-pre-clean 2>&1) | tee "$log" | show_steps; then
        tail -n 30 "$log" >&2
        fail "dpkg-buildpackage failed" "everything it said: $log"
    fi
}

main() {
    (($# == 0)) || fail "usage: build.sh"
    require
    mkdir -p "$OUTPUT"
    exec {lock}>"$OUTPUT/lock"
    flock "$lock"
    export_sources
    if is_built; then
        step "built from these sources already"
    else
        rm -f "$OUTPUT"/*.deb "$OUTPUT"/*.changes "$OUTPUT"/*.buildinfo "$OUTPUT/stamp"
        step "fetching what requirements.lock pins"
        fetch_wheels client "${FOR_CLIENTS[@]}"
        fetch_wheels commands "${FOR_COMMANDS[@]}"
        fetch_wheels building "${FOR_BUILDING[@]}"
        step "dpkg-buildpackage"
        write_changelog
        build_packages
        step "lintian"
        lintian --allow-root --fail-on error --tag-display-limit 0 "$OUTPUT"/qos2_*.changes
        fingerprint >"$OUTPUT/stamp"
    fi
    rm -rf "$TREE" "$OUTPUT/source.tar"
    step "done"
    ls -1 "$OUTPUT"/*.deb
}

main "$@"
