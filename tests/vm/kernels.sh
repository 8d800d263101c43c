#!/usr/bin/env bash
#
# Finds a kernel among the packages of the distribution and unpacks it, with its headers, into .cache/vm/kernels:
# downloaded, never installed. Kernels of other Debian releases come through an apt root of its own below .cache/vm:
# from the machine's own mirror, checked with the installed keys, and without a change to the machine's sources.
#
#   tests/vm/kernels.sh KERNEL      the release it came to, as 6.1.0-56-amd64, on standard output
#
# KERNEL is a version as 6.1, `newest`, or a package as linux-image-6.12-amd64. Status 3: it cannot be had; then
# standard output says why, in one line.

set -euo pipefail
export LC_ALL=C # what apt says, and one order for all that sorts
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."

readonly CACHE=$PWD/.cache/vm
readonly APT_ROOT=$CACHE/apt
readonly KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
# Where Debian's kernels are: the security suites have those of each release, backports the newest. See docs/kernels.md.
readonly SUITES=(bullseye-security bookworm-security trixie-security trixie-backports)
readonly LISTS_HOURS=12 # how old the lists may be

say() { printf '==> %s\n' "$*" >&2; }

unavailable() {
    printf '%s\n' "$*"
    exit 3
}

# ---- the apt root ------------------------------------------------------------------------------------

# "ADDRESS RELEASE" of each source that the machine's own apt has. Asks for addresses only: the network is not used.
machine_sources() { apt-get update --print-uris | sed -nE "s#^'(.*)dists/([^/']+)/InRelease'.*#\1 \2#p"; }

# A line of sources for each suite, from the mirror that serves the machine's own release and its security updates.
# Nothing on a machine that is not Debian's. Only the distribution itself has RELEASE-updates beside RELEASE.
sources() {
    local suite uri own known
    own=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    grep -qx 'ID=debian' /etc/os-release || return 0
    known=$(machine_sources)
    for suite in "${SUITES[@]}"; do
        case $suite in
        *-security) uri=$(sed -n "s/ $own-security\$//p" <<<"$known") ;;
        *) uri=$(sed -n "s/ $own-updates\$//p" <<<"$known") ;;
        esac
        uri=${uri%%$'\n'*}
        [[ -z $uri ]] || echo "deb [arch=amd64 signed-by=$KEYRING] $uri $suite main"
    done
}

# The machine's own settings (a proxy, for instance) stay in force, but for its folders and hooks.
write_apt_root() {
    mkdir -p "$APT_ROOT"/{state/lists/partial,cache/archives/partial}
    : >"$APT_ROOT/status"
    sources >"$APT_ROOT/sources.list"
    echo "Dir::Etc::Main \"$APT_ROOT/apt.conf\";" >"$APT_ROOT/first.conf"
    {
        [[ ! -e /etc/apt/apt.conf ]] || echo '#include "/etc/apt/apt.conf";'
        cat <<CONF
#clear APT::Update;
#clear DPkg;
APT::Architecture "amd64";
APT::Architectures "amd64";
APT::Sandbox::User "root";
Acquire::Languages "none";
Dir::Etc::SourceList "$APT_ROOT/sources.list";
Dir::Etc::SourceParts "-";
Dir::Etc::Preferences "-";
Dir::Etc::PreferencesParts "-";
Dir::State "$APT_ROOT/state";
Dir::State::Status "$APT_ROOT/status";
Dir::Cache "$APT_ROOT/cache";
CONF
    } >"$APT_ROOT/apt.conf"
}

# Refreshes the lists where they are old; what was there stays where that fails.
update_lists() {
    local log=$APT_ROOT/update.log
    [[ -z $(find "$APT_ROOT/updated" -mmin -$((LISTS_HOURS * 60)) 2>/dev/null) ]] || return 0
    write_apt_root
    [[ -s $APT_ROOT/sources.list ]] || return 0
    say "kernel packages: asking for the lists of ${SUITES[*]}"
    if APT_CONFIG=$APT_ROOT/first.conf timeout 300 apt-get -qq update >"$log" 2>&1 </dev/null; then
        touch "$APT_ROOT/updated"
    else
        say "kernel packages: $(grep -m1 '^[EW]:' "$log" || echo 'apt-get update took five minutes')"
    fi
}

# ---- which package -----------------------------------------------------------------------------------

# Runs an apt program over the root of its own, or over the machine's packages (`with_apt own|machine apt-cache ...`).
with_apt() {
    local where=$1
    shift
    if [[ $where == own ]]; then
        APT_CONFIG=$APT_ROOT/first.conf "$@"
    else
        "$@"
    fi
}

# Releases of which there are an image and headers, newest first.
releases() {
    local flavour='(amd64|generic)' number='[0-9]+(\.[0-9]+)+(-[0-9]+|\+[a-z0-9]+)'
    comm -12 \
        <(sed -nE "s/^linux-image-($number-$flavour)\$/\1/p" <<<"$1" | sort -u) \
        <(sed -nE "s/^linux-headers-($number-$flavour)\$/\1/p" <<<"$1" | sort -u) | sort -Vr
}

# "own 6.1.0-56-amd64": where KERNEL is to be had, and its release. Nothing where it is not.
find_release() {
    local kernel=$1 where names found
    for where in own machine; do
        [[ $where == machine || -s $APT_ROOT/sources.list ]] || continue
        names=$(with_apt "$where" apt-cache pkgnames linux- 2>/dev/null) || continue
        case $kernel in
        newest) found=$(releases "$names") ;;
        linux-image-*) found=$(releases "$names" | grep -xF -- "$(release_of "$where" "$kernel")") ;;
        *) found=$(releases "$names" | grep -E -- "^${kernel//./\\.}[.+-]") ;;
        esac || continue
        if [[ -n $found ]]; then
            echo "$where ${found%%$'\n'*}"
            return
        fi
    done
}

# The release of a kernel package, which may be one that only depends on the newest.
release_of() {
    local where=$1 package=$2 real
    real=$(with_apt "$where" apt-cache depends --important "$package" 2>/dev/null |
        sed -nE 's/^ *Depends: linux-image-([0-9][^ ]*)$/\1/p') || true
    real=${real%%$'\n'*}
    echo "${real:-${package#linux-image-}}"
}

# ---- unpacking ---------------------------------------------------------------------------------------

# The packages that together are this kernel, as far as there are such: newer images come in parts, Debian's headers
# in two halves.
packages_of() {
    local release=$1 names=$2 part
    for part in "image-$release" "binary-$release" "base-$release" "modules-$release" \
        "headers-$release" "headers-${release%-*}-common" "headers-${release%-*}"; do
        grep -xF "linux-$part" <<<"$names" || true
    done
}

# One layout for all: boot/vmlinuz-RELEASE, lib/modules/RELEASE, and there `build` and `source` of the headers.
arrange() {
    local folder=$1 release=$2 modules headers
    [[ -e $folder/lib ]] || ln -s usr/lib "$folder/lib"
    modules=$folder/lib/modules/$release headers=$folder/usr/src/linux-headers-$release
    if [[ ! -e $folder/boot/vmlinuz-$release ]]; then
        mkdir -p "$folder/boot"
        cp "$modules/vmlinuz" "$folder/boot/vmlinuz-$release"
    fi
    depmod -b "$folder" "$release"
    # Relative to where the modules really are, so that the checkout may be moved.
    ln -sfn "$(realpath --relative-to="$(realpath "$modules")" "$headers")" "$modules/build"
    if [[ -d ${headers%-*}-common ]]; then
        headers=${headers%-*}-common
    fi
    ln -sfn "$(realpath --relative-to="$(realpath "$modules")" "$headers")" "$modules/source"
}

unpack() {
    local where=$1 release=$2 folder=$CACHE/kernels/$2 log=$CACHE/kernels/$2.log packages deb
    mapfile -t packages < <(packages_of "$release" "$(with_apt "$where" apt-cache pkgnames linux-)")
    say "Linux $release: downloading and unpacking ${packages[*]}"
    rm -rf "$folder"
    mkdir -p "$folder/debs"
    if ! (cd "$folder/debs" && with_apt "$where" timeout 900 apt-get -qq -o APT::Sandbox::User=root download "${packages[@]}") \
        >"$log" 2>&1 </dev/null; then
        unavailable "Linux $release cannot be downloaded: $(tail -n 1 "$log")"
    fi
    for deb in "$folder"/debs/*.deb; do
        dpkg-deb -x "$deb" "$folder"
    done
    rm -r "$folder/debs"
    arrange "$folder" "$release"
    touch "$folder/complete"
}

main() {
    local kernel=$1 found='' where release
    command -v apt-get >/dev/null || unavailable "kernels come as packages of Debian or Ubuntu, and here is no apt-get"
    mkdir -p "$CACHE/kernels"
    # One at a time: what another process is fetching need not be fetched twice.
    exec 9>"$CACHE/kernels/lock"
    flock --timeout 1800 9 || unavailable "another process has been fetching kernels for half an hour"
    update_lists
    found=$(find_release "$kernel")
    [[ -n $found ]] || unavailable "no package of it, with its headers, in what apt can reach"
    read -r where release <<<"$found"
    [[ -e $CACHE/kernels/$release/complete ]] || unpack "$where" "$release"
    echo "$release"
}

(($# == 1)) || {
    echo "usage: tests/vm/kernels.sh KERNEL" >&2
    exit 2
}
main "$1"
