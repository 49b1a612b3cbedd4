#!/bin/sh
# boot.sh ROOT WORK [UNIT]: boots the Debian in ROOT, unchanged, under an overlay of WORK/upper,
# with WORK/state as /var/lib/hyper2kvm, to UNIT, and returns when it has powered itself off.
# Runs in a mount namespace of its own: nspawn wants /run to be a tmpfs.
set -eu
if [ "${4:-}" != inside ]; then
    exec unshare --mount "$0" "$1" "$2" "${3:-default.target}" inside
fi
root=$1
work=$2
mkdir -p "$work/merged" "$work/overlay" "$work/state"
mount -t tmpfs tmpfs /run
mount -t overlay overlay -o "lowerdir=$root,upperdir=$work/upper,workdir=$work/overlay" \
    "$work/merged"
set -- --bind="$work/state:/var/lib/hyper2kvm" "systemd.unit=$3"
if [ -e /dev/kvm ]; then
    set -- --bind=/dev/kvm "$@"
fi
exec systemd-nspawn --quiet --boot --register=no --keep-unit --console=pipe \
    --directory="$work/merged" "$@" </dev/null
