//! Differential oracles: readers of other hands and ours agree sector by sector, on what qemu-img
//! writes in every form that it has, at sizes where grains, blocks and clusters end early.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a panic is how a test fails
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use converter::convert::{self, Plan};
use converter::disk::{Image, Stored, Unobserved};
use converter::source::{self, SourceDisk};
use hyper2kvm_tests::engine::unpacker;
use hyper2kvm_tests::images::{self, qemu_img, text};
use imago::file::File as ImagoFile;
use imago::qcow2::Qcow2;
use imago::vmdk::Vmdk;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};
use queue::instance::config::Compress;
use queue::roots::Roots;

const STEP: usize = 1 << 20;
const SECTOR: usize = 512;

/// Fills the buffer with the guest's bytes from an offset on.
type Other<'a> = Box<dyn FnMut(u64, &mut [u8]) + 'a>;

fn open(owner: &Path) -> SourceDisk {
    let roots = Roots::open(owner.parent().unwrap(), &[]).unwrap();
    let appliance = source::open(&roots, owner, true, &unpacker())
        .unwrap_or_else(|error| panic!("{error}: {:?}", error.chain()));
    appliance.disks.into_iter().next().unwrap()
}

/// Gives the whole disk to `see`, in order, piece by piece.
fn walk(image: &dyn Image, mut see: impl FnMut(u64, &[u8])) {
    let zeros = vec![0; STEP];
    let mut end = 0;
    for extent in image.extents() {
        let extent = extent.unwrap();
        assert_eq!(extent.start.0, end, "the map has gaps");
        end += extent.length_bytes;
        let pieces = (0..extent.length_bytes).step_by(STEP);
        let pieces = pieces.map(|at| (at, (extent.length_bytes - at).min(STEP as u64) as usize));
        match extent.stored {
            Stored::Hole | Stored::Zero => {
                pieces.for_each(|(at, length)| see(extent.start.0 + at, &zeros[..length]));
            }
            Stored::Plain { file, offset } => pieces.for_each(|(at, length)| {
                let file = &image.files()[file];
                let there = file.length_bytes().saturating_sub(offset.0 + at) as usize;
                let mut bytes = file.read_vec(offset.0 + at, length.min(there)).unwrap();
                // A writer's last block ends with its file.
                bytes.resize(length, 0);
                see(extent.start.0 + at, &bytes);
            }),
            Stored::Packed { unit, skip_bytes } => {
                let file = &image.files()[unit.file];
                let stored = file
                    .read_vec(unit.offset.0, unit.limit_bytes as usize)
                    .unwrap();
                let mut out = vec![0; unit.unpacked_bytes as usize];
                image.unpack(&unit, &stored, &mut out).unwrap();
                let part = skip_bytes as usize..(skip_bytes + extent.length_bytes) as usize;
                see(extent.start.0, &out[part]);
            }
        }
    }
    assert_eq!(end, image.capacity_bytes());
}

/// Ours and each of the others are the same disk.
fn agree(what: &str, owner: &Path, others: &mut [(&str, Other)]) {
    let disk = open(owner);
    // As long as the largest unit of any form.
    let mut theirs = vec![0; 2 * STEP];
    walk(disk.image.as_ref(), |at, ours| {
        for (name, other) in &mut *others {
            let theirs = &mut theirs[..ours.len()];
            other(at, theirs);
            if ours != theirs {
                let pairs = ours.chunks(SECTOR).zip(theirs.chunks(SECTOR));
                let sector = pairs.take_while(|(one, other)| one == other).count();
                panic!(
                    "{what}: {name} differs in sector {}",
                    at / 512 + sector as u64
                );
            }
        }
    });
}

/// A raw file; behind its end are zeros.
fn truth<'a>(raw: &Path) -> (&'a str, Other<'a>) {
    let file = File::open(raw).unwrap();
    let length = file.metadata().unwrap().len();
    let other = move |at: u64, bytes: &mut [u8]| {
        let there = (length.saturating_sub(at) as usize).min(bytes.len());
        bytes[there..].fill(0);
        file.read_exact_at(&mut bytes[..there], at).unwrap();
    };
    ("the raw disk", Box::new(other))
}

fn stream<'a>(name: &'a str, mut reader: impl Read + Seek + 'a) -> (&'a str, Other<'a>) {
    let other = move |at: u64, bytes: &mut [u8]| {
        reader.seek(SeekFrom::Start(at)).unwrap();
        reader.read_exact(bytes).unwrap();
    };
    (name, Box::new(other))
}

fn vmdk_core<'a>(path: &Path) -> (&'a str, Other<'a>) {
    let reader = vmdk::VmdkFileReader::open_path(path).unwrap();
    assert_eq!(reader.virtual_disk_size(), open(path).capacity_bytes);
    stream("vmdk-core", reader)
}

fn vhdx_core<'a>(path: &Path) -> (&'a str, Other<'a>) {
    let reader = vhdx::VhdxReader::open(path).unwrap();
    assert_eq!(reader.virtual_disk_size(), open(path).capacity_bytes);
    stream("vhdx-core", reader)
}

fn imago<'a>(access: FormatAccess<ImagoFile>, size: u64) -> (&'a str, Other<'a>) {
    assert_eq!(access.size(), size);
    let other = move |at: u64, bytes: &mut [u8]| access.read(bytes, at).unwrap();
    ("imago", Box::new(other))
}

fn imago_qcow2<'a>(path: &Path) -> (&'a str, Other<'a>) {
    let qcow2 = Qcow2::<ImagoFile>::builder_path(path);
    let qcow2 = qcow2.open(PermissiveImplicitOpenGate::default()).unwrap();
    imago(FormatAccess::new(qcow2), open(path).capacity_bytes)
}

fn imago_vmdk<'a>(path: &Path) -> (&'a str, Other<'a>) {
    let vmdk = Vmdk::<ImagoFile>::builder_path(path);
    let vmdk = vmdk.open(PermissiveImplicitOpenGate::default()).unwrap();
    imago(FormatAccess::new(vmdk), open(path).capacity_bytes)
}

/// Sectors of their own at both ends and in the middle, compressible data between.
fn raw(dir: &Path, size: u64) -> PathBuf {
    let sector = |seed| images::noise(seed, SECTOR);
    let half = size / 1024 * 512;
    let words = b"sector by sector ".repeat(9000);
    let words = &words[..words.len().min((size - half) as usize)];
    let (first, last) = (sector(1), sector(2));
    let pieces: [(u64, &[u8]); 3] = [(0, &first), (half, words), (size - 512, &last)];
    images::raw_disk(&dir.join(format!("{size}.raw")), size, &pieces)
}

const KIB_64: u64 = 65_536;
/// One sector, around a grain, around a grain table and a block, and no multiple of anything.
const SIZES: [u64; 7] = [
    512,
    KIB_64 - 512,
    KIB_64,
    KIB_64 + 512,
    (2 << 20) + 512,
    (32 << 20) - 512,
    (33 << 20) + 77 * 512,
];
/// Past what 32 bits of bytes reach.
const LARGE: u64 = (4 << 30) + 3 * 512;

fn convert(raw: &Path, format: &str, options: &[&str], to: &Path) {
    let arguments = [
        &["convert", "-f", "raw", "-O", format],
        options,
        &[text(raw), text(to)],
    ];
    qemu_img(&arguments.concat());
}

#[test]
fn vmdk_of_every_subformat() {
    for size in SIZES {
        let dir = tempfile::tempdir().unwrap();
        let raw = raw(dir.path(), size);
        for subformat in images::SUBFORMATS {
            let path = images::vmdk(&raw, subformat, &dir.path().join(subformat));
            let mut others = vec![truth(&raw), vmdk_core(&path)];
            if subformat.ends_with("Flat") {
                others.push(imago_vmdk(&path));
            }
            agree(&format!("{subformat} of {size}"), &path, &mut others);
        }
    }
}

#[test]
fn vmdk_larger_than_4_gib() {
    let dir = tempfile::tempdir().unwrap();
    let raw = raw(dir.path(), LARGE);
    // Split disks have three extents here.
    for subformat in [
        "streamOptimized",
        "twoGbMaxExtentSparse",
        "twoGbMaxExtentFlat",
    ] {
        let path = images::vmdk(&raw, subformat, &dir.path().join(subformat));
        agree(subformat, &path, &mut [truth(&raw), vmdk_core(&path)]);
    }
}

/// A child that qemu-io wrote over its parent: ours, qemu-img's, and vmdk-core's chain.
#[test]
fn vmdk_delta_over_its_parent() {
    let dir = tempfile::tempdir().unwrap();
    let raw = raw(dir.path(), (3 << 20) + 512);
    let base = images::vmdk(&raw, "monolithicSparse", dir.path());
    let base_name = dir.path().join("base.vmdk");
    std::fs::rename(base, &base_name).unwrap();
    let child = dir.path().join("child.vmdk");
    let (below, above) = (text(&base_name), text(&child));
    qemu_img(&[
        "create", "-q", "-f", "vmdk", "-b", below, "-F", "vmdk", above,
    ]);
    let write = ["-f", "vmdk", "-c", "write -P 9 100k 200k", above];
    images::run("qemu-utils", "qemu-io", &write);
    // The descriptor names the parent by the path that it was given, which is another host's here.
    let file = File::options().read(true).write(true).open(&child).unwrap();
    let mut text_of_child = vec![0; 4096];
    file.read_exact_at(&mut text_of_child, 512).unwrap();
    let described = String::from_utf8_lossy(&text_of_child).replace(below, "base.vmdk");
    let mut described = described.into_bytes();
    described.resize(4096, 0);
    file.write_all_at(&described[..4096], 512).unwrap();
    let merged = dir.path().join("merged.raw");
    qemu_img(&["convert", "-f", "vmdk", "-O", "raw", above, text(&merged)]);
    let chain = vmdk::VmdkChainReader::open(&child).unwrap();
    assert_eq!(chain.depth(), 2);
    let mut others = [truth(&merged), stream("vmdk-core", chain)];
    agree("delta", &child, &mut others);
}

/// Without logs to replay: vhdx-core takes their descriptors apart in another way than MS-VHDX
/// 2.3.1.2 says. Of those QEMU is the judge, in `golden_vhd`.
#[test]
fn vhdx_of_every_block_size() {
    for size in SIZES {
        let dir = tempfile::tempdir().unwrap();
        let raw = raw(dir.path(), size);
        for subformat in ["dynamic", "fixed"] {
            for block in ["1M", "2M", "32M"] {
                let path = dir.path().join("vm.vhdx");
                let options = format!("subformat={subformat},block_size={block},log_size=1M");
                convert(&raw, "vhdx", &["-o", &options], &path);
                let what = format!("vhdx {options} of {size}");
                agree(&what, &path, &mut [truth(&raw), vhdx_core(&path)]);
            }
        }
    }
}

#[test]
fn vhdx_larger_than_4_gib() {
    let dir = tempfile::tempdir().unwrap();
    let raw = raw(dir.path(), LARGE);
    for block in ["1M", "256M"] {
        let path = dir.path().join("vm.vhdx");
        convert(&raw, "vhdx", &["-o", &format!("block_size={block}")], &path);
        agree(block, &path, &mut [truth(&raw), vhdx_core(&path)]);
    }
}

/// No library of other hands reads VHDs; qemu-img is the other hand, by what it makes raw of them.
#[test]
fn vhd_of_every_subformat() {
    for size in SIZES.into_iter().chain([LARGE]) {
        let dir = tempfile::tempdir().unwrap();
        let raw = raw(dir.path(), size);
        let subformats = ["dynamic", "fixed"];
        // A fixed disk is written whole.
        for subformat in &subformats[..if size == LARGE { 1 } else { 2 }] {
            for forced in ["on", "off"] {
                let path = dir.path().join("vm.vhd");
                let options = format!("subformat={subformat},force_size={forced}");
                convert(&raw, "vpc", &["-o", &options], &path);
                let again = dir.path().join("again.raw");
                qemu_img(&[
                    "convert",
                    "-f",
                    "vpc",
                    "-O",
                    "raw",
                    text(&path),
                    text(&again),
                ]);
                let length = std::fs::metadata(&again).unwrap().len();
                let what = format!("vhd {options} of {size}");
                assert_eq!(open(&path).capacity_bytes, length, "{what}");
                assert!(length == size || forced == "off", "{what}");
                agree(&what, &path, &mut [truth(&raw), truth(&again)]);
            }
        }
    }
}

#[test]
fn qcow2_of_every_kind() {
    let kinds: [&[&str]; 14] = [
        &["-o", "compat=0.10"],
        &["-o", "compat=0.10,cluster_size=512"],
        &["-c", "-o", "compat=0.10"],
        &["-o", "cluster_size=512"],
        &["-o", "cluster_size=4k,refcount_bits=1"],
        &["-o", "cluster_size=64k,lazy_refcounts=on"],
        &["-o", "cluster_size=2M"],
        &["-c", "-o", "cluster_size=512"],
        &["-c", "-o", "cluster_size=64k"],
        &["-c", "-o", "cluster_size=2M"],
        &["-o", "preallocation=metadata"],
        &["-o", "preallocation=falloc"],
        &["-o", "preallocation=full"],
        &["-c", "-o", "compression_type=zstd"],
    ];
    for size in SIZES {
        let dir = tempfile::tempdir().unwrap();
        let raw = raw(dir.path(), size);
        for options in kinds {
            let path = dir.path().join("vm.qcow2");
            convert(&raw, "qcow2", options, &path);
            let mut others = vec![truth(&raw)];
            if !options.iter().any(|option| option.contains("zstd")) {
                others.push(imago_qcow2(&path));
            }
            agree(&format!("qcow2 {options:?} of {size}"), &path, &mut others);
            std::fs::remove_file(&path).unwrap();
        }
    }
}

#[test]
fn qcow2_larger_than_4_gib_over_a_backing_file() {
    let dir = tempfile::tempdir().unwrap();
    let raw = raw(dir.path(), LARGE);
    let path = dir.path().join("vm.qcow2");
    let (below, above) = (text(&raw), text(&path));
    qemu_img(&[
        "create", "-q", "-f", "qcow2", "-b", below, "-F", "raw", above,
    ]);
    for write in ["write -P 3 4095M 1M", "write -z 0 64k", "write -P 4 1G 512"] {
        images::run(
            "qemu-utils",
            "qemu-io",
            &["-f", "qcow2", "-c", write, above],
        );
    }
    let name = raw.file_name().unwrap().to_str().unwrap();
    qemu_img(&[
        "rebase", "-u", "-f", "qcow2", "-b", name, "-F", "raw", above,
    ]);
    let merged = dir.path().join("merged.raw");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", above, text(&merged)]);
    agree("chain", &path, &mut [truth(&merged), imago_qcow2(&path)]);
}

/// What we write is what others read: imago and qemu-img see the source's bytes.
#[test]
fn our_qcow2_is_read_by_others() {
    for size in SIZES.into_iter().chain([LARGE]) {
        let dir = tempfile::tempdir().unwrap();
        let raw = raw(dir.path(), size);
        let vmdk = images::vmdk(&raw, "streamOptimized", dir.path());
        for compress in [Compress::None, Compress::Zlib, Compress::Zstd] {
            for owner in [&raw, &vmdk] {
                let target = dir.path().join("vm.qcow2");
                let plan = Plan {
                    compress,
                    threads: 2,
                    ..Plan::default()
                };
                let report = convert::copy(&open(owner), &target, &plan, &Unobserved).unwrap();
                images::judge(&raw, &target, "qcow2");
                let what = format!("{compress:?} of {size}");
                let mut others = vec![truth(&raw)];
                if compress != Compress::Zstd {
                    others.push(imago_qcow2(&target));
                }
                agree(&what, &target, &mut others);
                let digest = convert::digest_of_qcow2(&target).unwrap();
                assert_eq!(Some(digest), report.digest);
                std::fs::remove_file(&target).unwrap();
            }
        }
    }
}
