#!/usr/bin/env bash
# What a migration may do beside nodes of the version before, which go on working on the schema that it makes: docs/DATABASE.md.
# Shipped ones are as they were. check-migrations.sh [DIRECTORY]
set -euo pipefail
cd "$(dirname "$0")/../.."

# The last one of before this rule.
BEFORE=20261123100000
# Each takes something away from those nodes, or refuses what they write.
FORBIDDEN=(
    'drop +(table|column|function|procedure|view|type|domain|constraint|sequence|index|trigger|policy)|drop +if +exists'
    'rename'
    'alter +column [a-z_"]+ +(set +data +)?type'
    'set +not +null'
    'add +constraint'
    'truncate'
    'revoke +[a-z]'
)
# A line of a function that is not called yet, and of which its comment says why it takes nothing away from anybody.
AT_RUN_TIME='-- at run time$'
# Who takes something away says since which release nobody reads it.
MARKER='^-- contract: nothing since [0-9]+\.[0-9]+\.[0-9]+ '

main() {
    status=0
    local path
    for path in "${1:-migrations}"/*.sql; do
        [ "$(basename "$path")" \> "${BEFORE}_~" ] || continue
        check "$path"
    done
    [ $# -gt 0 ] || check_shipped
    exit "$status"
}

check() {
    local text pattern found
    # Without comments and on one line, for a statement has many. What a new function's own rights are is its own business.
    text=$(sed -e "/$AT_RUN_TIME/d" -e 's/--.*//' "$1" | tr 'A-Z\n' 'a-z ' | sed -E 's/revoke +(all|execute) +on +function[^;]*from +public *;//g')
    if grep -qE "$MARKER" "$1"; then return; fi
    for pattern in "${FORBIDDEN[@]}"; do
        found=$(grep -oE "(^|[^a-z_])($pattern)" <<<"$text" | head -n 1) || continue
        complain "$1: \"${found# }\" in a migration beside which nodes of the version before go on" \
            "(if none reads it any more, say so: -- contract: nothing since 1.2.3 reads …)"
    done
    # In statements of their own: a comma parts columns.
    found=$(tr ';,' '\n\n' <<<"$text" | grep -E 'add +column' | grep -E 'not +null' | grep -vE 'default|generated' | head -n 1) || return 0
    complain "$1: a column that must be given, and that nodes of the version before do not give:$found"
}

# Against the version that is upgraded from, where the history of this checkout reaches back to it.
check_shipped() {
    local commit changed
    commit=$(cat tests/upgrade/base)
    git cat-file -e "$commit^{commit}" 2>/dev/null || return 0
    changed=$(git diff --name-only --diff-filter=MDR "$commit" -- migrations)
    [ -z "$changed" ] || complain "these are shipped, and never changed again: $changed"
}

complain() {
    echo "check-migrations: $*" >&2
    status=1
}

main "$@"
