#!/usr/bin/env bash
# Runs all tests, two programs of tests at a time: most wait for programs and for time to pass, not for a processor, and many programs
# have one long test. Each program's output is printed whole when it has ended; what failed is named again at the end.
set -euo pipefail
cd "$(dirname "$0")/../.."

AT_ONCE=2
# What waits for nearly all of its time: runs beside the others.
WAITING='/isolation_opening-[^/]*$'
# What measures time under a load of its own.
ALONE='/(support_chaos|cluster_chaos|storm)-[^/]*$'

main() {
    out=$(mktemp -d "${TMPDIR:-/tmp}/cloudlink-tests.XXXXXX")
    trap 'rm -rf "$out"' EXIT
    cargo test --workspace --locked --no-run --message-format=json-render-diagnostics >"$out/build.json"
    # One a line: where it runs, what it is. Those that take longest come first, so that none is left alone at the end.
    jq -r 'select(.profile.test and .executable) | "\(.manifest_path | sub("/[^/]*$"; ""))\t\(.executable)"' "$out/build.json" |
        awk '{ print ($2 ~ /\/(support_|cloudlink_server|main_job|openvpn)/ ? 0 : 1) "\t" $0 }' | sort -s -k1,1n | cut -f2- >"$out/programs"
    export out
    export -f run
    grep -E "$WAITING" "$out/programs" | xargs -d '\n' -n 1 bash -c 'run "$@"' run || true &
    grep -Ev "$ALONE|$WAITING" "$out/programs" | xargs -P "$AT_ONCE" -d '\n' -n 1 bash -c 'run "$@"' run || true
    wait
    grep -E "$ALONE" "$out/programs" | xargs -d '\n' -n 1 bash -c 'run "$@"' run || true
    cargo test --workspace --locked --doc --quiet || echo 'the documentation' >>"$out/failed"
    if [ -s "$out/failed" ]; then
        printf '\nfailed:\n'
        cat "$out/failed"
        exit 1
    fi
    # A run that ran nothing has shown nothing.
    test "$(wc -l <"$out/passed")" -eq "$(wc -l <"$out/programs")"
    printf '\nall tests of %d programs passed\n' "$(wc -l <"$out/programs")"
}

# run LINE: one program of tests, in the directory of its package as cargo would.
run() {
    local place=${1%%$'\t'*} program=${1#*$'\t'} log begun=$SECONDS status=0
    log=$out/${program##*/}.log
    (cd "$place" && exec "$program") >"$log" 2>&1 || status=$?
    {
        flock 9
        printf '\n     %s (%d s)\n' "${program##*/}" $((SECONDS - begun))
        cat "$log"
        if [ "$status" -eq 0 ]; then
            echo "$program" >>"$out/passed"
        else
            echo "     ${program##*/} (exit code $status)" >>"$out/failed"
        fi
    } 9>"$out/lock"
}

main
