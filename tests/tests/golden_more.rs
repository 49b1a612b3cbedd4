//! Truth, continued: compressed targets, layered sources and what qemu-img says of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a panic is how a test fails
use std::path::{Path, PathBuf};

use converter::convert::{self, DiskReport, Plan};
use converter::disk::Unobserved;
use converter::error::{Error, Result};
use converter::source::{self, Appliance};
use hyper2kvm_tests::images;
use queue::instance::config::Compress;
use queue::roots::Roots;

fn open(owner: &Path) -> Result<Appliance> {
    let roots = Roots::open(owner.parent().unwrap(), &[])?;
    source::open(&roots, owner, true)
}

fn copy(owner: &Path, target: &Path, plan: &Plan) -> Result<DiskReport> {
    convert::copy(&open(owner)?.disks[0], target, plan, &Unobserved)
}

fn fails(error: &Error) -> ! {
    panic!("{error}: {:?}", error.chain())
}

/// Converts `owner`, has qemu-img hold the result against `raw`, and reads it back.
fn converts(owner: &Path, raw: &Path, target: &Path, plan: &Plan) -> DiskReport {
    let report = copy(owner, target, plan).unwrap_or_else(|error| fails(&error));
    images::judge(raw, target, "qcow2");
    let digest = convert::digest_of_qcow2(target).unwrap_or_else(|error| fails(&error));
    assert_eq!(digest, report.digest);
    report
}

fn plan(compress: Compress, threads: usize) -> Plan {
    Plan {
        compress,
        threads,
        ..Plan::default()
    }
}

/// The raw disk, and a VMDK of it for each of the subformats.
fn sources(raw: &Path, subformats: &[&str]) -> Vec<PathBuf> {
    let dir = raw.parent().unwrap();
    let vmdk = |subformat: &&str| images::vmdk(raw, subformat, &dir.join(subformat));
    let vmdks = subformats.iter().map(vmdk);
    std::iter::once(raw.to_path_buf()).chain(vmdks).collect()
}

#[test]
fn zstd_of_every_source() {
    for make in [
        images::edges,
        images::ext4,
        images::all_zero,
        images::one_sector,
    ] {
        let dir = tempfile::tempdir().unwrap();
        let raw = make(dir.path());
        let mut first: Option<Vec<u8>> = None;
        for (number, owner) in sources(&raw, &["streamOptimized", "monolithicSparse"])
            .iter()
            .enumerate()
        {
            for threads in [1, 2, 8] {
                let target = dir.path().join(format!("{number}-{threads}.qcow2"));
                converts(owner, &raw, &target, &plan(Compress::Zstd, threads));
                // Whatever the container and the threads, zstd sees the same blocks.
                let bytes = std::fs::read(&target).unwrap();
                assert!(first.get_or_insert_with(|| bytes.clone()) == &bytes);
                std::fs::remove_file(&target).unwrap();
            }
        }
    }
}

#[test]
fn zstd_is_what_the_image_says() {
    let dir = tempfile::tempdir().unwrap();
    let raw = images::ext4(dir.path());
    let length = |name: &str, plan: &Plan| {
        let target = dir.path().join(name);
        converts(&raw, &raw, &target, plan);
        std::fs::metadata(&target).unwrap().len()
    };
    let usual = length("3.qcow2", &plan(Compress::Zstd, 2));
    let info = images::qemu_img(&["info", images::text(&dir.path().join("3.qcow2"))]);
    assert!(info.contains("compression type: zstd"), "{info}");
    let best = Plan {
        compress_level: Some(19),
        ..plan(Compress::Zstd, 2)
    };
    assert!(length("19.qcow2", &best) < usual);
    // And no larger than what qemu-img makes of it, which does not fill the last cluster.
    let theirs = dir.path().join("theirs.qcow2");
    images::qemu_img(&[
        "convert",
        "-c",
        "-O",
        "qcow2",
        "-o",
        "compression_type=zstd",
        images::text(&raw),
        images::text(&theirs),
    ]);
    let theirs = std::fs::metadata(&theirs).unwrap().len();
    let theirs = theirs.next_multiple_of(converter::disk::BLOCK_BYTES);
    assert!(usual <= theirs, "{usual} {theirs}");
}
