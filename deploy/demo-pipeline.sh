#!/usr/bin/env bash
# `make demo-pipeline`: examples/pipeline on three real nodes and a real nats-server. 10,000 orders, a payment service that
# takes few at a time, the leader killed in the middle of it, a version that takes itself back, and one poison order found,
# put right and replayed. What it promises is checked: it ends with an error where a promise does not hold.
#
#   DEMO_ORDERS=N   so many orders (10000)
#   DEMO_EXIT=1     stop everything at the end
#
# Everything is kept in one temporary directory and listens on free ports of 127.0.0.1. Processes are ended by their id.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$HOME/.cache/trellis/target}"

trellis="$CARGO_TARGET_DIR/debug/trellis"
orders="${DEMO_ORDERS:-10000}"
# So many requests the payment service takes at a time: the manifest's `max_in_flight`, which counts for all nodes together.
cap=4
work="$(mktemp -d "${TMPDIR:-/tmp}/trellis-pipeline.XXXXXX")"
declare -A pids=()
. deploy/demo-steps.sh

stop() {
    local name
    for name in "${!pids[@]}"; do
        kill -9 "${pids[$name]}" 2>/dev/null || true
        wait "${pids[$name]}" 2>/dev/null || true
    done
    rm -rf "$work"
}

ended() {
    local code=$?
    [ "$code" != 0 ] || return 0
    printf '\n==> FAILED: %s\n' "$current" >&2
    tail -n 15 "$work"/*.log >&2 2>/dev/null || true
    stop
}
trap ended EXIT
trap 'exit 130' INT TERM

start_node() {
    local name=$1
    shift
    setsid "$trellis" up --data-dir "$work/$name" --admin 127.0.0.1:0 --nats "nats://127.0.0.1:$nats_port" \
        --secrets examples/pipeline/secrets --label "name=$name" "$@" >"$work/$name.out" 2>>"$work/$name.log" </dev/null &
    pids[$name]=$!
    await 60 grep -q '^admin ' "$work/$name.out" || fail "node $name did not start within 60 s"
}

admin() { awk '$1 == "admin" { print $2 }' "$work/$1.out"; }
node_id() { awk '$1 == "node" { print $2 }' "$work/$1.out"; }
stats() { curl --silent --max-time 5 "http://127.0.0.1:$payment_port/stats"; }
field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

# The manifest as version $1, with this run's address of the payment service and the values of the two coupons.
manifest() {
    sed -e "s|127.0.0.1:9900|127.0.0.1:$payment_port|" -e "s|file://../build|file://$PWD/examples/build|" \
        -e "s|^  annotations:|&\n    version: $1|" \
        -e "s|coupon.SPRING: \"10\"|coupon.SPRING: \"$2\"|" -e "s|coupon.FRIENDS: \"0\"|coupon.FRIENDS: \"$3\"|" \
        examples/pipeline/app-nats.yaml >"$work/$1.yaml"
}

# A line of the chart: how far it is, and how many were at the payment service at a time since the last line.
chart() {
    local seen charged peak
    seen=$(stats)
    charged=$(field charged <<<"$seen")
    peak=$(field peak <<<"$seen")
    printf '%6s charged  |%-*s| %s of %s at a time\n' "$charged" "$cap" "$(printf '%*s' "$peak" '' | tr ' ' '#')" "$peak" "$cap"
    [ "$peak" -le "$cap" ] || fail "the payment service had $peak requests at a time"
    [ "$charged" -ge "$1" ]
}

chart_until() {
    local limit=$((SECONDS + 600))
    until chart "$1"; do
        [ $SECONDS -lt $limit ] || fail "$1 orders were not charged within 600 s"
        sleep 2
    done
}

letters() { "$trellis" dead-letters list pipeline -o json; }
count() { python3 -c 'import json, sys; print(len(json.load(sys.stdin)["dead_letters"]))'; }

step 'set up, build trellis and the guests'
deploy/setup/setup.sh rust tools nats
cargo build --locked -p trellis-cli
examples/build.sh rust

step "start nats-server, three nodes, and a payment service that takes $cap requests at a time"
nats_port=$(free_port)
nats_server="${NATS_SERVER:-${XDG_CACHE_HOME:-$HOME/.cache}/trellis/bin/nats-server}"
setsid "$nats_server" -a 127.0.0.1 -p "$nats_port" -js -sd "$work/nats" >"$work/nats.log" 2>&1 &
pids[nats]=$!
await 20 listens "$nats_port" || fail 'nats-server does not listen'
payment_port=$(free_port)
setsid examples/pipeline/payment.py --port "$payment_port" --at-most "$cap" --slow-ms 20 >"$work/payment.log" 2>&1 &
pids[payment]=$!
await 20 listens "$payment_port" || fail 'the payment service does not listen'
start_node one --bootstrap
start_node two
start_node three
TRELLIS_ADMIN=$(admin three)
export TRELLIS_ADMIN
voters() { [ "$("$trellis" nodes -o json | python3 -c 'import json, sys; print(sum(n["role"] == "voter" for n in json.load(sys.stdin)))')" = 3 ]; }
await 60 voters || fail 'the three nodes did not become voters within 60 s'
show "$trellis" nodes

step 'deploy examples/pipeline/app-nats.yaml'
manifest v1 10 0
show "$trellis" deploy "$work/v1.yaml" --wait 3m

step 'why is charge where it is?'
show "$trellis" explain pipeline/charge

step "place $orders orders"
show examples/pipeline/orders.py --nats "127.0.0.1:$nats_port" --count "$orders"
chart_until $((orders / 4))

step 'kill -9 the leader'
leader_id=$("$trellis" nodes -o json | python3 -c 'import json, sys; print(next(n["id"] for n in json.load(sys.stdin) if n["leader"]))')
for name in one two three; do
    [ "$(node_id $name)" != "$leader_id" ] || leader=$name
done
kill -9 "${pids[$leader]}"
wait "${pids[$leader]}" 2>/dev/null || true
echo "node $leader ($leader_id) is gone"
unset "pids[$leader]"
for name in one two three; do
    [ "$name" = "$leader" ] || TRELLIS_ADMIN=$(admin "$name")
done
chart_until "$orders"
seen=$(stats)
echo "all $orders orders are charged, none twice; for $(field repeats <<<"$seen") that were under way on the killed node the service was asked again"
[ "$(field charged <<<"$seen")" = "$orders" ] || fail 'more was charged than was ordered'
[ "$(field refused <<<"$seen")" = 0 ] || fail 'the payment service had to refuse requests'

step 'the node comes back'
start_node "$leader"
all_there() { [ "$("$trellis" nodes -o json | python3 -c 'import json, sys; print(sum(n["state"] == "ready" for n in json.load(sys.stdin)))')" = 3 ]; }
await 60 all_there || fail 'the node was not taken back within 60 s'
show "$trellis" nodes

step 'a broken version: the coupon SPRING takes one part in 0 off'
manifest v2 0 0
examples/pipeline/orders.py --nats "127.0.0.1:$nats_port" --first $((orders + 1)) --count 400 --coupon SPRING --per-second 20 &
pids[orders]=$!
show "$trellis" deploy "$work/v2.yaml" --wait 2m || echo "(exit $?)"
taken_back() { "$trellis" history pipeline | grep -qE 'v2 +rolled.back'; }
await 60 taken_back || fail 'the broken version was not taken back within 60 s'
show "$trellis" history pipeline
wait "${pids[orders]}"
unset "pids[orders]"
chart_until $((orders + 400))
show "$trellis" dead-letters list pipeline
[ "$(letters | count)" = 0 ] || fail 'the broken version made dead letters'

step 'a poison order: the coupon FRIENDS takes one part in 0 off, in every version so far'
show "$trellis" publish orders "{\"number\": $((orders + 401)), \"customer\": \"Grace\", \"cents\": 450, \"coupon\": \"FRIENDS\"}"
one_letter() { [ "$(letters | count)" = 1 ]; }
await 60 one_letter || fail 'the poison order was not put aside within 60 s'
id=$(letters | python3 -c 'import json, sys; print(json.load(sys.stdin)["dead_letters"][0]["id"])')
show "$trellis" dead-letters show pipeline "$id"

step 'the coupon is put right, and the order replayed'
manifest v3 10 2
show "$trellis" deploy "$work/v3.yaml" --wait 2m
show "$trellis" dead-letters replay pipeline "$id"
chart_until $((orders + 401))
show "$trellis" triggers
[ "$(letters | count)" = 0 ] || fail 'the replayed order is still among the dead letters'

if [ -n "${DEMO_EXIT:-}" ]; then
    step 'stop everything'
    stop
    echo 'stopped'
    exit 0
fi
cat <<END

==> the nodes go on running
try     TRELLIS_ADMIN=$TRELLIS_ADMIN $trellis triggers -f
        examples/pipeline/orders.py --nats 127.0.0.1:$nats_port --first $((orders + 1000)) --count 1000
stop    kill ${pids[*]}; rm -r $work
END
