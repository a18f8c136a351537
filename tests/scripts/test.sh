#!/usr/bin/env bash
# All that must hold of a commit.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/scripts/step.sh

main() {
    step "install what is lacking" tests/scripts/prepare.sh peers
    step "format" cargo fmt --all --check
    step "dependency rules" tests/scripts/check-dependencies.sh
    step "service and alerts" tests/scripts/check-docker.sh
    step "lints and queries" tests/scripts/with-postgres.sh tests/scripts/lint.sh
    step "documentation" env SQLX_OFFLINE=true RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
    step "build" env SQLX_OFFLINE=true cargo build --workspace --bins --locked
    step "tests" tests/scripts/with-postgres.sh env SQLX_OFFLINE=true RUST_TEST_THREADS="$((2 * $(nproc)))" tests/scripts/run-tests.sh
    printf '\neverything passed in %d s\n' "$SECONDS"
}

main
