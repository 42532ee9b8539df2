#!/usr/bin/env bash
# Makes a CA and a server's certificate in tls/: `tls.sh HOST...`, each host a name or an IP address that clients use.
# Doing it again keeps the CA and makes a new certificate. A machine that only connects needs tls/ca.pem alone.
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: tls.sh HOST..." >&2; exit 2; }
mkdir -p tls
cd tls
umask 077

if [ ! -f ca.pem ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=trellis NATS CA" \
        -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign" \
        -keyout ca-key.pem -out ca.pem 2>/dev/null
fi
names=
for host in "$@"; do
    case "$host" in
        *[!0-9.]*) names+=",DNS:$host" ;;
        *) names+=",IP:$host" ;;
    esac
done
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" -keyout server-key.pem -out server.csr \
    2>/dev/null
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 825 -out server.pem -extfile <(
    echo "subjectAltName=${names#,}"
    echo "extendedKeyUsage=serverAuth"
) 2>/dev/null
rm server.csr
echo "tls/ca.pem, tls/server.pem and tls/server-key.pem are for $*"
