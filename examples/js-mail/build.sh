#!/bin/sh
# Makes mail.js a component: `build.sh OUT.wasm`. `examples/build.sh` calls it when something here has changed.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
"$here/../js-hello/build.sh" "$1" "$here/mail.js" "$here"
