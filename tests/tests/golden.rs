//! Truth: what the engine writes is what the guest saw, with qemu-img as the judge.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a panic is how a test fails
use std::path::{Path, PathBuf};

use converter::convert::{self, DiskReport, Plan};
use converter::disk::Unobserved;
use converter::error::ErrorKind;
use hyper2kvm_tests::engine::{copy, fails, open};
use hyper2kvm_tests::images;
use queue::instance::config::{Compress, OutFormat};

fn copy_with(owner: &Path, target: &Path, plan: &Plan) -> DiskReport {
    copy(owner, target, plan).unwrap_or_else(|error| fails(&error))
}

fn plan(threads: usize) -> Plan {
    Plan {
        threads,
        ..Plan::default()
    }
}

/// Converts `owner` with 1, 2 and 8 threads: the bytes must be the same and the guest's be `raw`'s.
fn converts(owner: &Path, raw: &Path, dir: &Path) -> String {
    let target = dir.join("1.qcow2");
    let report = copy_with(owner, &target, &plan(1));
    images::judge(raw, &target, "qcow2");
    let bytes = std::fs::read(&target).unwrap();
    assert_eq!(report.output_bytes, bytes.len() as u64);
    for threads in [2, 8] {
        let other = dir.join(format!("{threads}.qcow2"));
        let again = copy_with(owner, &other, &plan(threads));
        // Which holes a file has may change while the kernel writes it back.
        let hole_bytes = report.hole_bytes;
        assert_eq!(
            DiskReport {
                hole_bytes,
                ..again
            },
            report
        );
        assert!(bytes == std::fs::read(&other).unwrap(), "{threads} threads");
    }
    let digest = report.digest.clone().unwrap();
    assert_eq!(convert::digest_of_qcow2(&target).unwrap(), digest);
    packs(owner, raw, dir, &digest);
    let raw_target = dir.join("1.raw");
    let format = OutFormat::Raw;
    let raw_report = copy_with(owner, &raw_target, &Plan { format, ..plan(2) });
    assert_eq!(raw_report.digest, report.digest);
    images::judge(raw, &raw_target, "raw");
    digest
}

/// The same, compressed; a grain that comes deflated is carried over as it is.
fn packs(owner: &Path, raw: &Path, dir: &Path, digest: &str) {
    let packed = |threads: usize| {
        let target = dir.join(format!("packed-{threads}.qcow2"));
        let compress = Compress::Zlib;
        let report = copy_with(
            owner,
            &target,
            &Plan {
                compress,
                ..plan(threads)
            },
        );
        assert_eq!(report.digest.as_deref(), Some(digest));
        (target, report.output_bytes)
    };
    let (target, output_bytes) = packed(1);
    images::judge(raw, &target, "qcow2");
    assert_eq!(convert::digest_of_qcow2(&target).unwrap(), digest);
    let bytes = std::fs::read(&target).unwrap();
    assert_eq!(output_bytes, bytes.len() as u64);
    for threads in [2, 8] {
        let (other, _) = packed(threads);
        assert!(bytes == std::fs::read(&other).unwrap(), "{threads} threads");
    }
}

/// Every form of the same content: all judged, one digest.
fn every_form(raw: fn(&Path) -> PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let raw = raw(dir.path());
    let out = dir.path().join("raw");
    std::fs::create_dir(&out).unwrap();
    let digest = converts(&raw, &raw, &out);
    for subformat in images::SUBFORMATS {
        let place = dir.path().join(subformat);
        let vmdk = images::vmdk(&raw, subformat, &place);
        let shown = open(&vmdk).unwrap().disks.first().unwrap().format.clone();
        assert_eq!(shown, format!("vmdk ({subformat})"));
        assert_eq!(converts(&vmdk, &raw, &place), digest, "{subformat}");
        std::fs::remove_dir_all(&place).unwrap();
    }
}

#[test]
fn data_at_the_edges() {
    every_form(images::edges);
}

#[test]
fn file_system_with_files() {
    every_form(images::ext4);
}

#[test]
fn all_zeros() {
    every_form(images::all_zero);
}

#[test]
fn one_sector() {
    every_form(images::one_sector);
}

#[test]
fn sparse_1_tib() {
    let dir = tempfile::tempdir().unwrap();
    let raw = images::huge(dir.path());
    let mut digests = Vec::new();
    for subformat in ["streamOptimized", "monolithicSparse", "monolithicFlat"] {
        let place = dir.path().join(subformat);
        let vmdk = images::vmdk(&raw, subformat, &place);
        let target = place.join("vm.qcow2");
        let report = copy_with(&vmdk, &target, &plan(2));
        assert!(report.output_bytes < 2 << 20, "{}", report.output_bytes);
        images::judge(&raw, &target, "qcow2");
        digests.push(report.digest);
    }
    let target = dir.path().join("vm.qcow2");
    digests.push(copy_with(&raw, &target, &plan(2)).digest);
    images::judge(&raw, &target, "qcow2");
    assert!(digests.iter().all(|digest| digest == &digests[0]));
}

/// 62 TiB made of pieces, one of them off the grain: more than a file system here can hold.
#[test]
fn sparse_62_tib_in_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let data = images::noise(7, 3 << 20);
    std::fs::write(dir.path().join("flat"), &data).unwrap();
    let sectors = 62u64 << 31;
    let half = sectors / 2 + 77;
    let rest = sectors - half - 2048 - 1;
    std::fs::write(
        dir.path().join("vm.vmdk"),
        format!(
            "# Disk DescriptorFile\ncreateType=\"twoGbMaxExtentFlat\"\nRW {half} ZERO\n\
             RW 2048 FLAT \"flat\" 5\nRW {rest} ZERO\nRW 1 FLAT \"flat\" 0\n"
        ),
    )
    .unwrap();
    let target = dir.path().join("vm.qcow2");
    let report = copy_with(&dir.path().join("vm.vmdk"), &target, &plan(2));
    assert_eq!(report.virtual_size_bytes, 62 << 40);
    assert!(report.output_bytes < 4 << 20, "{}", report.output_bytes);
    images::qemu_img(&["check", "-q", "-f", "qcow2", images::text(&target)]);
    for (sector, offset) in [(half, 5 * 512), (half + 2047, 2052 * 512), (sectors - 1, 0)] {
        let part = dir.path().join("part.raw");
        let options = format!(
            "offset={},size=512,driver=raw,file.driver=qcow2",
            sector * 512
        );
        let file = format!(
            "file.file.driver=file,file.file.filename={}",
            images::text(&target)
        );
        let source = format!("{options},{file}");
        images::qemu_img(&[
            "convert",
            "--image-opts",
            "-O",
            "raw",
            &source,
            images::text(&part),
        ]);
        assert_eq!(
            std::fs::read(&part).unwrap(),
            data[offset..offset + 512],
            "{sector}"
        );
    }
}

#[test]
fn appliances_with_two_disks() {
    let dir = tempfile::tempdir().unwrap();
    let raws = [images::edges(dir.path()), images::ext4(dir.path())];
    let mut digests = String::new();
    let mut named = Vec::new();
    for (raw, name) in raws.iter().zip(["disk one.vmdk", "disk2.vmdk"]) {
        let vmdk = images::vmdk(
            raw,
            "streamOptimized",
            &dir.path().join(name).with_extension("d"),
        );
        std::fs::rename(&vmdk, dir.path().join(name)).unwrap();
        named.push((name, std::fs::metadata(raw).unwrap().len()));
    }
    let ovf = images::ovf(&named).replace("disk one", "disk%20one");
    std::fs::write(dir.path().join("vm.ovf"), ovf).unwrap();
    for name in ["vm.ovf", "disk one.vmdk", "disk2.vmdk"] {
        let path = dir.path().join(name);
        let output = images::run("coreutils", "sha256sum", &[images::text(&path)]);
        let hex = String::from_utf8(output.stdout).unwrap()[..64].to_owned();
        digests += &format!("SHA256({name})= {hex}\n");
    }
    std::fs::write(dir.path().join("vm.mf"), &digests).unwrap();
    let ova = images::ova(
        dir.path(),
        &["vm.ovf", "vm.mf", "disk one.vmdk", "disk2.vmdk"],
    );
    for owner in [&ova, &dir.path().join("vm.ovf")] {
        let appliance = open(owner).unwrap();
        assert_eq!(appliance.machine.cpus, Some(2));
        assert_eq!(appliance.disks.len(), 2);
        for (disk, raw) in appliance.disks.iter().zip(&raws) {
            assert_eq!(disk.checksums.len(), 1);
            let target = dir.path().join("out.qcow2");
            convert::copy(disk, &target, &plan(2), &Unobserved).unwrap();
            images::judge(raw, &target, "qcow2");
            std::fs::remove_file(&target).unwrap();
        }
    }
    // A digest that does not match is found before the copy counts as done.
    let (head, last) = digests.trim_end().rsplit_once(' ').unwrap();
    let changed = last.chars().map(|c| if c == '0' { '1' } else { '0' });
    let wrong = format!("{head} {}\n", changed.collect::<String>());
    std::fs::write(dir.path().join("vm.mf"), wrong).unwrap();
    let appliance = open(&dir.path().join("vm.ovf")).unwrap();
    let target = dir.path().join("out.qcow2");
    let error = convert::copy(&appliance.disks[1], &target, &plan(2), &Unobserved).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt);
    assert!(error.to_string().contains("vm.mf"), "{error}");
}

/// Packed and whole blocks across several refcount blocks, without a byte of data written.
#[test]
fn refcounts_of_large_packed_images() {
    use converter::disk::{BLOCK_BYTES, Layout};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.qcow2");
    let file = std::fs::File::create_new(&path).unwrap();
    let blocks = 150_000;
    let capacity_bytes = blocks * BLOCK_BYTES;
    let mut layout = converter::qcow2::Qcow2Layout::new(
        file.into(),
        path.clone(),
        capacity_bytes,
        converter::qcow2::Compression::Zlib,
    );
    for (index, size) in (0..blocks).zip(images::noise(9, blocks as usize)) {
        match size {
            0..20 => continue,
            20..60 => layout.place(index).unwrap(),
            60..100 => layout.place_packed(index, u64::from(size)).unwrap(),
            _ => layout.place_packed(index, u64::from(size) * 256).unwrap(),
        };
    }
    layout.finish().unwrap();
    images::qemu_img(&["check", "-q", "-f", "qcow2", images::text(&path)]);
}
