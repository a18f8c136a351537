#!/usr/bin/env bash
# All tests, beside one another. What fails is tried once more, alone: a machine that is busy with the others may have been too
# slow for it. What passes only then is named at the end, and is a fault to be looked into. Needs DATABASE_URL.
set -euo pipefail
cd "$(dirname "$0")/../.."

# More than that is no accident.
FAILED_MAX=8

main() {
    local log
    log=$(mktemp "${TMPDIR:-/tmp}/cloudlink-tests.XXXXXX")
    # shellcheck disable=SC2064 # the file as it is now
    trap "rm -f '$log'" EXIT
    # Most tests wait for programs and for time to pass, not for a processor.
    if RUST_TEST_THREADS="$((3 * $(nproc)))" cargo test --workspace --locked --no-fail-fast 2>&1 | tee "$log"; then
        return
    fi
    try_again "$log"
}

# try_again LOG: the tests that failed, one after the other.
try_again() {
    local failed targets target
    mapfile -t failed < <(sed -nE 's/^test (.+) \.\.\. FAILED$/\1/p' "$1" | sort -u)
    # cargo says at the end which targets they belong to.
    mapfile -t targets < <(sed -nE 's/^.*`(-p [^`]+)`.*$/\1/p' "$1" | sort -u)
    if [ "${#failed[@]}" -eq 0 ] || [ "${#targets[@]}" -eq 0 ] || [ "${#failed[@]}" -gt "$FAILED_MAX" ]; then
        return 1
    fi
    printf '\n==> once more, alone: %s\n' "${failed[*]}"
    for target in "${targets[@]}"; do
        # shellcheck disable=SC2086 # several words
        cargo test --locked $target -- --exact --test-threads=1 "${failed[@]}"
    done
    printf '\nPASSED ONLY AT THE SECOND ATTEMPT: %s\n' "${failed[*]}"
}

main
