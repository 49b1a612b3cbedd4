#!/bin/bash
# One VM through a daemon of your own: no root, no systemd, nothing outside a temporary directory.
# Usage: demo.sh DIRECTORY_OF_THE_PROGRAMS
set -euo pipefail
export PATH="$(cd "${1:?the directory of the built programs}" && pwd):$PATH:/usr/sbin:/sbin"

top=$(mktemp -d "${TMPDIR:-/tmp}/hyper2kvm-demo.XXXXXX")
queue=$top/queue output=$top/output
place=(--watch-dir "$queue" --output-dir "$output")
# No configuration file of this machine plays a part.
export HYPER2KVM_CONFIG_DIR=$top/etc
daemon=

finish() {
    if [ -n "$daemon" ] && kill -TERM "$daemon" 2>/dev/null; then
        timeout 30 tail --pid="$daemon" -f /dev/null || kill -KILL "$daemon"
        wait "$daemon" || echo "the daemon ended with code $?"
    fi
    rm -rf "$top"
}
trap finish EXIT

say() { printf '\n== %s\n' "$*"; }

# Shows a command as it would be typed, and runs it.
show() {
    printf '$ %s\n' "$*" | sed "s|$top/||g"
    "$@"
}

wait_for() { # WHAT PATTERN
    for _ in $(seq 300); do
        compgen -G "$2" >/dev/null && return
        kill -0 "$daemon" 2>/dev/null || break
        sleep 0.1
    done
    echo "demo.sh: no $1; the daemon said:" >&2
    cat "$top/daemon.log" >&2
    exit 1
}

say "A disk as VMware exports it: ext4 with files on it, in a streamOptimized VMDK"
mkdir "$top/files"
cp "$(command -v hyper2kvm)" "$(command -v hyperctl)" "$(command -v hyperexport)" \
    /usr/share/common-licenses/* "$top/files"
truncate -s 1G "$top/web-01.raw"
mke2fs -q -t ext4 -L demo -d "$top/files" "$top/web-01.raw"
qemu-img convert -O vmdk -o subformat=streamOptimized "$top/web-01.raw" "$top/web-01.vmdk"
ls -sh "$top/web-01.vmdk" | sed "s|$top/||"

say "The daemon, on a queue of its own"
hyper2kvm daemon "${place[@]}" --work-dir "$top/work" --no-fix >"$top/daemon.log" 2>&1 &
daemon=$!
wait_for "heartbeat" "$output/.daemon/status.json"
show hyperctl daemon status "${place[@]}"

say "The drop: one rename into the queue"
mv "$top/web-01.vmdk" "$queue/web-01.vmdk"
wait_for "claim" "$output/.daemon/jobs/job-*.json"
show hyperctl status --vm web-01 --follow --timeout 120 "${place[@]}"
wait_for "result" "$output/web-01.qcow2"

say "What came out"
(cd "$top" && ls -l output/web-01.qcow2 output/web-01/)
show hyperctl list "${place[@]}"

say "The judge: qemu-img"
show qemu-img check "$output/web-01.qcow2"
show qemu-img compare "$top/web-01.raw" "$output/web-01.qcow2"
[ -e "$queue/.processed/web-01.vmdk" ] && echo "The source is kept in queue/.processed."

say "The demo worked"
