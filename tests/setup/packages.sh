#!/bin/sh
# packages.sh demo|bench|test: installs the Debian packages whose programs are missing, no others.
set -eu
export PATH="$PATH:/usr/sbin:/sbin"

# program package
demo='qemu-img qemu-utils
mke2fs e2fsprogs'
bench='mkfs.xfs xfsprogs
mkfs.btrfs btrfs-progs'
test='xmllint libxml2-utils
strace strace
debootstrap debootstrap
systemd-analyze systemd
systemd-nspawn systemd-container
unshare util-linux
setfacl acl'

case "${1:-}" in
demo) wanted=$demo ;;
bench) wanted="$demo
$bench" ;;
test) wanted="$demo
$bench
$test" ;;
*)
    echo "usage: packages.sh demo|bench|test" >&2
    exit 2
    ;;
esac

missing=$(echo "$wanted" | while read -r program package; do
    command -v "$program" >/dev/null || echo "$package"
done)
[ -n "$missing" ] || exit 0
as_root=$([ "$(id -u)" = 0 ] || echo sudo)
$as_root apt-get update
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y --no-install-recommends $missing
echo "$wanted" | while read -r program package; do
    command -v "$program" >/dev/null || {
        echo "packages.sh: $program is still missing after installing $package" >&2
        exit 1
    }
done
