#!/usr/bin/env bash
# Builds the `cloudlinkd` of the commit named in tests/upgrade/base, which the tests run beside today's, and prints where it is.
# Without that commit in the history of this checkout it says so, and prints nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."

main() {
    local commit target place
    commit=$(cat tests/upgrade/base)
    target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
    place=$target/upgrade/$commit
    mkdir -p "$place"
    # Two may want it at once.
    exec 9>"$place/lock"
    flock 9
    if [ ! -x "$place/cloudlinkd" ]; then
        if ! git cat-file -e "$commit^{commit}" 2>/dev/null; then
            echo "skipped: this checkout has no history that reaches back to $commit" >&2
            return
        fi
        build "$commit" "$target" "$place" >&2
    fi
    echo "$place/cloudlinkd"
}

# In a directory of its own, so that today's programs stay, with what is built already of the libraries that both use. Ours have the
# same names and are others; and what git packs is as old as its commit, so cargo would take today's for built from it.
build() {
    local commit=$1 target=$2 place=$3
    rm -rf "$place/source" "$place/target"
    mkdir -p "$place/source" "$place/target/debug"
    git archive "$commit" | tar -x --touch -C "$place/source"
    local part
    for part in deps build .fingerprint; do
        [ ! -d "$target/debug/$part" ] || cp -al "$target/debug/$part" "$place/target/debug/"
    done
    find "$place/target/debug" -mindepth 2 -maxdepth 2 -name '*cloudlink*' -exec rm -rf {} +
    (cd "$place/source" &&
        env -u DATABASE_URL SQLX_OFFLINE=true CARGO_TARGET_DIR="$place/target" nice -n 19 \
            cargo build --quiet --locked -p cloudlink-server --bin cloudlinkd)
    cp "$place/target/debug/cloudlinkd" "$place/cloudlinkd.new"
    rm -rf "$place/source" "$place/target"
    mv "$place/cloudlinkd.new" "$place/cloudlinkd"
}

main
