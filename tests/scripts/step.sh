# Sourced: `step NAME COMMAND…` says what is being done and how long it took; the first failure ends the script.

step() {
    local name=$1 begun=$SECONDS status=0
    shift
    printf '\n==> %s\n' "$name"
    # Not as a condition: inside one, `set -e` would not end a shell function at its first failure.
    set +e
    (set -e; "$@")
    status=$?
    set -e
    if [ "$status" -ne 0 ]; then
        printf '<== %s: FAILED after %d s\n' "$name" $((SECONDS - begun))
        exit "$status"
    fi
    printf '<== %s: %d s\n' "$name" $((SECONDS - begun))
}
