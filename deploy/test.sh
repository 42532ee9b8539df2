#!/usr/bin/env bash
# Everything that CI checks, step by step; `deploy/test.sh format lints` does only those. The first step that fails ends
# it and is named. Nothing is built twice: lints and tests share the target directory, and guests have their own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$HOME/.cache/trellis/target}"
export CARGO_TERM_PROGRESS_WHEN=never

setup() { deploy/setup/setup.sh; }

format() {
    cargo fmt --all --check
    cargo fmt --all --check --manifest-path examples/Cargo.toml
}

lints() { cargo clippy --locked --workspace --all-targets -- -D warnings; }

guests() { examples/build.sh; }

tests() {
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest run --locked --workspace
    else
        cargo test --locked --workspace --all-targets
    fi
}

doctests() { cargo test --locked --workspace --doc; }

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

dependencies() {
    if cargo deny --version >/dev/null 2>&1; then
        cargo deny check bans licenses sources
    else
        echo "cargo-deny is not installed; skipped"
    fi
}

steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(setup format lints guests tests doctests compare examples dependencies)

started=$SECONDS
current=nothing
trap '[ $? = 0 ] || printf "\n==> %s FAILED after %d s\n" "$current" $((SECONDS - started)) >&2' EXIT
for current in "${steps[@]}"; do
    [ "$(type -t "$current")" = function ] || { echo "no step is called $current" >&2; exit 2; }
    printf '\n==> %s (at %d s)\n' "$current" $((SECONDS - started))
    "$current"
done
printf '\n==> all good after %d s\n' $((SECONDS - started))
