#!/bin/sh
# Builds the examples and test guests as Wasm components, to examples/build/*.wasm: `build.sh` all of them,
# `build.sh rust` those in Rust, which need nothing but Rust; `js` and `python` are the others.
#
# CARGO_TARGET_DIR, where it is set, says where the Rust build's own files go. Guests in JavaScript and Python take long
# to build, so they are kept in ${XDG_CACHE_HOME:-$HOME/.cache}/trellis/guests under a checksum of all they are made of.
set -eu

examples=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(dirname -- "$examples")

fail() {
    echo "build.sh: $1" >&2
    exit 1
}

rust() {
    target=wasm32-wasip2
    target_dir="${CARGO_TARGET_DIR:-$HOME/.cache/trellis/target}/guests"
    command -v cargo >/dev/null 2>&1 || fail "cargo is missing: install Rust (https://rustup.rs)"
    rust_target
    cargo build --release --target "$target" --manifest-path "$examples/Cargo.toml" --target-dir "$target_dir"
    for wasm in "$target_dir/$target/release"/*.wasm; do
        cp "$wasm" "$examples/build/"
    done
}

# Without its standard library rustc finds no `std` for the target. A Rust without rustup may have it all the same.
rust_target() {
    libraries="$(rustc --print sysroot)/lib/rustlib/$target/lib"
    [ ! -d "$libraries" ] || return 0
    command -v rustup >/dev/null 2>&1 \
        || fail "the Rust standard library for $target is missing and there is no rustup to add it.
          Install it with what installed Rust, such as a package named rust-std-$target."
    echo "build.sh: adding the Rust target $target"
    rustup target add "$target" \
        || fail "the Rust target $target is missing and could not be added. When there is a network again:
          rustup target add $target"
}

js() {
    scripted js-hello js_hello "$root/deploy/setup/js.sh"
    scripted js-mail js_mail "$root/deploy/setup/js.sh"
}

python() {
    scripted py-hello py_hello "$root/deploy/setup/python.sh"
    scripted py-mail py_mail "$root/deploy/setup/python.sh"
}

# Builds the guest of a folder by its own build.sh, unless the same was built before. The folder, the guest's name, and
# the script that fetches its tools.
scripted() {
    [ -n "${XDG_CACHE_HOME:-}${HOME:-}" ] || fail "neither XDG_CACHE_HOME nor HOME is set: set one of them"
    kept="${XDG_CACHE_HOME:-$HOME/.cache}/trellis/guests"
    wasm="$kept/$2-$(checksum "$examples/$1" "$3" "$root/sdk/wit/deps").wasm"
    if [ ! -f "$wasm" ]; then
        echo "build.sh: building $1; this takes about a minute"
        mkdir -p "$kept"
        "$examples/$1/build.sh" "$wasm.$$" || fail "$1 is not built: see the message above"
        # Renamed when it is whole, so that nothing ever takes half a file.
        mv "$wasm.$$" "$wasm"
    fi
    cp "$wasm" "$examples/build/$2.wasm"
}

# The checksum of all files below some paths. What was installed or is only read by people does not count.
checksum() {
    if command -v sha256sum >/dev/null 2>&1; then sum=sha256sum; else sum='shasum -a 256'; fi
    find "$@" -name node_modules -prune -o -type f ! -name '*.md' ! -name '*.yaml' -print \
        | LC_ALL=C sort | while IFS= read -r file; do $sum <"$file"; done | $sum | cut -c 1-16
}

[ $# -gt 0 ] || set -- rust js python
mkdir -p "$examples/build"
for part in "$@"; do
    case "$part" in
        rust | js | python) "$part" ;;
        *) fail "nothing is called $part: rust, js and python are" ;;
    esac
done
echo "build.sh: built $(ls "$examples/build" | tr '\n' ' ')"
