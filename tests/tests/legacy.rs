//! A legacy exporter: it writes `manifest.json` in place, piece by piece, and polls
//! `<vm>.qcow2` and `<vm>.error`. It must work unchanged.
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use hyper2kvm_tests::daemon::{Daemon, Site};
use hyper2kvm_tests::images;
use queue::job::JobState;
use serde_json::json;

fn manifest(vm: &str, disk: &str) -> String {
    let manifest = json!({
        "manifest_version": "1.0",
        "source": {"provider": "vsphere", "vm_id": "vm-42", "vm_name": vm, "export_method": "nfc"},
        "vm": {"cpu": 2, "mem_gb": 1, "firmware": "bios"},
        "disks": [{"id": "disk-0", "source_format": "vmdk", "bytes": 12_345, "local_path": disk}],
        "pipeline": {"convert": {"enabled": true}},
    });
    serde_json::to_string_pretty(&manifest).unwrap()
}

/// open(O_TRUNC), writes in pieces, close: as such exporters do it.
fn write_in_place(path: &Path, text: &str) {
    let mut file = File::create(path).unwrap();
    for piece in text.as_bytes().chunks(37) {
        file.write_all(piece).unwrap();
        file.flush().unwrap();
    }
}

fn disk(site: &Site, name: &str, seed: u64) -> std::path::PathBuf {
    let top = site.top.path();
    let noise = images::noise(seed, 300_000);
    let raw = images::raw_disk(
        &top.join(format!("{name}.raw")),
        2 << 20,
        &[(seed * 512, &noise)],
    );
    let file = images::vmdk(&raw, "streamOptimized", &top.join(name));
    fs::copy(file, site.directories.queue.join(format!("{name}.vmdk"))).unwrap();
    raw
}

/// Polls as the client does; the text of the error if that is what came.
fn poll(site: &Site, daemon: &mut Daemon, vm: &str) -> Result<(), String> {
    daemon.wait(60, &format!("the end of {vm}"), || {
        site.link(vm).exists() || site.error(vm).exists()
    });
    match site.link(vm).exists() {
        true => Ok(()),
        false => Err(fs::read_to_string(site.error(vm)).unwrap()),
    }
}

#[test]
fn a_client_that_only_knows_two_names() {
    let site = Site::new("rescan_seconds = 1\n[retry]\nmax_retries = 0\n");
    let mut daemon = site.start();
    let fixed = site.directories.queue.join("manifest.json");
    let raw = disk(&site, "web", 1);
    // The path that the exporter knows is absolute, beneath the queue directory.
    let path = site.directories.queue.join("web.vmdk");
    write_in_place(&fixed, &manifest("web 01", images::text(&path)));
    poll(&site, &mut daemon, "web 01").unwrap();
    images::judge(&raw, &site.link("web 01"), "qcow2");

    write_in_place(&fixed, &manifest("lost", "/nowhere/lost.vmdk"));
    let told = poll(&site, &mut daemon, "lost").unwrap_err();
    assert!(told.lines().count() >= 2, "{told}");
    daemon.wait(30, "all is quiet", || site.is_quiet());
    daemon.stop();
}

/// Two manifests in a row under the fixed name are two jobs, even before their disks are there.
#[test]
fn a_second_manifest_does_not_swallow_the_first() {
    let site = Site::new("rescan_seconds = 1\n");
    let mut daemon = site.start();
    let fixed = site.directories.queue.join("manifest.json");
    for vm in ["one", "two", "three"] {
        write_in_place(&fixed, &manifest(vm, &format!("{vm}.vmdk")));
        daemon.wait(30, "the manifest is claimed", || !fixed.exists());
    }
    let raws = [
        ("three", disk(&site, "three", 3)),
        ("one", disk(&site, "one", 1)),
    ];
    for (vm, raw) in &raws {
        poll(&site, &mut daemon, vm).unwrap();
        images::judge(raw, &site.link(vm), "qcow2");
    }
    let raw = disk(&site, "two", 2);
    poll(&site, &mut daemon, "two").unwrap();
    images::judge(&raw, &site.link("two"), "qcow2");
    daemon.wait(30, "all is quiet", || site.is_quiet());
    assert_eq!(site.count(JobState::Completed), 3);
    daemon.stop();
}

/// From the moment a VM's next job is claimed, its earlier link or error is gone.
#[test]
fn nothing_old_stands_for_the_new() {
    let site = Site::new("rescan_seconds = 1\n[retry]\nmax_retries = 0\n");
    let mut daemon = site.start();
    let fixed = site.directories.queue.join("manifest.json");
    disk(&site, "a", 1);
    write_in_place(&fixed, &manifest("vm", "a.vmdk"));
    poll(&site, &mut daemon, "vm").unwrap();
    let earlier = fs::canonicalize(site.link("vm")).unwrap();

    // The disk of the next job comes later: between, nothing says done.
    write_in_place(&fixed, &manifest("vm", "b.vmdk"));
    daemon.wait(30, "the manifest is claimed", || {
        !fixed.exists() && site.records().len() == 2
    });
    assert!(
        !site.link("vm").exists(),
        "the earlier link stands for the new job"
    );
    assert!(
        earlier.exists(),
        "the earlier result is gone before the new one is there"
    );
    let raw = disk(&site, "b", 2);
    poll(&site, &mut daemon, "vm").unwrap();
    images::judge(&raw, &site.link("vm"), "qcow2");

    write_in_place(&fixed, &manifest("vm", "/nowhere/c.vmdk"));
    daemon.wait(60, "the error", || site.error("vm").exists());
    assert!(!site.link("vm").exists());
    write_in_place(&fixed, &manifest("vm", "d.vmdk"));
    daemon.wait(30, "the manifest is claimed", || {
        !fixed.exists() && site.records().len() == 4
    });
    assert!(
        !site.error("vm").exists(),
        "the earlier error stands for the new job"
    );
    disk(&site, "d", 3);
    poll(&site, &mut daemon, "vm").unwrap();
    daemon.stop();
}
