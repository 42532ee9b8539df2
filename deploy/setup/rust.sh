#!/usr/bin/env bash
# The standard library for guests (the wasm32-wasip2 target of the Rust that builds Trellis), rustfmt and clippy.
set -euo pipefail

target=wasm32-wasip2

fail() {
    echo "setup: $*" >&2
    exit 1
}

command -v cargo >/dev/null || fail "cargo is missing: install Rust 1.95 or later with rustup (https://rustup.rs)"

for component in rustfmt clippy; do
    subcommand=${component/rustfmt/fmt}
    cargo "$subcommand" --version >/dev/null 2>&1 && continue
    command -v rustup >/dev/null || fail "$component is missing, and rustup to add it: install Rust with rustup"
    echo "setup: adding $component"
    rustup component add "$component" || fail "rustup could not add $component: see its message above"
done

library="$(rustc --print sysroot)/lib/rustlib/$target/lib"
if [ -d "$library" ]; then
    echo "setup: the $target target is there"
    exit 0
fi
command -v rustup >/dev/null || fail "rustup is missing, and $library with it: install Rust with rustup, or add the target as your distribution does"
echo "setup: adding the $target target"
rustup target add "$target" || fail "rustup could not add $target: see its message above (network or proxy settings)"
