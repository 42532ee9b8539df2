#!/bin/sh
# Makes app.py a component: `build.sh OUT.wasm`. `examples/build.sh` calls it when something here has changed. Other
# examples in Python give it their own folder: `build.sh OUT.wasm FOLDER`.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
folder=${2:-$here}
wit="$here/../../sdk/wit/deps"
tools=$(sh "$here/../../deploy/setup/python.sh")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

mkdir -p "$work/wit/deps" "$work/app"
cp "$folder/wit/world.wit" "$work/wit/"
cp "$wit/trellis-messaging-0.1.0.wit" "$work/wit/deps/"
for package in cli clocks filesystem http io random sockets; do
    cp "$wit/wasi-$package-0.2.12.wit" "$work/wit/deps/"
done
# Everything on Python's path goes into the component, so there is nothing on it but the app.
cp "$folder/app.py" "$work/app/"
mkdir -p "$work/no-packages/lib/python3/site-packages"

VIRTUAL_ENV="$work/no-packages" "$tools/componentize-py" --quiet --wit-path "$work/wit" --world "$(basename "$folder")" \
    componentize app --python-path "$work/app" --output "$work/app.wasm"
mv "$work/app.wasm" "$1"
