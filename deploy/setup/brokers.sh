#!/usr/bin/env bash
# Installs Debian's redis-server, rabbitmq-server and mosquitto, which tests start for themselves on ports of their own:
# no system service is started. Running this again changes nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./debian.sh

# Packages of servers ask this before they start one: 101 is "no". One that is there already is left as it is.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
    trap 'as_root rm -f "$policy"' EXIT
fi

need redis-server redis-server
need rabbitmq-server rabbitmq-server
need mosquitto mosquitto
echo "setup: redis-server, rabbitmq-server and mosquitto are there"
