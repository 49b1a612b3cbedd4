#!/bin/bash
# Runs as root in the booted system, on the units as installed. Prints "ok NAME" or "not ok NAME"
# for each check; what went before the line says why.
set -u
state=/var/lib/hyper2kvm
disks=$state/disks
default=hyper2kvm.service
vsphere=hyper2kvm@vsphere-prod.service
aws=hyper2kvm@aws-prod.service
exports=hypervisord.service

check() {
    (
        set -eu
        "$1"
    )
    if [ $? = 0 ]; then
        echo "ok $1"
    else
        systemctl --no-pager --full status 'hyper2kvm*' | tail -n 100
        echo "not ok $1"
    fi
}

within() { # SECONDS COMMAND…: until it succeeds
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null; do
        if [ $SECONDS -ge $end ]; then
            echo "not within the time: $*"
            "$@"
            return
        fi
        sleep 0.02
    done
}

# Under `set -e` a failure counts only as a command of its own: no `a && b`, no bare `! a`.
fails() {
    if "$@" >/dev/null; then
        echo "should fail: $*"
        return 1
    fi
}
equal() { # WHAT FOUND WANTED
    [ "$2" = "$3" ] || {
        echo "$1 is $2, not $3"
        return 1
    }
}
property() { systemctl show --value -p "$1" "$2"; }
has() { # UNIT PROPERTY VALUE
    equal "$2 of $1" "$(property "$2" "$1")" "$3"
}
some() { compgen -G "$1" >/dev/null; }
none() { fails some "$1"; }
modes() { stat -c '%a %U %G' "$1"; }

# DISK QUEUE NAME: a drop as our own exporter makes it, whole at once.
rename_in() {
    cp "$disks/$1" "$2/.incoming/$3"
    mv "$2/.incoming/$3" "$2/$3"
}

runs() { # UNIT RESTARTS: ready after that many
    has "$1" NRestarts "$2" && has "$1" ActiveState active && has "$1" SubState running
}

the_user_and_the_directories() {
    equal $state "$(modes $state)" "750 hyper2kvm hyper2kvm"
    equal $state/queue "$(modes $state/queue)" "2770 hyper2kvm hyper2kvm"
    equal $state/output "$(modes $state/output)" "2750 hyper2kvm hyper2kvm"
    getfacl -cp $state $state/queue | grep -c default:group:hyper2kvm:rwx | grep -qx 2
}

instances_start_and_say_ready() {
    timeout 60 systemctl start $default $vsphere $aws
    for unit in $default $vsphere $aws; do
        runs $unit 0
        fails has $unit StatusText ""
        local pid
        pid=$(property MainPID $unit)
        equal "the user of $unit" "$(stat -c %U /proc/"$pid")" hyper2kvm
        # CAP_LEASE and nothing else.
        grep -q '^CapEff:.0000000010000000$' /proc/"$pid"/status
    done
}

named_instances_make_their_directories() {
    for name in vsphere-prod aws-prod; do
        for dir in queue queue/.incoming queue/.control; do
            equal $dir "$(modes $state/$name-$dir)" "2770 hyper2kvm hyper2kvm"
        done
        for dir in queue/.processing queue/.processed queue/.errors output work; do
            equal $dir "$(modes $state/$name-$dir)" "2750 hyper2kvm hyper2kvm"
        done
    done
}

drops_become_results() {
    # One copied in place by somebody with a tight umask, one renamed in, one with two in a row.
    (umask 077 && cp $disks/small.vmdk $state/queue/default-vm.vmdk)
    rename_in small.vmdk $state/vsphere-prod-queue vsphere-vm.vmdk
    rename_in small.vmdk $state/aws-prod-queue aws-vm.vmdk
    rename_in sparse.vmdk $state/aws-prod-queue aws-vm2.vmdk
    within 60 some $state/output/default-vm.qcow2
    within 60 some $state/vsphere-prod-output/vsphere-vm.qcow2
    within 60 some $state/aws-prod-output/aws-vm.qcow2
    within 60 some $state/aws-prod-output/aws-vm2.qcow2
    within 10 some $state/queue/.processed/default-vm.vmdk
}

members_of_the_group_drop_and_read() {
    useradd --groups hyper2kvm mover
    runuser -u mover -- cp $disks/small.vmdk $state/queue/moved.vmdk
    within 60 some $state/output/moved.qcow2
    runuser -u mover -- head -c 3 $state/output/moved.qcow2 | grep -q QFI
    # Nobody else looks in.
    useradd stranger
    fails runuser -u stranger -- ls $state/queue
}

manifest() { # VM: on one disk beside it
    printf '{"manifest_version":"1.0","source":{"vm_name":"%s"},"disks":[{"id":"disk-0",' "$1"
    printf '"source_format":"vmdk","bytes":1,"local_path":"disk.vmdk"}]}\n'
}

a_job_directory_needs_to_be_writable() {
    local job=$state/queue/.incoming/of-root
    mkdir $job
    cp $disks/small.vmdk $job/disk.vmdk
    manifest of-root >$job/manifest.json
    # As `cp -r` leaves it; the rest is open to the daemon's group by the queue's ACL.
    chmod g-w $job
    mv $job $state/queue/of-root
    within 60 some $state/output/of-root.error
    grep -q 'Permission denied' $state/output/of-root.error
    chmod g+w $state/queue/of-root
    within 90 some $state/output/of-root.qcow2
    none $state/output/of-root.error
}

hyperexport_submits_and_waits() {
    mkdir /root/exported
    cp $disks/small.vmdk /root/exported/exported.vmdk
    (
        umask 077
        timeout 120 hyperexport --provider local --source /root/exported --vm exported \
            --pipeline --hyper2kvm-daemon --hyper2kvm-instance vsphere-prod \
            --hyper2kvm-poll-interval 1
    )
    some $state/vsphere-prod-output/exported.qcow2
}

the_export_service_fills_a_queue_by_request() {
    mkdir -p /srv/store/asked
    cp $disks/small.vmdk /srv/store/asked/asked.vmdk
    # What systemd hands over, and nobody else reads.
    install -m 600 /dev/null /root/secret
    echo geheim >/root/secret
    mkdir -p /etc/systemd/system/$exports.d
    printf '[Service]\nLoadCredential=store.password:/root/secret\n' \
        >/etc/systemd/system/$exports.d/credential.conf
    systemctl daemon-reload
    timeout 60 systemctl start $exports
    runs $exports 0
    local pid
    pid=$(property MainPID $exports)
    equal "the user of $exports" "$(stat -c %U:%G /proc/"$pid")" hypervisord:hyper2kvm
    grep -q '^CapEff:.0000000010000000$' /proc/"$pid"/status
    equal requests "$(modes /var/lib/hypervisord/requests)" "2770 hypervisord hyper2kvm"
    echo '{"export_version": "1.0", "server": "store", "vm": "asked", "instance": "aws-prod"}' \
        >/tmp/asked.json
    # By somebody with a tight umask.
    (umask 077 && runuser -u mover -- cp /tmp/asked.json /var/lib/hypervisord/requests/asked.json)
    within 60 some $state/aws-prod-output/asked.qcow2
    within 10 some /var/lib/hypervisord/requests/.processed/asked.json
    fails runuser -u hyper2kvm -- ls /var/lib/hypervisord/work/debts
    timeout 60 systemctl stop $exports
}

a_writer_of_another_user_is_waited_for() {
    exec 7>$state/queue/written.vmdk
    cat $disks/small.vmdk >&7
    # Still and complete for twice the time that it takes to settle, but open.
    sleep 5
    some $state/queue/written.vmdk
    none "$state/output/written.*"
    exec 7>&-
    within 60 some $state/output/written.qcow2
}

a_bad_file_fails_alone() {
    rename_in garbage.vmdk $state/queue garbage.vmdk
    within 60 some $state/output/garbage.error
    within 10 some "$state/queue/.errors/garbage.vmdk*"
    head -n 1 $state/output/garbage.error
    runs $default 0
}

hyperctl_shows_every_instance() {
    local shown
    shown=$(hyperctl daemon -op status)
    echo "$shown"
    for unit in $default $vsphere $aws; do
        grep -q "$unit" <<<"$shown"
        grep -q "$(property MainPID $unit)" <<<"$shown"
    done
    hyperctl daemon -op list
    hyperctl daemon -op status -instance vsphere-prod | grep -q vsphere-prod-queue
    hyperctl daemon -op status -instance vsphere-prod | fails grep -q aws-prod
}

the_journal_is_found_by_job() {
    local record job entries
    record=$(grep -l vsphere-vm $state/vsphere-prod-output/.daemon/jobs/*.json)
    job=$(basename "$record" .json)
    within 10 has_entries "$job"
    entries=$(journalctl "JOB_ID=$job" -o json --no-pager)
    grep -q '"VM_NAME":"vsphere-vm"' <<<"$entries"
    grep -q '"PHASE":' <<<"$entries"
    grep -q "\"_SYSTEMD_UNIT\":\"$vsphere\"" <<<"$entries"
}
has_entries() { [ -n "$(journalctl "JOB_ID=$1" -o json --no-pager)" ]; }

a_stop_in_the_middle_loses_nothing() {
    local queue=$state/vsphere-prod-queue output=$state/vsphere-prod-output
    rename_in large.vmdk $queue stopped.vmdk
    within 30 some "$queue/.processing/job-*/source/stopped.vmdk"
    timeout 120 systemctl stop $vsphere
    # It was not over before the stop.
    none "$output/stopped.*"
    has $vsphere Result success
    timeout 60 systemctl start $vsphere
    within 180 some $output/stopped.qcow2
    within 10 some $queue/.processed/stopped.vmdk
    none "$output/stopped.error"
}

a_kill_in_the_middle_loses_nothing() {
    local queue=$state/aws-prod-queue output=$state/aws-prod-output
    rename_in large.vmdk $queue killed.vmdk
    within 30 some "$queue/.processing/job-*/source/killed.vmdk"
    systemctl kill -s KILL $aws
    # It was not over before; and systemd brings the daemon back by itself.
    none "$output/killed.*"
    within 30 runs $aws 1
    within 180 some $output/killed.qcow2
    within 10 some $queue/.processed/killed.vmdk
    none "$output/killed.error"
}

a_reload_keeps_the_daemon() {
    local pid
    pid=$(property MainPID $default)
    systemctl reload $default
    rename_in small.vmdk $state/queue reloaded.vmdk
    within 60 some $state/output/reloaded.qcow2
    has $default MainPID "$pid"
}

a_hung_daemon_is_restarted() {
    mkdir -p /run/systemd/system/$aws.d
    printf '[Service]\nWatchdogSec=2\n' >/run/systemd/system/$aws.d/watchdog.conf
    systemctl daemon-reload
    timeout 60 systemctl restart $aws
    # A healthy one feeds the watchdog.
    sleep 5
    runs $aws 0
    systemctl kill -s STOP $aws
    within 30 runs $aws 1
    journalctl -u $aws --no-pager | grep -q 'Watchdog timeout'
}

a_wrong_configuration_is_not_tried_again() {
    local unit=hyper2kvm@wrong.service
    printf 'max_concurrent_jobs = 1\ncolour = "blue"\n' >/etc/hyper2kvm/wrong.toml
    fails timeout 60 systemctl start $unit
    has $unit ActiveState failed
    has $unit NRestarts 0
    has $unit ExecMainStatus 2
    journalctl -u $unit --no-pager | grep -q '/etc/hyper2kvm/wrong.toml, line 2, key colour'
    rm /etc/hyper2kvm/wrong.toml
}

restarts_have_a_limit() {
    local unit=hyper2kvm@limit.service
    timeout 60 systemctl start $unit
    for restarts in 1 2 3 4; do
        systemctl kill -s KILL $unit
        within 30 runs $unit $restarts
    done
    systemctl kill -s KILL $unit
    within 30 has $unit ActiveState failed
    journalctl -u $unit --no-pager | grep -q 'Start request repeated too quickly'
    systemctl reset-failed $unit
}

the_target_starts_and_stops_all() {
    systemctl -q enable hyper2kvm.target $default $vsphere
    timeout 60 systemctl start hyper2kvm.target
    timeout 300 systemctl stop hyper2kvm.target
    for unit in $default $vsphere $aws; do
        within 60 has $unit ActiveState inactive
    done
    fails hyperctl daemon -op status
    timeout 60 systemctl start hyper2kvm.target
    runs $default 0
    runs $vsphere 0
    timeout 300 systemctl stop hyper2kvm.target
    for unit in $default $vsphere; do
        within 60 has $unit ActiveState inactive
    done
}

nothing_is_left_over() {
    for prefix in "" vsphere-prod- aws-prod-; do
        none "$state/${prefix}queue/*"
        none "$state/${prefix}queue/.processing/*"
        none "$state/${prefix}output/.staging/*"
    done
}

check the_user_and_the_directories
check instances_start_and_say_ready
check named_instances_make_their_directories
check drops_become_results
check members_of_the_group_drop_and_read
check a_job_directory_needs_to_be_writable
check hyperexport_submits_and_waits
check the_export_service_fills_a_queue_by_request
check a_writer_of_another_user_is_waited_for
check a_bad_file_fails_alone
check hyperctl_shows_every_instance
check the_journal_is_found_by_job
check a_stop_in_the_middle_loses_nothing
check a_kill_in_the_middle_loses_nothing
check a_reload_keeps_the_daemon
check a_hung_daemon_is_restarted
check a_wrong_configuration_is_not_tried_again
check restarts_have_a_limit
check the_target_starts_and_stops_all
check nothing_is_left_over
echo "all checks were run"
