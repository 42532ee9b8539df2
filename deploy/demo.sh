#!/usr/bin/env bash
# `make demo`: builds Trellis and the guests, starts a node, deploys examples/orders, and uses it as a customer would.
# At the end the node goes on running, and how to stop it is printed.
#
#   DEMO_EXIT=1   stop everything at the end
#   DEMO_NATS=1   on a real nats-server, with examples/orders/app-nats.yaml, instead of the embedded default
#
# Everything is kept in one temporary directory and listens on free ports of 127.0.0.1. Processes are ended by their id.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$HOME/.cache/trellis/target}"

trellis="$CARGO_TARGET_DIR/debug/trellis"
app=examples/orders/app.yaml
[ -z "${DEMO_NATS:-}" ] || app=examples/orders/app-nats.yaml
work="$(mktemp -d "${TMPDIR:-/tmp}/trellis-demo.XXXXXX")"
node_pid='' nats_pid=''
. deploy/demo-steps.sh

stop() {
    local pid
    for pid in $node_pid $nats_pid; do
        kill "$pid" 2>/dev/null || continue
        # `wait` takes no limit: after 40 s without an end it is ended by force.
        (sleep 40; kill -9 "$pid" 2>/dev/null) & local watchdog=$!
        wait "$pid" 2>/dev/null || true
        kill "$watchdog" 2>/dev/null || true
        wait "$watchdog" 2>/dev/null || true
    done
    rm -rf "$work"
}

ended() {
    local code=$?
    [ "$code" != 0 ] || return 0
    printf '\n==> FAILED: %s\n' "$current" >&2
    if [ -s "$work/node.log" ]; then
        printf 'the last lines of the node:\n' >&2
        tail -n 20 "$work/node.log" >&2
    fi
    stop
    exit 1
}
trap ended EXIT
trap 'exit 130' INT TERM

# The manifest, listening on a port that is free here.
manifest() { sed -E "s|^([[:space:]]*address:[[:space:]]*).*|\\1127.0.0.1:$http_port|" "$app"; }

step 'set up'
deploy/setup/setup.sh rust tools ${DEMO_NATS:+nats}

step 'build trellis and the guests'
cargo build --locked -p trellis-cli
examples/build.sh rust

if [ -n "${DEMO_NATS:-}" ]; then
    step 'start nats-server'
    nats_port=$(free_port)
    nats_server="${NATS_SERVER:-${XDG_CACHE_HOME:-$HOME/.cache}/trellis/bin/nats-server}"
    setsid "$nats_server" -a 127.0.0.1 -p "$nats_port" -js -sd "$work/nats" >"$work/nats.log" 2>&1 &
    nats_pid=$!
    await 10 listens "$nats_port" || fail "nats-server does not listen on port $nats_port: $(tail -n 3 "$work/nats.log")"
    echo "nats://127.0.0.1:$nats_port"
fi

step 'start a node'
http_port=$(free_port)
node=("$trellis" up --data-dir "$work/data" --admin 127.0.0.1:0)
[ -z "$nats_pid" ] || node+=(--nats "nats://127.0.0.1:$nats_port" --bootstrap)
printf '$ trellis %s\n' "${node[*]:1}"
setsid "${node[@]}" >"$work/node.out" 2>"$work/node.log" </dev/null &
node_pid=$!
started() { grep -q '^admin ' "$work/node.out" || ! kill -0 "$node_pid"; }
await 30 started || fail 'the node did not start within 30 s'
kill -0 "$node_pid" 2>/dev/null || fail 'the node ended at once'
cat "$work/node.out"
TRELLIS_ADMIN=$(awk '$1 == "admin" { print $2 }' "$work/node.out")
export TRELLIS_ADMIN

step "validate $app"
show "$trellis" validate "$app"

step "deploy it, with HTTP on 127.0.0.1:$http_port"
echo "\$ trellis deploy $app"
# By way of standard input, because the address was changed; paths in it are relative to where it is deployed from.
manifest | (cd "$(dirname "$app")" && "$trellis" deploy - --wait 60s)
api="http://127.0.0.1:$http_port"

step 'place two orders, and read them back'
request() {
    local word shown=curl
    for word in "$@"; do
        [[ $word != *[\ \"]* ]] || word="'$word'"
        shown+=" $word"
    done
    printf '$ %s\n' "$shown"
    curl --silent --show-error --fail-with-body --max-time 10 "$@"
    echo
}
order() { request -H 'content-type: application/json' -d "$1" "$api/orders"; }
order '{"customer": "Ada", "lines": [{"article": "tea", "quantity": 2, "price_cents": 450}]}'
order '{"customer": "Grace", "lines": [{"article": "cup", "quantity": 6, "price_cents": 800}]}'
request "$api/orders"

step 'each order published orders.placed, which woke the invoice component'
invoiced() { curl --silent --max-time 5 "$api/orders/2" | grep -q '"invoice": *{'; }
await 15 invoiced || fail 'order 2 had no invoice within 15 s'
request "$api/orders/2"

step 'what the components logged'
show "$trellis" logs orders

step 'run the report'
show "$trellis" invoke orders/report --top 3

step 'what runs where'
show "$trellis" status orders

if [ -n "${DEMO_EXIT:-}" ]; then
    step 'stop everything'
    stop
    echo 'stopped'
    exit 0
fi
cat <<END

==> the node goes on running
try     curl $api/orders
        TRELLIS_ADMIN=$TRELLIS_ADMIN $trellis logs -f orders
stop    kill $node_pid $nats_pid; rm -r $work
END
