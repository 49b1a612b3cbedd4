//! A real daemon gets all of them at once: each its `.error`, and the next good disk is converted.
use std::fs;
use std::path::Path;

use converter::error::ErrorKind;
use hyper2kvm_tests::daemon::Site;
use hyper2kvm_tests::images;

use super::cases::{CASES, Case};
use super::forge::raw;

/// Drops a case under its own name: its only file, or its directory with a manifest.
fn drop_into(site: &Site, case: &Case) {
    let dir = site.top.path().join(case.name);
    fs::create_dir(&dir).unwrap();
    let owner = (case.make)(&dir);
    let queue = &site.directories.queue;
    let extension = Path::new(owner).extension().unwrap().to_str().unwrap();
    // A loop that a file makes with itself is one only under its own name.
    let is_loop = case.name.ends_with("chain_that_loops");
    if !is_loop && fs::read_dir(&dir).unwrap().count() == 1 {
        let name = format!("{}.{extension}", case.name);
        return fs::rename(dir.join(owner), queue.join(name)).unwrap();
    }
    let manifest = serde_json::json!({
        "manifest_version": "1.0",
        "source": {"provider": "vsphere", "vm_name": case.name},
        "disks": [{"id": "d", "source_format": extension, "bytes": 1, "local_path": owner}],
    });
    fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
    fs::rename(&dir, queue.join(case.name)).unwrap();
}

#[test]
fn each_gets_its_error_and_the_queue_works() {
    let site = Site::new(
        "settle_seconds = 0\nincomplete_timeout = 1\nrescan_seconds = 1\n\
         [retry]\nmax_retries = 0\n",
    );
    let mut daemon = site.start();
    for case in CASES {
        drop_into(&site, case);
    }
    for case in CASES {
        daemon.wait(120, case.name, || site.error(case.name).exists());
        let told = fs::read_to_string(site.error(case.name)).unwrap();
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines.len(), 3, "{}: cause, remedy, kind: {told}", case.name);
        // This one the queue refuses, before any parser reads it.
        let kind = match case.name {
            "descriptor_of_1_gib" => ErrorKind::Invalid,
            _ => case.kind,
        };
        assert!(lines[0].contains(case.says), "{}: {told}", case.name);
        assert_eq!(lines[2], format!("kind: {kind}"), "{told}");
        assert!(!site.link(case.name).exists(), "{} has a result", case.name);
    }
    let raw = raw(site.top.path());
    let good = images::vmdk(&raw, "streamOptimized", &site.top.path().join("good"));
    site.deliver(&good, "good.vmdk");
    daemon.wait(60, "the next good disk", || {
        site.link("good").exists() && site.is_quiet()
    });
    images::judge(&raw, &site.link("good"), "qcow2");
    assert!(site.drops().is_empty(), "{:?}", site.drops());
    daemon.stop();
}
