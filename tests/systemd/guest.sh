#!/bin/bash
# Runs as root in this host's own system, booted under an overlay: whether the installed unit, with
# all its restrictions, can run an appliance and a boot check. Prints "ok NAME" for each check.
set -eu
state=/var/lib/hyper2kvm
unit=hyper2kvm.service

within() { # SECONDS FILE
    local end=$((SECONDS + $1))
    until [ -e "$2" ]; do
        if [ $SECONDS -ge $end ]; then
            echo "no $2 within $1 s"
            systemctl --no-pager --full status $unit
            cat $state/output/*.error $state/output/.daemon/jobs/*.json
            exit 1
        fi
        sleep 0.2
    done
}

systemd-sysusers
systemd-tmpfiles --create /usr/lib/tmpfiles.d/hyper2kvm.conf
# Opened by the service's user, under the service's device policy.
mkdir -p /run/systemd/system/$unit.d
cat >/run/systemd/system/$unit.d/devices.conf <<'UNIT'
[Service]
ExecStartPre=/bin/sh -c 'if [ -e /dev/kvm ]; then exec 3<>/dev/kvm; fi'
UNIT
systemctl daemon-reload
timeout 60 systemctl start $unit || {
    journalctl --no-pager -n 40
    ls -l /dev/kvm
    exit 1
}
# A container's systemd cannot close devices; that the host's does is its own affair.
systemctl show -p DevicePolicy $unit | grep -qx DevicePolicy=closed
systemctl show -p DeviceAllow $unit | grep -q '^DeviceAllow=.*/dev/kvm rw'
echo "ok devices"

cp $state/disks/tiny.raw $state/queue/.incoming/vm.raw
mv $state/queue/.incoming/vm.raw $state/queue/vm.raw
within 400 $state/output/vm.qcow2
metadata=$state/output/vm/metadata.json
cat $metadata
# The appliance was up and looked for a system; QEMU ran the disk's boot code.
grep -q '"code": "no_system"' $metadata
grep -q '"reason": "no operating system was found on its disks"' $metadata
echo "ok appliance"
grep -q '"verdict": "booted"' $metadata
grep -q '"evidence": "tiny login:"' $metadata
test -s $state/output/vm/boot.png
echo "ok boot_check"
