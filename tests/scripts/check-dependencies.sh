#!/usr/bin/env bash
# The rules of the workspace that cargo can tell about (docs/ARCHITECTURE.md).
set -euo pipefail
cd "$(dirname "$0")/../.."

main() {
    status=0
    # The protocols and the PKI are without I/O: no runtime, no socket, no HTTP. rustls moves no bytes by itself: OpenVPN's
    # control channel is a machine around it.
    for crate in proto certs; do
        refuse "$crate must not depend on" '(tokio|async-std|async-io|smol|mio|polling|socket2|hyper|h2|axum|reqwest|tungstenite|sqlx|zbus)(-.*)?' \
            '' -p "cloudlink-$crate"
    done
    # One TLS stack.
    refuse "nothing may depend on" '(ring|openssl|openssl-sys|native-tls|tokio-native-tls|boring)' '' --workspace
    # server, agent and cli know proto and certs, and never one another.
    for crate in server agent cli; do
        refuse "$crate must not depend on" 'cloudlink-(server|agent|cli|tests)' "cloudlink-$crate" -p "cloudlink-$crate"
    done
    # A device is small: neither a database client nor an HTTP server.
    refuse "agent must not depend on" '(sqlx|axum)(-.*)?' '' -p cloudlink-agent
    exit "$status"
}

# refuse WHO PATTERN EXCEPT CARGO-TREE-OPTIONS…
refuse() {
    local who=$1 pattern=$2 except=$3 tree found
    shift 3
    tree=$(cargo tree --locked -e normal,build --prefix none --format '{p}' "$@")
    found=$(awk '{ print $1 }' <<<"$tree" | sort -u | grep -xE "$pattern" | grep -vxE "${except:-^$}" | tr '\n' ' ') || return 0
    [ -n "$found" ] || return 0
    echo "$who: $found" >&2
    status=1
}

main
