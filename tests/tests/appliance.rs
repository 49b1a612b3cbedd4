//! Appliances of the real daemon that have no guest in them: what they leave, and what they find
//! out about the host.
#![allow(clippy::unwrap_used)] // a panic is how a test fails
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use converter::convert::metadata::Metadata;
use converter::guest::accel::Accel;
use converter::guest::boot::{Proof, Verdict};
use hyper2kvm_tests::daemon::{Daemon, Site};
use hyper2kvm_tests::images;

/// What sessions have in a work directory, by the process that they are of.
fn sessions(site: &Site) -> Vec<String> {
    let entries = std::fs::read_dir(site.directories.work.join("appliance"));
    let names = entries.into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("session.")).collect()
}

fn wait_for_end(site: &Site, daemon: &mut Daemon) {
    daemon.wait(400, "the job ends", || {
        let record = site.records().pop();
        record.is_some_and(|record| record.state.is_final())
    });
}

/// The library's directories of sessions that were killed with their daemon.
#[test]
fn what_a_killed_daemon_left_is_gone_when_the_next_one_starts() {
    let site = Site::repairing("[guest]\nfix = \"try\"\naccel = \"tcg\"\n");
    let mut daemon = site.start();
    site.deliver(&images::tiny(&site.top.path().join("disk.raw")), "vm.raw");
    let of_killed = format!(".{}.", daemon.pid());
    let is_left = |site: &Site| sessions(site).iter().any(|name| name.contains(&of_killed));
    daemon.wait(100, "an appliance is launched", || is_left(&site));
    daemon.kill();
    assert!(is_left(&site), "nothing is left to clear");
    let mut daemon = site.start();
    assert!(!is_left(&site), "{:?}", sessions(&site));
    wait_for_end(&site, &mut daemon);
    assert!(sessions(&site).is_empty(), "{:?}", sessions(&site));
    daemon.stop();
}

/// A boot sector that only halts: nothing on the serial line, nothing that the screen can tell.
#[test]
fn a_guest_that_shows_nothing_has_its_verdict_in_time() {
    let config =
        "[guest]\nfix = \"off\"\nboot_check = \"try\"\naccel = \"tcg\"\nboot_timeout = 5\n";
    let site = Site::repairing(config);
    let disk = images::tiny(&site.top.path().join("disk.raw"));
    let file = OpenOptions::new().write(true).open(&disk).unwrap();
    // cli; halt: hlt; jmp halt
    file.write_all_at(b"\xfa\xf4\xeb\xfd", 0).unwrap();
    let mut daemon = site.start();
    site.deliver(&disk, "vm.raw");
    wait_for_end(&site, &mut daemon);
    daemon.stop();
    let proof = proof(&site);
    assert_eq!(proof.verdict, Verdict::NotProven, "{}", proof.evidence);
    assert_eq!(proof.evidence, "no login prompt was seen within 20 s");
    assert!(proof.seconds < 60.0, "{} s", proof.seconds);
}

fn proof(site: &Site) -> Proof {
    let metadata = std::fs::read(site.directories.output.join("vm/metadata.json")).unwrap();
    Metadata::parse(&metadata).unwrap().guest.boot.unwrap()
}

/// Without an earlier launch, the boot check finds out whether KVM works, and notes it.
#[test]
fn a_boot_check_alone_tries_kvm_once() {
    let site = Site::repairing("[guest]\nfix = \"off\"\nboot_check = \"try\"\naccel = \"auto\"\n");
    let mut daemon = site.start();
    site.deliver(&images::tiny(&site.top.path().join("disk.raw")), "vm.raw");
    wait_for_end(&site, &mut daemon);
    daemon.stop();
    let proof = proof(&site);
    assert_eq!(proof.verdict, Verdict::Booted, "{}", proof.evidence);
    let verdict = std::fs::read_to_string(site.directories.work.join("accel.json"));
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    if kvm.is_err() {
        assert_eq!(proof.accel, Accel::Tcg);
        assert!(verdict.is_err(), "there is nothing to try");
        return;
    }
    let verdict: serde_json::Value = serde_json::from_str(&verdict.unwrap()).unwrap();
    assert_eq!(verdict["accel"], proof.accel.as_str(), "{verdict}");
}
