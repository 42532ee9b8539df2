#!/bin/sh
# Installs componentize-py, which makes Python a component, as examples/py-hello/requirements.txt names it, into the
# virtual environment
#   ${XDG_CACHE_HOME:-$HOME/.cache}/trellis/venv/componentize-py
#
# Running this again changes nothing while the version is the same. Prints the folder of its commands.
set -eu

requirements=$(CDPATH='' cd -- "$(dirname -- "$0")/../../examples/py-hello" && pwd)/requirements.txt
version=$(sed -n 's/^componentize-py==//p' "$requirements")

fail() {
    echo "python.sh: $1" >&2
    exit 1
}

[ -n "${XDG_CACHE_HOME:-}${HOME:-}" ] || fail "neither XDG_CACHE_HOME nor HOME is set: set one of them"
[ -n "$version" ] || fail "$requirements names no version of componentize-py"
venv="${XDG_CACHE_HOME:-$HOME/.cache}/trellis/venv/componentize-py"

if [ "$("$venv/bin/componentize-py" --version 2>/dev/null || true)" != "componentize-py $version" ]; then
    command -v python3 >/dev/null 2>&1 || fail "python3 is missing: install Python 3.10 or later (Debian: python3)"
    python3 -c 'import ensurepip, venv' 2>/dev/null \
        || fail "python3 cannot make virtual environments with pip: install what adds that (Debian: python3-venv)"
    echo "python.sh: installing componentize-py $version" >&2
    python3 -m venv "$venv" >&2 || fail "no virtual environment could be made in $venv: see the message above"
    "$venv/bin/python3" -m pip install --quiet --disable-pip-version-check --only-binary=:all: \
        --requirement "$requirements" >&2 \
        || fail "pip could not install componentize-py $version: see its message above (network or index)"
    "$venv/bin/componentize-py" --version >&2 || fail "componentize-py does not run on this machine"
fi
echo "$venv/bin"
