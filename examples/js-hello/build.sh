#!/bin/sh
# Makes hello.js a component: `build.sh OUT.wasm`. `examples/build.sh` calls it when something here has changed. Other
# examples in JavaScript give it their own file and folder: `build.sh OUT.wasm FILE.js FOLDER`.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
script=${2:-$here/hello.js}
folder=${3:-$here}
wit="$here/../../sdk/wit/deps"
tools=$(sh "$here/../../deploy/setup/js.sh")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# The JavaScript engine inside is built for WASI 0.2.10 and finds nothing of 0.2.12. Between the two nothing was taken
# away, and what was added is not used here, so the same text serves under the older number.
mkdir -p "$work/wit/deps"
cp "$folder/wit/world.wit" "$work/wit/"
cp "$wit/trellis-messaging-0.1.0.wit" "$work/wit/deps/"
for package in cli clocks filesystem http io random sockets; do
    sed 's/0\.2\.12/0.2.10/g' "$wit/wasi-$package-0.2.12.wit" >"$work/wit/deps/wasi-$package.wit"
done

"$tools/componentize-js" "$script" --wit "$work/wit" --world-name "$(basename "$folder")" --out "$work/made.wasm"
mv "$work/made.wasm" "$1"
