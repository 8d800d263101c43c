#!/usr/bin/env bash
#
# Builds the image of qos2d from this checkout, by buildah, podman or docker, whichever is here first.
#
#   deploy/container/build.sh [TAG]               on debian:bookworm-slim of a registry
#   BASE=IMAGE deploy/container/build.sh [TAG]    on another Debian, 12 or later
#   BASE=host deploy/container/build.sh [TAG]     on one made of this Debian host's own package sources, with no registry:
#                                                 by mmdebstrap and buildah, as root
#
# BUILD_OPTIONS goes to the builder as it is: --layers, --volume=/etc/pip.conf:/etc/pip.conf:ro for another index.

set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."

readonly FOLDER=deploy/container
readonly HOST_BASE=localhost/qos2-base

fail() {
    printf 'build: %s\n' "$@" >&2
    exit 1
}

builder() {
    local name
    for name in buildah podman docker; do
        if command -v "$name" >/dev/null; then
            echo "$name"
            return
        fi
    done
    fail "none of buildah, podman and docker is here" "Debian and Ubuntu: apt-get install --no-install-recommends buildah"
}

# The host's own sources of this release, one line each, whatever format they are written in.
sources() {
    # shellcheck disable=SC2016 # the format is apt's
    apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 'Origin: Debian' |
        awk -v suite="$1" '$3 == suite || index($3, suite "-") == 1' | grep -v -e '-backports ' | sort -u
}

# A minimal Debian as an image. What it has installed is as new as the sources, so it is made anew each time.
make_base() {
    local suite lines container
    ((EUID == 0)) || fail "BASE=host needs root (mmdebstrap)"
    command -v mmdebstrap >/dev/null || fail "mmdebstrap is not here" "apt-get install --no-install-recommends mmdebstrap"
    [[ $1 == buildah ]] || fail "BASE=host needs buildah" "apt-get install --no-install-recommends buildah"
    # shellcheck source=/dev/null # the host's own
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    mapfile -t lines < <(sources "$suite")
    ((${#lines[@]})) || fail "apt knows no Debian source for $suite" "run: apt-get update"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    chmod 755 "$work" # apt downloads as another user
    # Nothing in here needs /sys, and not every host lets it be mounted.
    mmdebstrap --quiet --variant=minbase --mode=root --skip=chroot/mount/sys --include=ca-certificates \
        --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        "$suite" "$work/base.tar" "${lines[@]}" </dev/null
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$work/base.tar" / >/dev/null
    buildah commit --quiet --rm "$container" "$HOST_BASE" >/dev/null
}

main() {
    local tag=${1:-qos2} with options=(-f "$FOLDER/Containerfile" -t "${1:-qos2}")
    if (($# > 1)) || [[ $tag == -* ]]; then
        fail "usage: build.sh [TAG]"
    fi
    with=$(builder)
    case ${BASE:-} in
    '') ;;
    host)
        make_base "$with"
        options+=(--build-arg "BASE=$HOST_BASE")
        ;;
    *) options+=(--build-arg "BASE=$BASE") ;;
    esac
    # Docker finds the list of what to leave out by its name. HEALTHCHECK is not in the OCI's format of images.
    if [[ $with != docker ]]; then
        options+=(--ignorefile "$FOLDER/Containerfile.dockerignore" --format docker)
    fi
    # shellcheck disable=SC2206 # options, in words
    options+=(${BUILD_OPTIONS:-})
    "$with" build "${options[@]}" .
}

main "$@"
