# What the demos share: steps that are shown, commands that are shown and run, waiting. Sourced, with `trellis`, the binary,
# and `work`, a temporary directory, set; `fail` names the script that sources it.

current='starting'

step() {
    current=$1
    printf '\n==> %s\n' "$current"
}

fail() {
    echo "$(basename "$0" .sh): $*" >&2
    exit 1
}

# Shows a command as one would type it, then runs it.
show() {
    local words=${*//"$trellis"/trellis}
    printf '$ %s\n' "${words//"$work"/\$work}"
    "$@"
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Waits up to $1 seconds until the rest succeeds.
await() {
    local limit=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $limit ] || return 1
        sleep 0.1
    done
}

listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
