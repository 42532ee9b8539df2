#!/bin/sh
# Makes app.py a component: `build.sh OUT.wasm`. `examples/build.sh` calls it when something here has changed.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
wit="$here/../../sdk/wit/deps"
tools=$(sh "$here/../../deploy/setup/python.sh")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

mkdir -p "$work/wit/deps" "$work/app"
cp "$here/wit/world.wit" "$work/wit/"
for package in cli clocks filesystem http io random sockets; do
    cp "$wit/wasi-$package-0.2.12.wit" "$work/wit/deps/"
done
# Everything on Python's path goes into the component, so there is nothing on it but the app.
cp "$here/app.py" "$work/app/"
mkdir -p "$work/no-packages/lib/python3/site-packages"

VIRTUAL_ENV="$work/no-packages" "$tools/componentize-py" --quiet --wit-path "$work/wit" --world py-hello \
    componentize app --python-path "$work/app" --output "$work/app.wasm"
mv "$work/app.wasm" "$1"
