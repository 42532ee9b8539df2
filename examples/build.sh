#!/bin/sh
# Builds every example and test guest as a Wasm component and copies them to examples/build/*.wasm.
#
# CARGO_TARGET_DIR, where it is set, says where the build's own files go.
set -eu

examples=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
target=wasm32-wasip2
target_dir="${CARGO_TARGET_DIR:-$HOME/.cache/trellis/target}/guests"

if ! command -v cargo >/dev/null 2>&1; then
    echo "build.sh: cargo is missing. Install Rust from https://rustup.rs, then run this again." >&2
    exit 1
fi

# Without its standard library rustc finds no `std` for the target. A Rust without rustup may have it all the same.
libraries="$(rustc --print sysroot)/lib/rustlib/$target/lib"
if [ ! -d "$libraries" ]; then
    if ! command -v rustup >/dev/null 2>&1; then
        echo "build.sh: the Rust standard library for $target is missing and there is no rustup to add it." >&2
        echo "          Install it with what installed Rust, such as a package named rust-std-$target." >&2
        exit 1
    fi
    echo "build.sh: adding the Rust target $target"
    if ! rustup target add "$target"; then
        echo "build.sh: the Rust target $target is missing and could not be added. When there is a network again:" >&2
        echo "          rustup target add $target" >&2
        exit 1
    fi
fi

cargo build --release --target "$target" --manifest-path "$examples/Cargo.toml" --target-dir "$target_dir"

mkdir -p "$examples/build"
for wasm in "$target_dir/$target/release"/*.wasm; do
    cp "$wasm" "$examples/build/"
done
echo "build.sh: built $(ls "$examples/build" | tr '\n' ' ')"
