//! Truth, continued: compressed targets, layered sources and what qemu-img says of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a panic is how a test fails
use std::path::{Path, PathBuf};

use converter::convert::{self, DiskReport, Plan};
use converter::disk::{BLOCK_BYTES, Stored};
use converter::error::ErrorKind;
use converter::source::SourceDisk;
use hyper2kvm_tests::deflate::farthest;
use hyper2kvm_tests::engine::{copy, fails, open};
use hyper2kvm_tests::{images, vmfs};
use queue::instance::config::Compress;

/// Converts `owner`, has qemu-img hold the result against `raw`, and reads it back.
fn converts(owner: &Path, raw: &Path, target: &Path, plan: &Plan) -> DiskReport {
    let report = copy(owner, target, plan).unwrap_or_else(|error| fails(&error));
    images::judge(raw, target, "qcow2");
    let digest = convert::digest_of_qcow2(target).unwrap_or_else(|error| fails(&error));
    assert_eq!(Some(digest), report.digest);
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
    let theirs = theirs.next_multiple_of(BLOCK_BYTES);
    assert!(usual <= theirs, "{usual} {theirs}");
}

/// The compressed units of a disk: the guest's offset, and where in the file the unit begins.
fn units(disk: &SourceDisk) -> Vec<(u64, u64)> {
    let packed = |extent: converter::disk::Extent| match extent.stored {
        Stored::Packed { unit, .. } if unit.unpacked_bytes == BLOCK_BYTES => {
            Some((unit.guest.0, unit.offset.0))
        }
        _ => None,
    };
    let extents = disk.image.extents().map(|extent| extent.unwrap());
    extents.filter_map(packed).collect()
}

/// The deflate stream of the grain whose marker is at `offset` of a streamOptimized VMDK.
fn grain_stream(vmdk: &[u8], offset: u64) -> &[u8] {
    let marker = offset as usize;
    let length = u32::from_le_bytes(vmdk[marker + 8..marker + 12].try_into().unwrap());
    &vmdk[marker + 14..marker + 12 + length as usize - 4]
}

#[test]
fn grains_are_carried_over_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let raw = images::ext4(dir.path());
    let vmdk = images::vmdk(&raw, "streamOptimized", &dir.path().join("source"));
    let source = std::fs::read(&vmdk).unwrap();
    let grains = units(&open(&vmdk).unwrap().disks[0]);

    let target = dir.path().join("carried.qcow2");
    let report = converts(&vmdk, &raw, &target, &plan(Compress::Zlib, 2));
    let bytes = std::fs::read(&target).unwrap();
    let clusters = units(&convert::reopen(&target).unwrap());
    let mut found = 0;
    for (guest, offset) in &grains {
        let stream = grain_stream(&source, *offset);
        if let Some((_, at)) = clusters.iter().find(|(other, _)| other == guest) {
            assert!(bytes[*at as usize..].starts_with(stream), "at {guest}");
            found += 1;
        }
    }
    assert_eq!(found, report.grains_transplanted);
    assert!(found > 20, "{found} grains");
    // Only the last grain, which the capacity cuts, is not a whole cluster.
    assert!(report.clusters_encoded <= 1);
    let distances = grains
        .iter()
        .map(|(_, offset)| farthest(grain_stream(&source, *offset)));
    assert!(
        distances.max() > Some(30_000),
        "the source's window is 32 KiB"
    );

    let strict = Plan {
        strict_window: true,
        ..plan(Compress::Zlib, 2)
    };
    let target = dir.path().join("strict.qcow2");
    let again = converts(&vmdk, &raw, &target, &strict);
    assert_eq!(again.grains_transplanted, 0);
    assert!(again.clusters_encoded >= found);
    assert_eq!(again.digest, report.digest);
    let bytes = std::fs::read(&target).unwrap();
    for (guest, offset) in units(&convert::reopen(&target).unwrap()) {
        let distance = farthest(&bytes[offset as usize..]);
        assert!(distance <= 4096, "{distance} at {guest}");
    }
}

#[test]
fn a_damaged_grain_is_never_carried_over() {
    let dir = tempfile::tempdir().unwrap();
    let raw = images::ext4(dir.path());
    let vmdk = images::vmdk(&raw, "streamOptimized", &dir.path().join("source"));
    let sound = std::fs::read(&vmdk).unwrap();
    let grains = units(&open(&vmdk).unwrap().disks[0]);
    let (_, offset) = grains[grains.len() / 2];
    let length = grain_stream(&sound, offset).len();
    let start = offset as usize + 14;
    // In the zlib header, at the stream's middle, and in the Adler-32.
    for at in [start - 2, start + length / 2, start + length + 3] {
        let mut damaged = sound.clone();
        damaged[at] ^= 0x10;
        std::fs::write(&vmdk, damaged).unwrap();
        for compress in [Compress::None, Compress::Zlib, Compress::Zstd] {
            let target = dir.path().join("damaged.qcow2");
            let error = copy(&vmdk, &target, &plan(compress, 2)).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
            assert!(
                error.to_string().contains(&format!("offset {offset} ")),
                "{error}"
            );
            // Without a header it is no image that anyone might use.
            assert!(convert::digest_of_qcow2(&target).is_err());
            std::fs::remove_file(&target).unwrap();
        }
    }
}

fn descriptor(create_type: &str, line: &str, parent: Option<(&str, &str)>) -> String {
    let (content_id, hint) = parent.unwrap_or(("ffffffff", ""));
    let hint = match hint {
        "" => String::new(),
        hint => format!("parentFileNameHint=\"{hint}\"\n"),
    };
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID={content_id}\n{hint}\
         createType=\"{create_type}\"\n{line}\n"
    )
}

/// Writes an extent of ESXi's and its descriptor, which is returned.
fn esxi(
    dir: &Path,
    kind: &str,
    extent: &[u8],
    size: usize,
    parent: Option<(&str, &str)>,
) -> PathBuf {
    let file = format!("{kind}-extent.vmdk");
    std::fs::write(dir.join(&file), extent).unwrap();
    let line = format!("RW {} {} \"{file}\"", size / 512, kind.to_ascii_uppercase());
    let path = dir.join(format!("{kind}.vmdk"));
    std::fs::write(&path, descriptor(kind, &line, parent)).unwrap();
    path
}

/// What qemu-img reads in a VMDK and its parents.
fn truth(vmdk: &Path) -> PathBuf {
    let raw = vmdk.with_extension("truth");
    let (vmdk, to) = (images::text(vmdk), images::text(&raw));
    images::qemu_img(&["convert", "-f", "vmdk", "-O", "raw", vmdk, to]);
    raw
}

#[test]
fn extents_of_esxi() {
    let dir = tempfile::tempdir().unwrap();
    let raw = images::edges(dir.path());
    let disk = std::fs::read(&raw).unwrap();
    for (kind, extent) in [
        ("vmfsSparse", vmfs::cowd(&disk, 1)),
        ("vmfsSparse", vmfs::cowd(&disk, 128)),
        ("seSparse", vmfs::se_sparse(&disk, true)),
    ] {
        let vmdk = esxi(dir.path(), kind, &extent, disk.len(), None);
        let theirs = truth(&vmdk);
        assert!(
            std::fs::read(&theirs).unwrap() == disk,
            "the test's own writer errs"
        );
        let target = dir.path().join("out.qcow2");
        converts(&vmdk, &raw, &target, &plan(Compress::None, 2));
        std::fs::remove_file(&target).unwrap();
        let alone = open(&dir.path().join(format!("{kind}-extent.vmdk")))
            .err()
            .unwrap();
        assert_eq!(alone.kind, ErrorKind::Invalid);
        assert!(alone.remedy.unwrap().contains("descriptor"));
    }
    // A journal that is to be replayed, and other versions.
    for (at, value) in [(512 + 24, 1), (8, 9), (24, 16), (40, 1)] {
        let mut extent = vmfs::se_sparse(&disk, false);
        extent[at] = value;
        let vmdk = esxi(dir.path(), "seSparse", &extent, disk.len(), None);
        assert_eq!(
            open(&vmdk).err().unwrap().kind,
            ErrorKind::Unsupported,
            "at {at}"
        );
    }
}

/// A base of edges, and two deltas of it that qemu-io wrote into.
fn chain(dir: &Path) -> [PathBuf; 3] {
    let raw = images::edges(dir);
    let base = images::vmdk(&raw, "monolithicSparse", dir);
    let mut below = base.clone();
    let deltas = ["delta1.vmdk", "delta2.vmdk"].map(|name| {
        let delta = dir.join(name);
        let backing = below.file_name().unwrap().to_str().unwrap();
        let path = images::text(&delta);
        images::qemu_img(&[
            "create", "-q", "-f", "vmdk", "-b", backing, "-F", "vmdk", path,
        ]);
        let at = if name == "delta1.vmdk" {
            60_000
        } else {
            9_000_000
        };
        for write in [
            format!("write -P 7 {at} 100000"),
            "write -P 1 65536 4096".to_owned(),
        ] {
            images::run("qemu-utils", "qemu-io", &["-f", "vmdk", "-c", &write, path]);
        }
        below.clone_from(&delta);
        delta
    });
    let [first, second] = deltas;
    [base, first, second]
}

#[test]
fn delta_disks_over_their_parents() {
    let dir = tempfile::tempdir().unwrap();
    let [base, first, second] = chain(dir.path());
    for vmdk in [&first, &second] {
        for compress in [Compress::None, Compress::Zlib] {
            let target = dir.path().join("out.qcow2");
            converts(vmdk, &truth(vmdk), &target, &plan(compress, 2));
            std::fs::remove_file(&target).unwrap();
        }
    }
    // Deltas of ESXi's over the same base.
    let text = std::fs::read(&base).unwrap();
    let text = String::from_utf8_lossy(&text[512..2048]).into_owned();
    let content_id = &text.split_once("\nCID=").unwrap().1[..8];
    let mut changes = vec![
        0;
        std::fs::metadata(dir.path().join("edges.raw"))
            .unwrap()
            .len() as usize
    ];
    changes[70_000..200_000].fill(9);
    let parent = Some((content_id, "vm.vmdk"));
    for (kind, extent) in [
        ("vmfsSparse", vmfs::cowd(&changes, 1)),
        ("seSparse", vmfs::se_sparse(&changes, false)),
        ("seSparse", vmfs::se_sparse(&changes, true)),
    ] {
        let vmdk = esxi(dir.path(), kind, &extent, changes.len(), parent);
        let target = dir.path().join("out.qcow2");
        converts(&vmdk, &truth(&vmdk), &target, &plan(Compress::None, 2));
        std::fs::remove_file(&target).unwrap();
    }
}

#[test]
fn chains_that_do_not_hold() {
    let dir = tempfile::tempdir().unwrap();
    let disk = vec![0; 1 << 20];
    let extent = vmfs::cowd(&disk, 1);
    for (parent, kind) in [
        (("12345678", "absent.vmdk"), ErrorKind::Invalid),
        (("12345678", ""), ErrorKind::Corrupt),
        (("12345678", "../../etc/passwd"), ErrorKind::Invalid),
        (("12345678", "/etc/passwd"), ErrorKind::Invalid),
        // Itself, as its own parent.
        (("12345678", "vmfsSparse.vmdk"), ErrorKind::Corrupt),
        (("12345678", "./vmfsSparse.vmdk"), ErrorKind::Corrupt),
        // A parent that was changed since.
        (("87654321", "vmfsSparse.vmdk"), ErrorKind::Corrupt),
        (("87654321", "vmfsSparse-extent.vmdk"), ErrorKind::Corrupt),
    ] {
        let vmdk = esxi(dir.path(), "vmfsSparse", &extent, disk.len(), Some(parent));
        let error = open(&vmdk).err().unwrap();
        assert_eq!(error.kind, kind, "{parent:?}: {error}");
    }
}
