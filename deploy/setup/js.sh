#!/bin/sh
# Installs the npm packages that make JavaScript a component, as examples/js-hello/package-lock.json names them, to
#   ${XDG_CACHE_HOME:-$HOME/.cache}/trellis/js/<checksum of what is asked for>
#
# Running this again changes nothing. Prints the folder of their commands.
set -eu

project=$(CDPATH='' cd -- "$(dirname -- "$0")/../../examples/js-hello" && pwd)
node_min=20

fail() {
    echo "js.sh: $1" >&2
    exit 1
}

[ -n "${XDG_CACHE_HOME:-}${HOME:-}" ] || fail "neither XDG_CACHE_HOME nor HOME is set: set one of them"
command -v node >/dev/null 2>&1 \
    || fail "node is missing: install Node.js $node_min or later (https://nodejs.org, or a package named nodejs)"
found=$(node --version)
major=${found#v}
[ "${major%%.*}" -ge "$node_min" ] || fail "node is $found: install Node.js $node_min or later (https://nodejs.org)"
command -v npm >/dev/null 2>&1 || fail "npm is missing: install it with Node.js, or a package named npm"

asked=$(cat "$project/package.json" "$project/package-lock.json" | cksum | tr ' ' '-')
root="${XDG_CACHE_HOME:-$HOME/.cache}/trellis/js"
tools="$root/$asked"

if [ ! -d "$tools" ]; then
    echo "js.sh: installing the npm packages of examples/js-hello" >&2
    mkdir -p "$root"
    work=$(mktemp -d "$root/new.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM
    cp "$project/package.json" "$project/package-lock.json" "$project/.npmrc" "$work/"
    # Not `npm ci`: it refuses a lock file without the packages of other platforms. Checksums are compared all the same.
    (cd "$work" && npm install --ignore-scripts --no-audit --no-fund --loglevel=error >&2) \
        || fail "npm could not install the packages: see its message above (network, registry or proxy settings)"
    # Renamed when it is whole; another run may have been quicker, which is as good.
    [ -d "$tools" ] || mv "$work" "$tools" || fail "cannot write $tools"
fi
echo "$tools/node_modules/.bin"
