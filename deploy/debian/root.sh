#!/usr/bin/env bash
#
# Makes .cache/deb/root: a minimal Debian of this machine's release with what the packages of build.sh depend on, taken
# from their own control data, and nothing else. tests/package installs them there, which shows that what they depend on
# is all that they need. Needs root, mmdebstrap, a Debian host and its package sources. Made once, and anew when the
# dependencies change.

set -euo pipefail

SCRIPT=$(readlink -f "${BASH_SOURCE[0]}")
readonly OUTPUT=${SCRIPT%/deploy/debian/*}/.cache/deb

step() { printf '==> deb: %s (%s s)\n' "$1" "$SECONDS" >&2; }

fail() {
    printf 'root: %s\n' "$@" >&2
    exit 1
}

# By name, the first of alternatives; what is built here, and versions, are dpkg's matter when they are installed.
dependencies() {
    local package
    for package in "$OUTPUT"/qos2_*.deb "$OUTPUT"/libqwave*.deb; do
        dpkg-deb --field "$package" Depends
    done | tr ',' '\n' | sed 's/|.*//; s/(.*//; s/:any//; s/ //g' | grep -v -e '^libqwave' -e '^$' | sort -u
}

# The host's own sources of a release, one line each, whatever format they are written in.
sources() {
    # shellcheck disable=SC2016 # the format is apt's
    apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 'Origin: Debian' |
        awk -v suite="$1" '$3 == suite || index($3, suite "-") == 1' | grep -v -e '-backports ' | sort -u
}

make_root() {
    local include=$1 suite lines
    # shellcheck source=/dev/null # the host's own
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    mapfile -t lines < <(sources "$suite")
    ((${#lines[@]})) || fail "apt knows no Debian source for $suite" "run: apt-get update"
    rm -rf "$OUTPUT/root" "$OUTPUT/root.stamp"
    # Nothing in here needs /sys, and not every host lets it be mounted.
    mmdebstrap --quiet --variant=minbase --mode=root --skip=chroot/mount/sys --include="$include" \
        --dpkgopt=force-unsafe-io "$suite" "$OUTPUT/root" "${lines[@]}" </dev/null
    echo "$include" >"$OUTPUT/root.stamp"
}

main() {
    local include
    ((EUID == 0)) || fail "needs root"
    command -v mmdebstrap >/dev/null || fail "mmdebstrap is not here" "./dev deb --test installs it"
    compgen -G "$OUTPUT/qos2_*.deb" >/dev/null || fail "no packages in $OUTPUT" "run deploy/debian/build.sh first"
    include=$(dependencies | paste -sd ,)
    if [[ -d $OUTPUT/root && -f $OUTPUT/root.stamp && $(<"$OUTPUT/root.stamp") == "$include" ]]; then
        return
    fi
    step "a minimal Debian with $include"
    make_root "$include"
    step "$(du -sh "$OUTPUT/root" | cut -f 1) complete"
}

main "$@"
