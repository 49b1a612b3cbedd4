#!/bin/sh
# packages.sh demo|bench|test: installs the Debian packages whose programs are missing, no others.
set -eu
export PATH="$PATH:/usr/sbin:/sbin"

# program, or pattern of a file, and package
demo='qemu-img qemu-utils
mke2fs e2fsprogs'
simulator='go golang-go
/usr/share/gocode/src/github.com/vmware/govmomi golang-github-vmware-govmomi-dev
/usr/share/gocode/src/github.com/google/uuid golang-github-google-uuid-dev'
bench="mkfs.xfs xfsprogs
mkfs.btrfs btrfs-progs
curl curl
$simulator"
test='xmllint libxml2-utils
strace strace
debootstrap debootstrap
systemd-analyze systemd
systemd-nspawn systemd-container
unshare util-linux
setfacl acl
mkfs.vfat dosfstools
guestfish libguestfs-tools
/boot/vmlinuz-* linux-image-amd64
/usr/share/OVMF/OVMF_CODE_4M.fd ovmf
virsh libvirt-clients
virt-xml-validate libvirt-clients
libvirtd libvirt-daemon-system
qemu-system-x86_64 qemu-system-x86
openssl openssl'

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

is_there() {
    case $1 in
    # shellcheck disable=SC2086
    /*) ls $1 >/dev/null 2>&1 ;;
    *) command -v "$1" >/dev/null ;;
    esac
}

missing=$(echo "$wanted" | while read -r program package; do
    is_there "$program" || echo "$package"
done | sort -u)
[ -n "$missing" ] || exit 0
as_root=$([ "$(id -u)" = 0 ] || echo sudo)

# All of QEMU must be of one version: where qemu-utils is a backport, the emulator is one, too.
from=
if dpkg-query -W -f '${Version}' qemu-utils 2>/dev/null | grep -q '~bpo'; then
    # shellcheck disable=SC1091
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME-backports")
    from="-t $suite"
    if ! apt-cache policy | grep -q "n=$suite"; then
        printf '%s\n' 'Types: deb' 'URIs: http://deb.debian.org/debian' "Suites: $suite" \
            'Components: main' 'Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg' |
            $as_root tee /etc/apt/sources.list.d/hyper2kvm-backports.sources >/dev/null
    fi
fi
install() {
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y --no-install-recommends "$@"
}
$as_root apt-get update
case $missing in
*qemu-system-x86*)
    # shellcheck disable=SC2086
    install $from qemu-system-x86
    missing=$(echo "$missing" | grep -v qemu-system-x86 || true)
    ;;
esac
# shellcheck disable=SC2086
[ -z "$missing" ] || install $missing
echo "$wanted" | while read -r program package; do
    is_there "$program" || {
        echo "packages.sh: $program is still missing after installing $package" >&2
        exit 1
    }
done
