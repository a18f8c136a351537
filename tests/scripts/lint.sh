#!/usr/bin/env bash
# Lints everything, and on the way checks each query against a database: the answers must be those under .sqlx, which
# builds without a database go by. Needs DATABASE_URL.
set -euo pipefail
cd "$(dirname "$0")/../.."

main() {
    local schema
    schema=$(mktemp -d "${TMPDIR:-/tmp}/cloudlink-queries.XXXXXX")
    # shellcheck disable=SC2064 # the directory as it is now
    trap "rm -rf '$schema'" EXIT

    psql -q -v ON_ERROR_STOP=1 "$DATABASE_URL" -c 'create database queries'
    local url=${DATABASE_URL%/*}/queries

    # Queries are answered while the crate is compiled, so it has to be.
    touch server/src/lib.rs
    DATABASE_URL=$url SQLX_OFFLINE=false SQLX_OFFLINE_DIR=$schema \
        cargo clippy --workspace --all-targets --locked -- -D warnings

    if ! diff -r --exclude .gitkeep .sqlx "$schema"; then
        echo "lint: .sqlx is not what the database says: see docs/DATABASE.md" >&2
        exit 1
    fi
}

main
