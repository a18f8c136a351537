#!/usr/bin/env bash
# Builds for release and measures. Results go to standard output and under target/bench/.
set -euo pipefail
cd "$(dirname "$0")/../.."

tests/scripts/prepare.sh peers
SQLX_OFFLINE=true cargo build --release --locked -p cloudlink-server -p cloudlink-agent -p cloudlink-cli -p cloudlink-tests --bins >&2
# The load generator holds ten thousand links.
ulimit -n "$(ulimit -H -n)"
exec "${CARGO_TARGET_DIR:-target}/release/bench" "$@"
