//! What is told of a guest before it is copied, and what a manifest makes of its repair.
#![allow(clippy::unwrap_used)] // a panic is how a test fails
use std::path::{Path, PathBuf};

use converter::convert::metadata::Metadata;
use hyper2kvm_tests::daemon::Site;
use hyper2kvm_tests::images;
use queue::error::ErrorKind;
use queue::job::{GuestCode, JobState, Record};
use serde_json::{Value, json};

/// A disk of a FAT partition and one that begins with `magic`.
fn disk(path: &Path, offset: u64, magic: &[u8]) -> PathBuf {
    let entry = |kind: u8, start: u8| [0, 0, 0, 0, kind, 0, 0, 0, 0, start, 0, 0, 0, 8, 0, 0];
    let table = [entry(0x0c, 8), entry(0x83, 16)].concat();
    let pieces: [(u64, &[u8]); 4] = [
        (446, &table),
        (510, &[0x55, 0xaa]),
        ((1 << 20) + 82, b"FAT32   "),
        ((2 << 20) + offset, magic),
    ];
    images::raw_disk(path, 4 << 20, &pieces)
}

/// Sends the disk, with a manifest if there is a pipeline; the job's record at its end.
fn convert(site: &Site, disk: &Path, pipeline: Option<Value>) -> Record {
    let mut daemon = site.start();
    match pipeline {
        None => site.deliver(disk, "vm.raw"),
        Some(pipeline) => {
            site.deliver(disk, ".disk.raw");
            let queue = &site.directories.queue;
            std::fs::create_dir(queue.join(".vm")).unwrap();
            std::fs::rename(queue.join(".disk.raw"), queue.join(".vm/disk.raw")).unwrap();
            let manifest = json!({"manifest_version": "1.0", "source": {"vm_name": "vm"},
                "disks": [{"id": "a", "source_format": "raw", "bytes": 0,
                    "local_path": "disk.raw"}], "pipeline": pipeline});
            std::fs::write(queue.join(".vm/manifest.json"), manifest.to_string()).unwrap();
            std::fs::rename(queue.join(".vm"), queue.join("vm")).unwrap();
        }
    }
    let mut record = None;
    daemon.wait(60, "the job ends", || {
        record = site.records().pop().filter(|it| it.state.is_final());
        record.is_some()
    });
    daemon.stop();
    record.unwrap()
}

fn metadata(site: &Site) -> Metadata {
    let path = site.directories.output.join("vm/metadata.json");
    Metadata::parse(&std::fs::read(path).unwrap()).unwrap()
}

fn codes(record: &Record) -> Vec<GuestCode> {
    record.findings.iter().map(|it| it.code).collect()
}

#[test]
fn what_no_repair_can_help_is_told_without_an_appliance() {
    for (offset, magic, code) in [
        (0, &b"LUKS\xba\xbe"[..], GuestCode::Locked),
        (3, b"-FVE-FS-", GuestCode::Locked),
        (3, b"NTFS    ", GuestCode::UnsupportedGuest),
    ] {
        let site = Site::repairing("[guest]\nfix = \"try\"\naccel = \"tcg\"\n");
        let disk = disk(&site.top.path().join("disk.raw"), offset, magic);
        let record = convert(&site, &disk, None);
        assert_eq!(record.state, JobState::Completed, "{:?}", record.error);
        assert_eq!(codes(&record), [code]);
        assert!(!record.timings.contains_key("guest_launch"), "{record:?}");
        let guest = metadata(&site).guest;
        assert_eq!(guest.code.as_deref(), Some(code.as_str()));
        assert_eq!(guest.findings, record.findings);

        let site = Site::repairing("[guest]\nfix = \"require\"\naccel = \"tcg\"\n");
        let record = convert(&site, &disk, None);
        assert_eq!(record.state, JobState::Failed);
        assert_eq!(record.error.as_ref().unwrap().kind, ErrorKind::Guest);
        assert_eq!(codes(&record), [code]);
        assert_eq!(record.progress.bytes_done, 0, "something was copied first");
        assert!(!record.timings.contains_key("convert"), "{record:?}");
    }
}

#[test]
fn a_manifest_switches_the_repair_off_and_the_validation_on() {
    let site = Site::repairing("[guest]\nfix = \"try\"\naccel = \"tcg\"\n");
    let disk = disk(&site.top.path().join("disk.raw"), 0, b"XFSB");
    let pipeline = json!({"inspect": {"enabled": true}, "fix": {"enabled": false, "colour": 1},
        "validate": {"enabled": true, "check_image_integrity": true}});
    let record = convert(&site, &disk, Some(pipeline));
    assert_eq!(record.state, JobState::Completed, "{:?}", record.error);
    let told = metadata(&site);
    assert_eq!(told.guest.code.as_deref(), Some("off"));
    let notes = record.notes.join("\n");
    assert!(notes.contains("pipeline.fix.colour"), "{notes}");
    assert!(
        notes.contains("pipeline.inspect.enabled has no effect"),
        "{notes}"
    );
    assert!(
        record.log.iter().any(|line| line.contains("validated")),
        "{:?}",
        record.log
    );
}
