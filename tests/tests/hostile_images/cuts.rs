//! Files that are cut off, before or while they are read.
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use converter::convert::{self, Plan};
use converter::disk::Unobserved;
use converter::error::{Error, ErrorKind, Result};
use converter::source;
use hyper2kvm_tests::engine::unpacker;
use hyper2kvm_tests::images::{self, qemu_img, text};
use hyper2kvm_tests::vmfs;
use queue::instance::config::Compress;
use queue::roots::Roots;

use super::forge::{extent, ova, raw};

/// The guest's bytes of a drop, as a digest; an error if any of them cannot be had.
fn content(owner: &Path, target: &Path) -> Result<String> {
    let roots = Roots::open(owner.parent().unwrap(), &[])?;
    let appliance = source::open(&roots, owner, false, &unpacker())?;
    let disk = appliance
        .disks
        .first()
        .ok_or_else(|| Error::invalid("no disk"))?;
    let _ = fs::remove_file(target);
    let plan = Plan {
        threads: 1,
        ..Plan::default()
    };
    let report = convert::copy(disk, target, &plan, &Unobserved)?;
    Ok(report.digest.expect("a digest that was always wanted"))
}

/// Cut at every 4 KiB a file is refused, or it still holds all of the disk: never another disk.
#[test]
fn no_truncation_is_another_disk() {
    let forms: [(&str, &str, &str); 9] = [
        ("vmdk", "subformat=monolithicSparse", "vm.vmdk"),
        ("vmdk", "subformat=streamOptimized", "vm.vmdk"),
        ("vmdk", "subformat=monolithicFlat", "vm-flat.vmdk"),
        ("vpc", "subformat=dynamic,force_size=on", "vm.vhd"),
        ("vpc", "subformat=fixed,force_size=on", "vm.vhd"),
        (
            "vhdx",
            "subformat=dynamic,block_size=1M,log_size=1M",
            "vm.vhdx",
        ),
        (
            "vhdx",
            "subformat=fixed,block_size=1M,log_size=1M",
            "vm.vhdx",
        ),
        ("qcow2", "cluster_size=64k", "vm.qcow2"),
        ("qcow2", "cluster_size=4k", "vm.qcow2"),
    ];
    for (format, options, cut) in forms {
        let dir = tempfile::tempdir().unwrap();
        let raw = images::raw_disk(
            &dir.path().join("a.raw"),
            400_896,
            &[
                (0, &images::noise(1, 100_000)),
                (300_000, &images::noise(2, 100_896)),
            ],
        );
        let owner = dir
            .path()
            .join(format!("vm.{}", cut.rsplit_once('.').unwrap().1));
        let (from, to) = (text(&raw), text(&owner));
        qemu_img(&[
            "convert", "-f", "raw", "-O", format, "-o", options, from, to,
        ]);
        cuts(
            &owner,
            &dir.path().join(cut),
            &format!("{format} {options}"),
        );
    }
    for (kind, bytes) in [("VMFSSPARSE", 0), ("SESPARSE", 1)] {
        let dir = tempfile::tempdir().unwrap();
        let disk = fs::read(raw(dir.path())).unwrap();
        let bytes = match bytes {
            0 => vmfs::cowd(&disk, 8),
            _ => vmfs::se_sparse(&disk, true),
        };
        let owner = dir.path().join(extent(dir.path(), kind, &bytes));
        cuts(&owner, &dir.path().join("vm-delta.vmdk"), kind);
    }
    let dir = tempfile::tempdir().unwrap();
    let owner = dir.path().join(ova(dir.path(), |_| ()));
    cuts(&owner, &owner, "ova");
}

/// Takes 4 KiB after 4 KiB from the end of `file`.
fn cuts(owner: &Path, file: &Path, what: &str) {
    let target = owner.with_file_name("cut.qcow2");
    let whole = content(owner, &target).unwrap_or_else(|error| panic!("{what}: {error}"));
    let length = fs::metadata(file).unwrap().len();
    let (mut refused, mut same) = (0, 0);
    for length in (0..length.div_ceil(4096)).rev().map(|block| block * 4096) {
        File::options()
            .write(true)
            .open(file)
            .unwrap()
            .set_len(length)
            .unwrap();
        match content(owner, &target) {
            Ok(digest) => {
                assert_eq!(digest, whole, "{what}: another disk at {length}");
                same += 1;
            }
            Err(error) => {
                let is_told = matches!(error.kind, ErrorKind::Corrupt | ErrorKind::Invalid);
                assert!(is_told, "{what} at {length}: {}: {error}", error.kind);
                refused += 1;
            }
        }
    }
    println!("{what}: {refused} cuts refused, {same} held all of the disk");
    assert!(refused > 0, "{what}");
}

/// A file that shrinks while it is read is an error, whatever its form and the way it is copied.
#[test]
fn a_source_that_shrinks_is_refused() {
    for (name, options) in [
        ("raw", ""),
        ("vmdk", "subformat=streamOptimized"),
        ("qcow2", ""),
    ] {
        for compress in [Compress::None, Compress::Zlib] {
            let dir = tempfile::tempdir().unwrap();
            let raw = raw(dir.path());
            let path = dir.path().join(format!("vm.{name}"));
            let (from, to) = (text(&raw), text(&path));
            let convert = ["convert", "-f", "raw", "-O", name, "-S", "0"];
            match options {
                "" => qemu_img(&[&convert[..], &[from, to]].concat()),
                options => qemu_img(&[&convert[..5], &["-o", options, from, to]].concat()),
            };
            let roots = Roots::open(dir.path(), &[]).unwrap();
            let appliance = source::open(&roots, &path, false, &unpacker()).unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            let length = file.metadata().unwrap().len();
            file.set_len(length / 2).unwrap();
            let plan = Plan {
                compress,
                threads: 2,
                ..Plan::default()
            };
            let target = dir.path().join("out.qcow2");
            let error = convert::copy(&appliance.disks[0], &target, &plan, &Unobserved);
            let error = error.expect_err(name);
            assert_eq!(error.kind, ErrorKind::Corrupt, "{name}: {error}");
            assert!(error.to_string().contains("truncated"), "{name}: {error}");
            // And one that grows is read as far as it was known.
            file.write_all_at(&[1; 512], length + (1 << 20)).unwrap();
        }
    }
}
