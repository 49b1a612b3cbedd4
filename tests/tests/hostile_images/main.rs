//! Images that were made to harm, by name: each is refused by its parser with kind and cause, and
//! each gets its `.error` from a real daemon, which goes on to convert the next good disk.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a panic is how a test fails
mod cases;
mod cuts;
mod daemon;
mod forge;

use std::fs;
use std::path::Path;

use converter::convert::{self, Plan};
use converter::disk::Unobserved;
use converter::error::Result;
use converter::source;
use hyper2kvm_tests::engine::unpacker;
use hyper2kvm_tests::images;
use queue::instance::config::Compress;
use queue::roots::Roots;

use self::cases::Case;
use self::forge::{made, raw};

/// Opens the owner and converts all of its disks, each with and without compression.
fn convert(owner: &Path, target: &Path) -> Result<()> {
    let roots = Roots::open(owner.parent().unwrap(), &[])?;
    let appliance = source::open(&roots, owner, true, &unpacker())?;
    for disk in &appliance.disks {
        for compress in [Compress::Zlib, Compress::None] {
            let plan = Plan {
                compress,
                threads: 2,
                ..Plan::default()
            };
            let _ = fs::remove_file(target);
            convert::copy(disk, target, &plan, &Unobserved)?;
        }
    }
    Ok(())
}

fn refuses(case: &Case) {
    let top = tempfile::tempdir().unwrap();
    let dir = top.path().join(case.name);
    fs::create_dir(&dir).unwrap();
    let owner = dir.join((case.make)(&dir));
    let error = convert(&owner, &top.path().join("out.qcow2")).expect_err(case.name);
    let told = format!("{error}: {:?}", error.chain());
    assert_eq!(error.kind, case.kind, "{told}");
    assert!(told.contains(case.says), "{told}");
    let passwords = fs::read_to_string("/etc/passwd").unwrap();
    assert!(!told.contains(passwords.lines().next().unwrap()), "{told}");
}

/// A dirty bit says that refcounts may be wrong; of those nothing is read.
#[test]
fn a_dirty_qcow2_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let name = made(
        dir.path(),
        "qcow2",
        "cluster_size=64k",
        "vm.qcow2",
        |bytes| bytes[79] |= 1,
    );
    let target = dir.path().join("out.qcow2");
    convert(&dir.path().join(name), &target).unwrap();
    images::judge(&raw(dir.path()), &target, "qcow2");
}
