#!/bin/sh
# Run once by the Postgres image, as the owner: makes the login of the node. What the role cloudlink_app may do, and may not,
# is said by the migrations.
set -eu

psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
    -v password="$(cat /run/secrets/server_password)" <<'SQL'
create role cloudlink_app nologin;
create role cloudlink_server login password :'password' in role cloudlink_app;
revoke create on schema public from public;
SQL
