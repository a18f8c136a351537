#!/usr/bin/env bash
# The units of systemd, the alerts of Prometheus, Grafana's dashboard and the load balancers' configuration, as far as the programs that judge them are here.
set -euo pipefail
cd "$(dirname "$0")/../.."

# Of `systemd-analyze security`, in tenths: from 0, shut in, to 100, free. What is left of it is told in docs/OPERATIONS.md.
EXPOSURE_MAX=20

main() {
    local directory
    directory=$(mktemp -d "${TMPDIR:-/tmp}/cloudlink-unit.XXXXXX")
    # shellcheck disable=SC2064 # the directory as it is now
    trap "rm -rf '$directory'" EXIT

    check_units "$directory"
    check_metrics
    check_alerts
    check_dashboard "$directory"
    check_haproxy
    check_nginx "$directory"
}

check_units() {
    if ! have systemd-analyze; then
        echo "skipped: the units of systemd: there is no systemd-analyze"
        return
    fi
    local unit said
    cp -r docker/cloudlinkd.service.d "$1/"
    for unit in cloudlinkd cloudlink-agent; do
        # As if it were installed: neither the program nor its user need be here.
        sed -e 's#^ExecStart=[^ ]*#ExecStart=/bin/true#' -e '/^User=/d' -e '/^Group=/d' "docker/$unit.service" >"$1/$unit.service"
        # It may have something to say of other units of this machine, too.
        said=$(systemd-analyze verify --man=no "$1/$unit.service" 2>&1 | grep "$unit") || true
        [ -z "$said" ] || fail "docker/$unit.service: $said"
    done
    # Stopped after the bus, the agent cannot know a shutdown in order from a stop of itself.
    grep -q '^After=.*\bdbus.service\b' docker/cloudlink-agent.service || fail "docker/cloudlink-agent.service: it does not begin after the bus"
    # Of systemd 250 or newer, which need not be the manager of this machine.
    if ! systemd-analyze security --help | grep -q -- --threshold; then
        echo "skipped: the exposure of the unit: this systemd-analyze does not judge files"
        return
    fi
    systemd-analyze security --offline=true --no-pager --threshold=$EXPOSURE_MAX docker/cloudlinkd.service >"$1/exposure" ||
        fail "docker/cloudlinkd.service: $(tail -1 "$1/exposure")"
    tail -1 "$1/exposure"
}

# METRICS.md is what the server says of itself. A histogram has series of three names.
check_metrics() {
    local file name
    for file in docker/prometheus/*.yaml docker/grafana/*.json; do
        for name in $(grep -oh 'cloudlink_[a-z_]*' "$file" | sed -E 's/_(bucket|count|sum)$//' | sort -u); do
            grep -q "^| \`$name\`" docs/METRICS.md || fail "$file: there is no metric $name in docs/METRICS.md"
        done
    done
}

check_alerts() {
    local name
    for name in $(grep -oh 'alert: [A-Za-z]*' docker/prometheus/*.yaml | cut -d' ' -f2); do
        grep -q "^| .*\`$name\`" docs/OPERATIONS.md || fail "docs/OPERATIONS.md: it does not say what to do about $name"
    done
    if ! have promtool; then
        echo "skipped: the alerts and the dashboard: there is no promtool (Debian's package prometheus)"
        return
    fi
    local rules=(docker/prometheus/*[!t].yaml)
    promtool check rules "${rules[@]}"
    promtool test rules docker/prometheus/*.test.yaml
}

# That each query of the dashboard can be read, as if it were a rule.
check_dashboard() {
    have promtool || return 0
    jq '[.panels[] | select(.targets) | .targets[].expr | gsub("\\$__rate_interval"; "5m")]
        | {groups: [{name: "dashboard", rules: to_entries | map({record: "query:\(.key)", expr: .value})}]}' \
        docker/grafana/cloudlink.json >"$1/dashboard.yaml"
    promtool check rules "$1/dashboard.yaml"
}

check_haproxy() {
    if ! have haproxy; then
        echo "skipped: docker/haproxy.cfg: there is no haproxy"
        return
    fi
    # Of what it is not happy with, but takes, it speaks as well.
    local said
    said=$(haproxy -q -c -f docker/haproxy.cfg 2>&1) || fail "docker/haproxy.cfg: $said"
    [ -z "$said" ] || fail "docker/haproxy.cfg: $said"
}

check_nginx() {
    if ! have nginx || [ ! -e /usr/lib/nginx/modules/ngx_stream_module.so ]; then
        echo "skipped: docker/nginx-stream.conf: there is no nginx with its stream module"
        return
    fi
    # It opens what it checks: ports that need no root, and a file that may be written.
    sed -e "s#^pid .*#pid $1/nginx.pid;#" -e 's#\(listen [^ ]*[^0-9]\|listen \)\([0-9]*443\)#\11\2#' docker/nginx-stream.conf >"$1/nginx.conf"
    local said
    said=$(nginx -q -t -c "$1/nginx.conf" 2>&1) || fail "docker/nginx-stream.conf: $said"
    [ -z "$said" ] || fail "docker/nginx-stream.conf: $said"
}

have() { command -v "$1" >/dev/null; }

fail() {
    echo "check-docker: $*" >&2
    exit 1
}

main
