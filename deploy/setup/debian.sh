# Read by the other scripts: `need COMMAND PACKAGE...` installs Debian packages unless the command is there.

fail() {
    echo "setup: $*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        fail "this needs root, and sudo is missing: run as root: $*"
    fi
}

# The lists of packages are fetched at most once in a run, and only when something is missing.
apt_update() {
    [ -z "${apt_updated:-}" ] || return 0
    command -v apt-get >/dev/null || fail "$1 is missing, and this is no Debian: install it yourself"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq \
        || fail "$1 is missing, and apt-get update fails: see its message above (network or sources)"
    apt_updated=1
}

need() {
    local command=$1
    shift
    if command -v "$command" >/dev/null; then
        return 0
    fi
    echo "setup: installing $*, for $command"
    apt_update "$*"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" \
        || fail "$* cannot be installed: see apt-get's message above"
}
