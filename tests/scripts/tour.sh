#!/usr/bin/env bash
# Builds and takes the tour: tour.sh demo|up. The development profile, because a clean checkout gets there sooner.
set -euo pipefail
cd "$(dirname "$0")/../.."

tests/scripts/prepare.sh
SQLX_OFFLINE=true cargo build --locked -p cloudlink-server -p cloudlink-agent -p cloudlink-cli -p cloudlink-tests --bins
exec "${CARGO_TARGET_DIR:-target}/debug/tour" "$@"
