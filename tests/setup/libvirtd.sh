#!/bin/sh
# libvirtd.sh DIR: a libvirtd of a test's own, in the foreground. It answers at DIR/libvirt-sock. To
# be started by `unshare --mount --net --pid --fork --kill-child --mount-proc`: it has its own /run,
# configuration and state, no way out, and one network, `default`, on which nobody answers; with
# unshare it goes, and all machines with it.
set -eu
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C
dir=$1

mount --make-rprivate /
for own in /run /etc/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt; do
    mkdir -p "$own"
    mount -t tmpfs none "$own"
done
mkdir -p /run/lock
ip link set lo up
cat >"$dir/libvirtd.conf" <<CONF
unix_sock_dir = "$dir"
auth_unix_rw = "none"
CONF
# The images belong to whoever runs the test; nothing here confines what is only emulated.
cat >/etc/libvirt/qemu.conf <<CONF
user = "root"
group = "root"
dynamic_ownership = 0
security_driver = "none"
stdio_handler = "file"
cgroup_controllers = [ ]
namespaces = [ ]
CONF
mkdir -p /etc/libvirt/qemu/networks/autostart
cat >/etc/libvirt/qemu/networks/default.xml <<XML
<network>
  <name>default</name>
  <bridge name="virbr0"/>
  <dns enable="no"/>
</network>
XML
ln -s ../default.xml /etc/libvirt/qemu/networks/autostart/default.xml
# This shell is the first process of its namespace: it reaps what libvirtd leaves to it, which
# libvirtd waits for.
libvirtd --config "$dir/libvirtd.conf" --pid-file "$dir/pid" &
wait $!
