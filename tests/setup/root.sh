#!/bin/sh
# Prints the directory of a small Debian with systemd, for tests that boot one; makes it (2 minutes,
# 300 MiB, as root) if it is not there. Never changed afterwards: tests lay an overlay over it.
set -eu
export PATH="$PATH:/usr/sbin:/sbin"

suite=bookworm
packages=systemd,systemd-sysv,dbus,acl,procps
mirror=http://deb.debian.org/debian
key=$(echo "$suite $packages" | sha256sum | cut -c1-12)
cache=${HYPER2KVM_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hyper2kvm-tests}
root=$cache/root-$suite-$key

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if [ ! -d "$root" ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "root.sh: making $root takes root" >&2
        exit 1
    fi
    rm -rf "$root.part"
    debootstrap --variant=minbase --include="$packages" "$suite" "$root.part" "$mirror" \
        >"$cache/debootstrap.log" 2>&1 || {
        tail -n 20 "$cache/debootstrap.log" >&2
        echo "root.sh: debootstrap failed; all of it is in $cache/debootstrap.log" >&2
        exit 1
    }
    rm -rf "$root.part"/var/cache/apt/archives/*.deb "$root.part"/var/lib/apt/lists/*
    mv "$root.part" "$root"
fi
echo "$root"
