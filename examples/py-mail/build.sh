#!/bin/sh
# Makes app.py a component: `build.sh OUT.wasm`. `examples/build.sh` calls it when something here has changed.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
"$here/../py-hello/build.sh" "$1" "$here"
