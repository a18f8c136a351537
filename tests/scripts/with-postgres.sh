#!/usr/bin/env bash
# Runs a command with a throw-away Postgres, told by DATABASE_URL: with-postgres.sh COMMAND…
# It listens on loopback and on a Unix socket, forgets everything, and is stopped however the command ends.
set -euo pipefail

main() {
    dir=$(mktemp -d "${TMPDIR:-/tmp}/cloudlink-postgres.XXXXXX")
    trap stop EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM

    # Postgres refuses to run as root.
    as=()
    if [ "$(id -u)" -eq 0 ]; then
        as=(runuser -u postgres --)
        chown postgres: "$dir"
    fi
    cd "$dir"
    "${as[@]}" "$(binary initdb)" -D "$dir/data" -U postgres -A trust -E UTF8 --locale=C.UTF-8 --no-sync >"$dir/initdb.log" 2>&1 ||
        { cat "$dir/initdb.log" >&2; exit 1; }
    start
    cd "$OLDPWD"
    make_roles
    fill_template
    status=0
    DATABASE_URL="postgres://postgres@127.0.0.1:$port/postgres" "$@" || status=$?
    exit "$status"
}

start() {
    local attempt
    for attempt in 1 2 3 4 5 6 7 8 9 10; do
        # Below the range that the kernel gives to outgoing connections. Whether it is free shows at the start.
        port=$((20000 + RANDOM % 12000))
        "${as[@]}" "$(binary pg_ctl)" -D "$dir/data" -l "$dir/postgres.log" -w -t 60 -s start \
            -o "-h 127.0.0.1 -p $port -k $dir -F -c synchronous_commit=off -c full_page_writes=off -c max_connections=200 -c autovacuum=off" \
            >/dev/null && return
        grep -q 'could not bind' "$dir/postgres.log" || break
        : >"$dir/postgres.log"
    done
    cat "$dir/postgres.log" >&2
    echo "with-postgres: Postgres does not start (attempt $attempt)" >&2
    exit 1
}

# Roles are of the whole cluster. Databases of tests that are migrated at the same time would race for making them.
make_roles() {
    "${as[@]}" "$(binary psql)" -q -h 127.0.0.1 -p "$port" -v ON_ERROR_STOP=1 postgres \
        -c 'create role cloudlink_app nologin noinherit' -c 'create role cloudlink_tenant nologin' \
        -c 'grant cloudlink_tenant to cloudlink_app'
}

# Every database that is made has the schema, which takes a fifth of the time of migrating each. Who wants to see it come about makes
# one from template0.
fill_template() {
    local file name
    for file in "$(dirname "${BASH_SOURCE[0]}")"/../../migrations/*.sql; do
        name=$(basename "$file" .sql)
        printf 'begin;\n'
        cat "$file"
        # As sqlx writes it down.
        printf "\ninsert into _sqlx_migrations values (%s, '%s', now(), true, '\\\\x%s', 0);\ncommit;\n" \
            "${name%%_*}" "$(tr _ ' ' <<<"${name#*_}")" "$(sha384sum "$file" | cut -d ' ' -f 1)"
    done | "${as[@]}" "$(binary psql)" -q -h 127.0.0.1 -p "$port" -v ON_ERROR_STOP=1 template1 -c '
        create table _sqlx_migrations (version bigint primary key, description text not null, installed_on timestamptz not null default now(),
                                       success boolean not null, checksum bytea not null, execution_time bigint not null)' -f - >/dev/null
}

stop() {
    if [ -f "$dir/data/postmaster.pid" ]; then
        (cd "$dir" && "${as[@]}" "$(binary pg_ctl)" -D "$dir/data" -m immediate -w -s stop) || true
    fi
    rm -rf "$dir"
}

# On PATH, or the newest that Debian has.
binary() {
    command -v "$1" || { compgen -G "/usr/lib/postgresql/*/bin/$1" | sort -V | tail -n 1; }
}

main "$@"
