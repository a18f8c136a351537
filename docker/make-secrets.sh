#!/bin/sh
# Makes the passwords of docker/compose.yaml, unless they are there.
set -eu

directory="$(dirname "$0")/secrets"
[ -e "$directory" ] && { echo "$directory is there already" >&2; exit 1; }

# Only its owner gets into the directory; in the containers, other users read the files.
mkdir -m 0700 "$directory"
cd "$directory"
umask 022
password() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
password >owner_password
password >server_password
printf 'postgres://cloudlink_owner:%s@postgres/cloudlink' "$(cat owner_password)" >database_migrate_url
printf 'postgres://cloudlink_server:%s@postgres/cloudlink' "$(cat server_password)" >database_url
