#!/usr/bin/env bash
# What CI has no time for: the same tests as there, longer and with more of everything. `torture.sh` does all of it,
# `torture.sh simulate spinning` only those. Each is a function here and one word in the list below it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$HOME/.cache/trellis/target}"
export CARGO_TERM_PROGRESS_WHEN=never

# A test of the `trellis` binary, by name, without a limit on its time.
it() { cargo test --locked -p trellis-cli --test it -- --exact --nocapture "$@"; }

# Thousands of seeds of the deciding parts, of leases and of delivery, hundreds on openraft.
simulate() {
    TRELLIS_SIMULATE_SEEDS="${SIMULATE_SEEDS:-5000}" cargo test --locked -p trellis-placement simulation -- --nocapture
    TRELLIS_SIMULATE_SEEDS="${SIMULATE_LEASES_SEEDS:-5000}" cargo test --locked -p trellis-placement leases -- --nocapture
    TRELLIS_SIMULATE_SEEDS="${SIMULATE_DELIVERY_SEEDS:-1000}" \
        cargo test --locked -p trellis-provider --lib delivery::simulation -- --nocapture
    TRELLIS_SIMULATE_SEEDS="${SIMULATE_RAFT_SEEDS:-300}" cargo test --locked -p trellis-raft simulate -- --nocapture
}

# A thousand guests that compute for ever, for minutes: no node is declared lost.
spinning() {
    TRELLIS_TORTURE_SPINNING="${SPINNING:-1000}" TRELLIS_TORTURE_SECONDS="${SPINNING_SECONDS:-180}" \
        it load::guests_that_compute_for_ever_make_no_node_seem_lost
}

# 20,000 messages per broker while nodes and brokers are killed; TRELLIS_TORTURE is how many.
brokers() {
    TRELLIS_TORTURE="${TRELLIS_TORTURE:-20000}" cargo nextest run --locked --profile torture -p trellis-cli torture
}

# A lattice of the previous commit's binary that is rolled over to this one's. PREVIOUS names another commit.
mixed() {
    local commit folder
    commit=$(git rev-parse "${PREVIOUS:-HEAD^}")
    folder="${XDG_CACHE_HOME:-$HOME/.cache}/trellis/previous"
    if [ "$(cat "$folder/commit" 2>/dev/null)" != "$commit" ]; then
        rm -rf "$folder/source" "$folder/commit"
        mkdir -p "$folder/source"
        git archive "$commit" | tar -x -C "$folder/source"
        CARGO_TARGET_DIR="$folder/target" cargo build --locked --manifest-path "$folder/source/Cargo.toml" -p trellis-cli
        echo "$commit" > "$folder/commit"
    fi
    TRELLIS_TEST_PREVIOUS="$folder/target/debug/trellis" it mixed::a_lattice_of_the_previous_version_rolls_over
}

all=(simulate spinning brokers mixed)

steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=("${all[@]}")
for step in "${steps[@]}"; do
    [[ " ${all[*]} " == *" $step "* ]] || { echo "nothing is called $step; there are: ${all[*]}" >&2; exit 2; }
    printf '\n==> %s\n' "$step"
    "$step"
done
