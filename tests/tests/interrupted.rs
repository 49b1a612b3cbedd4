//! Repairs that are struck while they write: the images are as they were converted.
#![allow(clippy::unwrap_used)] // a panic is how a test fails
use std::fs;
use std::path::Path;

use converter::convert::metadata::{Guest, Metadata};
use hyper2kvm_tests::daemon::{Daemon, Site};
use hyper2kvm_tests::guest;
use hyper2kvm_tests::images;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use queue::job::{JobState, Phase, Record};

fn told(site: &Site, vm: &str) -> Guest {
    let path = site.directories.output.join(vm).join("metadata.json");
    Metadata::parse(&fs::read(path).unwrap()).unwrap().guest
}

fn record(site: &Site, vm: &str) -> Option<Record> {
    let mut records = site.records();
    records.retain(|record| record.vm_name == vm);
    records.pop()
}

/// How long the first overlay of the job that is being repaired is by now.
fn overlay_bytes(site: &Site) -> u64 {
    let jobs = fs::read_dir(site.directories.staging())
        .into_iter()
        .flatten();
    let overlays = jobs
        .flatten()
        .map(|job| job.path().join(".repair/disk0.qcow2"));
    overlays
        .filter_map(|path| path.metadata().ok())
        .map(|m| m.len())
        .max()
        .unwrap_or(0)
}

fn is_over(site: &Site, vm: &str) -> bool {
    site.link(vm).exists() || site.error(vm).exists()
}

/// Whatever befalls the appliance, the image is published as it was converted, and says so.
fn check_untouched(site: &Site, daemon: &mut Daemon, vm: &str, raw: &Path) {
    daemon.wait(300, "the job ends", || is_over(site, vm));
    assert!(!site.error(vm).exists(), "{}", daemon.log());
    let guest = told(site, vm);
    assert_eq!(guest.code.as_deref(), Some("repair_failed"), "{guest:?}");
    let reason = guest.reason.unwrap();
    println!("{vm}: {reason}");
    assert_eq!(reason.lines().count(), 1);
    assert!(!reason.contains("LIBGUESTFS_DEBUG"));
    let directory = site.directories.output.join(vm);
    images::judge(raw, &directory.join(format!("{vm}.qcow2")), "qcow2");
    assert!(!directory.join(".repair").exists());
    assert!(guest::appliances(daemon.pid()).is_empty());
}

/// At its first write, while it writes much, and for want of memory; meanwhile others are copied.
#[test]
fn an_appliance_that_dies_while_it_writes_leaves_the_image_as_it_was() {
    let raw = guest::disk("plain");
    let site = Site::repairing("[guest]\nfix = \"try\"\naccel = \"tcg\"\n");
    let small = images::raw_disk(&site.top.path().join("small.raw"), 1 << 20, &[(0, b"data")]);
    let ova = guest::appliance(&raw, site.top.path(), "guest", "bios");
    let mut daemon = site.start();
    for (drop, written_bytes, whole) in [("first", 1 << 20, true), ("much", 12 << 20, false)] {
        site.deliver(&ova, &format!("{drop}.ova"));
        await_repair(&site, &mut daemon, "guest");
        if whole {
            beside(&site, &mut daemon, &small);
        }
        daemon.wait(400, "the repair writes", || {
            overlay_bytes(&site) >= written_bytes || is_over(&site, "guest")
        });
        assert!(!is_over(&site, "guest"), "it was not struck");
        let appliance = guest::appliances(daemon.pid())[0];
        if whole {
            killpg(Pid::from_raw(appliance), Signal::SIGKILL).unwrap();
        } else {
            // As the kernel does when memory runs out: the largest process goes.
            let largest = guest::emulators(appliance)[0];
            kill(Pid::from_raw(largest), Signal::SIGKILL).unwrap();
        }
        check_untouched(&site, &mut daemon, "guest", &raw);
        fs::remove_file(site.link("guest")).unwrap();
    }
    // Too little for the appliance's memory: QEMU is refused it.
    let limit = nix::libc::rlimit {
        rlim_cur: 1250 << 20,
        rlim_max: 1250 << 20,
    };
    let pid = i32::try_from(daemon.pid()).unwrap();
    // SAFETY: prlimit(2) reads `limit` and writes nothing.
    let set =
        unsafe { nix::libc::prlimit(pid, nix::libc::RLIMIT_AS, &limit, std::ptr::null_mut()) };
    assert_eq!(set, 0);
    site.deliver(&ova, "starved.ova");
    daemon.wait(100, "it is claimed", || site.drops().is_empty());
    check_untouched(&site, &mut daemon, "guest", &raw);
    daemon.stop();
}

/// Waits until the job of this name is being repaired.
fn await_repair(site: &Site, daemon: &mut Daemon, vm: &str) {
    daemon.wait(100, "the repair begins", || {
        record(site, vm).is_some_and(|record| record.phase == Phase::Repair)
    });
}

/// The one job slot is free while a guest is repaired.
fn beside(site: &Site, daemon: &mut Daemon, small: &Path) {
    site.deliver(small, "beside.raw");
    daemon.wait(60, "the next one is copied", || {
        site.link("beside").exists()
    });
    let repaired = record(site, "guest").unwrap();
    assert_eq!(
        (repaired.state, repaired.phase),
        (JobState::Processing, Phase::Repair)
    );
}
