#!/usr/bin/env bash
# Builds and takes the tour: tour.sh demo|up. The development profile, because a clean checkout gets there sooner.
set -euo pipefail
cd "$(dirname "$0")/../.."

# Only root may have the network that an OpenVPN client takes.
if [ "$(id -u)" -eq 0 ]; then tests/scripts/prepare.sh tunnel; else tests/scripts/prepare.sh; fi
# What stays up is looked at with a browser, by people who sign in.
if [ "${1:-}" = up ]; then
    tests/scripts/prepare.sh console
    npm --prefix console --silent run build
fi
SQLX_OFFLINE=true cargo build --locked -p cloudlink-server -p cloudlink-agent -p cloudlink-cli -p cloudlink-tests --bins
exec "${CARGO_TARGET_DIR:-target}/debug/tour" "$@"
