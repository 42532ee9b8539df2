#!/bin/sh
# Builds the pinned `wasmtime` command, which `make bench` measures Trellis beside, from crates.io:
#   ${XDG_CACHE_HOME:-$HOME/.cache}/trellis/peers/bin/wasmtime
#
# It takes some minutes, once: running this again changes nothing when the pinned version is there. What `wasmtime serve`
# does not need is left out; how fast it serves is not touched by that. Prints the path.
set -eu

version=48.0.8

fail() {
    echo "wasmtime.sh: $1" >&2
    exit 1
}

[ -n "${XDG_CACHE_HOME:-}${HOME:-}" ] || fail "neither XDG_CACHE_HOME nor HOME is set: set one of them"
root="${XDG_CACHE_HOME:-$HOME/.cache}/trellis/peers"
command="$root/bin/wasmtime"

if [ -x "$command" ] && "$command" --version 2>/dev/null | grep -q "^wasmtime $version"; then
    echo "$command"
    exit 0
fi

command -v cargo >/dev/null 2>&1 || fail "cargo is missing: install Rust (https://rustup.rs)"
cargo install wasmtime-cli --version "$version" --locked --force --root "$root" --no-default-features \
    --features run,serve,compile,cranelift,pooling-allocator,parallel-compilation \
    --features component-model,component-model-async,gc,gc-drc,threads,addr2line,backtrace >&2 \
    || fail "wasmtime-cli $version is not installed: see the message above"
echo "$command"
