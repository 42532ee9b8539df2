#!/usr/bin/env bash
# Puts Debian's docker-registry, an OCI registry to test image pulls against, where the tests look for it:
#   ${XDG_CACHE_HOME:-$HOME/.cache}/trellis/bin/docker-registry
#
# The package is unpacked, not installed: installing it would start a service on port 5000 of this machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./debian.sh

bin_dir="${XDG_CACHE_HOME:-$HOME/.cache}/trellis/bin"
registry="$bin_dir/docker-registry"

if [ -x "$registry" ] && "$registry" --version >/dev/null 2>&1; then
    echo "setup: $registry is there"
    exit 0
fi

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
mkdir -p "$bin_dir"

if command -v docker-registry >/dev/null; then
    cp "$(command -v docker-registry)" "$work/docker-registry"
else
    echo "setup: fetching Debian's docker-registry"
    # apt's own user may not write here, and says so; as root it fetches all the same.
    fetch() { (cd "$work" && apt-get download -qq -o APT::Sandbox::User=root docker-registry); }
    command -v apt-get >/dev/null || fail "docker-registry is missing, and this is no Debian: put one on the PATH"
    fetch 2>/dev/null || { apt_update docker-registry; fetch; } \
        || fail "docker-registry cannot be fetched: see apt-get's message above (network or sources)"
    dpkg-deb -x "$work"/docker-registry_*.deb "$work/unpacked"
    cp "$work/unpacked/usr/bin/docker-registry" "$work/docker-registry"
fi
"$work/docker-registry" --version >&2 || fail "docker-registry does not run on this machine"
# Copied beside its place and renamed, so that a run of tests never sees half a file.
cp "$work/docker-registry" "$registry.$$"
chmod 755 "$registry.$$"
mv "$registry.$$" "$registry"
echo "setup: $registry is there now"
