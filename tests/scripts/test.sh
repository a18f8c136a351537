#!/usr/bin/env bash
# All that must hold of a commit.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/scripts/step.sh

# Tests make databases by the hundred, which cost a disk's file system ten times what they cost memory.
SCRATCH_GIB=8

main() {
    keep_scratch_in_memory
    step "install what is lacking" tests/scripts/prepare.sh peers
    step "console" npm --prefix console --silent run build
    step "format" cargo fmt --all --check
    step "dependency rules" tests/scripts/check-dependencies.sh
    step "migrations" tests/scripts/check-migrations.sh
    step "service and alerts" tests/scripts/check-docker.sh
    step "lints and queries" tests/scripts/with-postgres.sh tests/scripts/lint.sh
    step "documentation" env SQLX_OFFLINE=true RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
    step "build" env SQLX_OFFLINE=true cargo build --workspace --bins --locked
    # While tests wait, which most do: the one that needs it asks for it again, and waits in turn.
    tests/scripts/build-base.sh >/dev/null 2>&1 &
    step "tests" tests/scripts/with-postgres.sh env SQLX_OFFLINE=true RUST_TEST_THREADS="$((2 * $(nproc)))" tests/scripts/run-tests.sh
    printf '\neverything passed in %d s\n' "$SECONDS"
}

# Where there is enough of it, and nobody has said another place.
keep_scratch_in_memory() {
    [ -z "${TMPDIR-}" ] && [ "$(df --output=avail -B 1G /dev/shm 2>/dev/null | tail -n 1)" -ge "$SCRATCH_GIB" ] || return 0
    TMPDIR=$(mktemp -d /dev/shm/cloudlink.XXXXXX)
    export TMPDIR
    # As /tmp is: some programs run as somebody else.
    chmod 1777 "$TMPDIR"
    trap 'rm -rf "$TMPDIR"' EXIT
}

main
