#!/usr/bin/env bash
# Debian's kernel for virtual machines, in tests/vm/kernel/: the kernel itself and the modules that a machine of QEMU takes. Downloaded
# as a package and unpacked, for nothing of it is to be installed here. Does nothing when it is there.
set -euo pipefail
cd "$(dirname "$0")/../.."

HERE=tests/vm/kernel
MODULES='virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk failover net_failover virtio_net virtio-rng'

main() {
    [ ! -e $HERE/.prepared ] || return 0
    echo "downloading the kernel of the virtual machines"
    local work
    work=$(mktemp -d "${TMPDIR:-/tmp}/cloudlink-kernel.XXXXXX")
    # shellcheck disable=SC2064 # the directory as it is now
    trap "rm -rf '$work'" EXIT
    # Without lists, or with old ones, there is nothing to be had.
    download "$work" || { update && download "$work"; }
    dpkg-deb -x "$work"/*.deb "$work/unpacked"
    mkdir -p $HERE
    cp "$work"/unpacked/boot/vmlinuz-* $HERE/vmlinuz
    # Numbered in the order in which they are to be loaded.
    local number=10 module
    for module in $MODULES; do
        find "$work/unpacked/lib/modules" -name "$module.ko" -exec cp {} "$HERE/$number-$module.ko" \;
        test -e "$HERE/$number-$module.ko"
        number=$((number + 1))
    done
    touch $HERE/.prepared
}

# The name without a version depends on the newest. As root, apt would download as a user of its own, who may not write here.
download() {
    local package
    package=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ { print $2; exit }')
    [ -n "$package" ] && (cd "$1" && apt-get -o APT::Sandbox::User=root download -qq "$package")
}

update() {
    local root=()
    [ "$(id -u)" -eq 0 ] || root=(sudo)
    "${root[@]}" apt-get update -qq
}

main
