#!/usr/bin/env bash
# Half an hour of harm to a cluster, built for release: 10,000 devices and 100,000 commands. The environment may say otherwise:
# CHAOS_SEED, CHAOS_SECONDS, DEVICES, COMMANDS_PER_SECOND. Histories are kept under target/chaos.
set -euo pipefail
cd "$(dirname "$0")/../.."

[ "$(id -u)" -eq 0 ] || { echo "chaos: only root may make network namespaces: sudo -E env PATH=\$PATH make chaos" >&2; exit 1; }
tests/scripts/prepare.sh peers
out=$PWD/target/chaos/$(date -u +%Y%m%dT%H%M%SZ)
mkdir -p "$out"
export CHAOS_DIRECTORY=${CHAOS_DIRECTORY:-$out} CHAOS_SECONDS=${CHAOS_SECONDS:-1800}
export DEVICES=${DEVICES:-10000} COMMANDS_PER_SECOND=${COMMANDS_PER_SECOND:-70}
export SQLX_OFFLINE=true
cargo build --release --locked --workspace --bins
cargo test --release --locked -p cloudlink-tests --test cluster_chaos -- --nocapture
echo "histories: $CHAOS_DIRECTORY"
