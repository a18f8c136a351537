#!/usr/bin/env bash
# Runs all tests, two programs of tests at a time: most wait for programs and for time to pass, not for a processor, and many programs
# have one long test. Each program's output is printed whole when it has ended; what failed is named again at the end.
# Many tests promise something within a second, which a machine that others use does not always keep: what failed is run once more, with
# nothing beside it, and the last lines name what took that. It is to be looked into, and not to be got used to.
set -euo pipefail
cd "$(dirname "$0")/../.."

AT_ONCE=2
# What waits for nearly all of its time: runs beside the others, one after the other.
WAITING='/(isolation_opening|ladder|main_job|notice|polling|update|vm)-[^/]*$'
# What measures time under a load of its own.
ALONE='/(support_chaos|cluster_chaos|storm)-[^/]*$'
# These of the server's own tests as well.
SERVER='/cloudlink_server-[^/]*$'
SERVER_ALONE='isolation::tests::drift::'
# No program takes nearly as long: one that hangs is ended, and named as failed.
SECONDS_MAX=900
# More failures than these are no accident.
AGAIN_MAX=3

main() {
    out=$(mktemp -d "${TMPDIR:-/tmp}/cloudlink-tests.XXXXXX")
    trap 'rm -rf "$out"' EXIT
    cargo test --workspace --locked --no-run --message-format=json-render-diagnostics >"$out/build.json"
    # One a line: where it runs, what it is. Those that take longest come first, so that none is left alone at the end.
    jq -r 'select(.profile.test and .executable) | "\(.manifest_path | sub("/[^/]*$"; ""))\t\(.executable)"' "$out/build.json" |
        awk '{ print ($2 ~ /\/(support_|cloudlink_server|main_job|openvpn)/ ? 0 : 1) "\t" $0 }' | sort -s -k1,1n | cut -f2- >"$out/programs"
    export out SECONDS_MAX SERVER SERVER_ALONE
    export -f run
    grep -E "$WAITING" "$out/programs" | xargs -r -d '\n' -n 1 bash -c 'run "$@"' run || true &
    grep -Ev "$ALONE|$WAITING" "$out/programs" | xargs -P "$AT_ONCE" -d '\n' -n 1 bash -c 'run "$@"' run || true
    wait
    run "$(grep -E "$SERVER" "$out/programs")" "$SERVER_ALONE" || true
    grep -E "$ALONE" "$out/programs" | xargs -r -d '\n' -n 1 bash -c 'run "$@"' run || true
    again
    cargo test --workspace --locked --doc --quiet || echo '     the documentation' >>"$out/failed"
    if [ -s "$out/failed" ]; then
        printf '\nfailed:\n'
        cat "$out/failed"
        exit 1
    fi
    # A run that ran nothing has shown nothing.
    test "$(sort -u "$out/passed" | wc -l)" -eq "$(wc -l <"$out/programs")"
    printf '\nall tests of %d programs passed\n' "$(wc -l <"$out/programs")"
    [ ! -s "$out/again" ] || printf 'these only when run again, alone:\n%s\n' "$(cat "$out/again")"
}

# The tests that failed, once more.
again() {
    [ -s "$out/failed" ] && [ "$(wc -l <"$out/failed")" -le "$AGAIN_MAX" ] || return 0
    local line program
    mv "$out/failed" "$out/failed-before"
    grep -F -f <(awk '{ print $1 }' "$out/failed-before" | sort -u) "$out/programs" >"$out/programs-again"
    while IFS= read -r line; do
        program=${line##*/}
        mapfile -t tests <"$out/$program.failed"
        printf '     %s: %s\n' "$program" "${tests[*]-}" >>"$out/again"
        run "$line" --exact "${tests[@]}"
    done <"$out/programs-again"
}

# run LINE [ARGUMENT…]: one program of tests, in the directory of its package as cargo would.
run() {
    local place=${1%%$'\t'*} program=${1#*$'\t'} log TIMEFORMAT='%0R s, %0U + %0S s of processor' status=0
    shift
    [ $# -gt 0 ] || [[ ! $program =~ $SERVER ]] || set -- --skip "$SERVER_ALONE"
    log=$out/${program##*/}.log
    { time { (cd "$place" && exec timeout --kill-after=10 "$SECONDS_MAX" "$program" "$@") >"$log" 2>&1 </dev/null; }; } 2>"$log.time" || status=$?
    {
        flock 9
        printf '\n     %s (%s)\n' "${program##*/}" "$(cat "$log.time")"
        cat "$log"
        if [ "$status" -eq 0 ]; then
            echo "$program" >>"$out/passed"
        else
            echo "     ${program##*/} (exit code $status)" >>"$out/failed"
            # The last list of its output names them. A program that did not come to that is run whole.
            awk '/^failures:$/ { n = 0 } /^    / { name[n++] = $1 } /^test result:/ { while (i < n) print name[i++] }' \
                "$log" >>"$out/${program##*/}.failed"
        fi
    } 9>"$out/lock"
}

main
