#!/usr/bin/env bash
# Everything that CI checks, step by step; `deploy/test.sh format lints` does only those. The first step that fails ends
# it and is named. Nothing is built twice: lints and tests share the target directory, and guests have their own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$HOME/.cache/trellis/target}"
export CARGO_TERM_PROGRESS_WHEN=never
# Kept incremental state would outgrow everything else in the cache, and a run begins with other sources than the last one.
export CARGO_INCREMENTAL=0
# The binary of the last run that passed here: the older half of a lattice that is rolled over to this build's.
tested="${XDG_CACHE_HOME:-$HOME/.cache}/trellis/tested/trellis"

setup() { deploy/setup/setup.sh; }

format() {
    cargo fmt --all --check
    cargo fmt --all --check --manifest-path examples/Cargo.toml
}

lints() { cargo clippy --locked --workspace --all-targets -- -D warnings; }

guests() { examples/build.sh; }

tests() {
    if [ -x "$tested" ]; then
        export TRELLIS_TEST_PREVIOUS="${TRELLIS_TEST_PREVIOUS:-$tested}"
    else
        echo "no earlier run passed on this machine: a lattice of two builds is not tested (deploy/torture.sh mixed does it)"
    fi
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest run --locked --workspace
    else
        cargo test --locked --workspace --all-targets
    fi
}

doctests() { cargo test --locked --workspace --doc; }

# That they still run. Their figures mean nothing here; HTTP, overload and instructions need more tools than tests do.
benches() {
    cargo test --locked --workspace --bench promises -- quick queue brokers cold density alive call control
}

# wadm's own parser must take what ours takes. It has a lock file of its own, so that its old dependencies stay apart.
compare() {
    if [ -f lattice/manifest/compare/Cargo.toml ]; then
        cargo test --locked --manifest-path lattice/manifest/compare/Cargo.toml
    fi
}

# The apps' own tests; that they run on a node is tested in node/cli.
examples() {
    if [ -x examples/test.sh ]; then
        examples/test.sh
    fi
}

keep() { install -D "$CARGO_TARGET_DIR/debug/trellis" "$tested"; }

dependencies() {
    if cargo deny --version >/dev/null 2>&1; then
        cargo deny check bans licenses sources
    else
        echo "cargo-deny is not installed; skipped"
    fi
}

steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(setup format lints guests tests benches doctests compare examples dependencies keep)

started=$SECONDS
current=nothing
trap '[ $? = 0 ] || printf "\n==> %s FAILED after %d s\n" "$current" $((SECONDS - started)) >&2' EXIT
for current in "${steps[@]}"; do
    [ "$(type -t "$current")" = function ] || { echo "no step is called $current" >&2; exit 2; }
    printf '\n==> %s (at %d s)\n' "$current" $((SECONDS - started))
    "$current"
done
printf '\n==> all good after %d s\n' $((SECONDS - started))
