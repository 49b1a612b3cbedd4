//! Images that were made to harm, by name: each is refused by its parser with kind and cause, and
//! each gets its `.error` from a real daemon, which goes on to convert the next good disk.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a panic is how a test fails
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use converter::convert::{self, Plan};
use converter::disk::Unobserved;
use converter::error::{Error, ErrorKind, Result};
use converter::source;
use hyper2kvm_tests::daemon::Site;
use hyper2kvm_tests::engine::unpacker;
use hyper2kvm_tests::images::{self, qemu_img, text};
use hyper2kvm_tests::{vhd, vhdx, vmfs};
use queue::instance::config::Compress;
use queue::roots::Roots;

const GRAIN: usize = 65_536;
const SIZE: u64 = (3 << 20) + 512;

/// Makes the files of a case in a directory; the owner's name is returned.
type Make = fn(&Path) -> &'static str;

struct Case {
    name: &'static str,
    kind: ErrorKind,
    /// Words of the cause.
    says: &'static str,
    make: Make,
}

macro_rules! cases {
    ($($name:ident: $kind:ident, $says:literal, $make:expr;)*) => {
        const CASES: &[Case] = &[$(Case {
            name: stringify!($name),
            kind: ErrorKind::$kind,
            says: $says,
            make: $make,
        }),*];

        mod parser {
            $(#[test]
            fn $name() {
                let case = super::CASES.iter().find(|case| case.name == stringify!($name));
                super::refuses(case.unwrap());
            })*
        }
    };
}

cases! {
    grain_directory_in_itself: Corrupt, "lies in the header or the grain directory", |dir| {
        sparse(dir, "monolithicSparse", |bytes| {
            let directory = le(bytes, 56, 8);
            put32(bytes, directory * 512, directory);
        })
    };
    overlapping_grains: Corrupt, "on top of each other", |dir| {
        sparse(dir, "monolithicSparse", |bytes| {
            let table = table(bytes);
            let first = le(bytes, table, 4);
            (0..49).for_each(|grain| put32(bytes, table + grain * 4, first));
        })
    };
    overlapping_grain_tables: Corrupt, "on top of each other", |dir| {
        // 62 TiB of a file of 8 MiB: each entry of the directory leads to the same empty table.
        sparse(dir, "monolithicSparse", |bytes| {
            let sectors: u64 = 62 << 31;
            let entries = sectors.div_ceil(128 * 512) as usize;
            let table = table(bytes);
            bytes[table..table + 2048].fill(0);
            bytes.resize(bytes.len().next_multiple_of(512), 0);
            let directory = (bytes.len() / 512) as u64;
            bytes.extend((table as u32 / 512).to_le_bytes().repeat(entries));
            bytes[12..20].copy_from_slice(&sectors.to_le_bytes());
            bytes[56..64].copy_from_slice(&directory.to_le_bytes());
        })
    };
    deflate_bomb: Corrupt, "inflates beyond its size", |dir| {
        sparse(dir, "streamOptimized", |bytes| grain(bytes, &vec![0; 64 << 20], None))
    };
    grain_longer_than_its_size: Corrupt, "compressed bytes", |dir| {
        sparse(dir, "streamOptimized", |bytes| grain(bytes, &[7; GRAIN], Some(3 * GRAIN)))
    };
    grain_with_a_wrong_sum: Corrupt, "does not inflate", |dir| {
        sparse(dir, "streamOptimized", |bytes| {
            let at = le(bytes, table(bytes), 4) * 512;
            let end = at + 12 + le(bytes, at + 8, 4);
            bytes[end - 1] ^= 1;
        })
    };
    capacity_of_2_63: Corrupt, "more than 64 TiB", |dir| {
        sparse(dir, "monolithicSparse", |bytes| bytes[12..20].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0x80]))
    };
    extent_names_shadow: Invalid, "/etc/shadow", |dir| descriptor(dir, "RW 8 FLAT \"/etc/shadow\" 0");
    extent_above: Invalid, "../x", |dir| descriptor(dir, "RW 8 FLAT \"../x\" 0");
    extent_is_a_device: Invalid, "/dev/sda", |dir| descriptor(dir, "RW 8 FLAT \"/dev/sda\" 0");
    extent_with_a_nul: Corrupt, "cannot be read", |dir| descriptor(dir, "RW 8 FLAT \"a\0b\" 0");
    descriptor_of_1_gib: Corrupt, "larger than 1", |dir| {
        images::raw_disk(&dir.join("vm.vmdk"), 1 << 30, &[(0, b"# Disk DescriptorFile\n")]);
        "vm.vmdk"
    };
    vmdk_chain_that_loops: Corrupt, "leads back into itself", |dir| {
        delta(dir, "b.vmdk", "vm.vmdk");
        delta(dir, "vm.vmdk", "b.vmdk")
    };
    vhd_chain_that_loops: Corrupt, "leads back into itself", |dir| {
        made(dir, "vpc", "subformat=dynamic,force_size=on", "vm.vhd", |bytes| {
            *bytes = vhd::differencing(bytes, 9, "vm.vhd");
            bytes[552..568].fill(9);
            vhd::sum(&mut bytes[512..1536], 36);
        });
        "vm.vhd"
    };
    vhdx_chain_that_loops: Corrupt, "leads back into itself", |dir| {
        made(dir, "vhdx", SMALL, "vm.vhdx", |bytes| {
            let own = vhdx::identify(bytes, 5);
            *bytes = vhdx::differencing(bytes, &own, "vm.vhdx");
        })
    };
    qcow2_chain_that_loops: Corrupt, "leads back into itself", |dir| {
        made(dir, "qcow2", "cluster_size=64k", "vm.qcow2", |_| ());
        made(dir, "qcow2", "cluster_size=64k", "b.qcow2", |_| ());
        rebase(dir, "b.qcow2", "vm.qcow2");
        rebase(dir, "vm.qcow2", "b.qcow2")
    };
    vhdx_log_past_the_end: Corrupt, "log", |dir| {
        made(dir, "vhdx", SMALL, "vm.vhdx", |bytes| {
            headers(bytes, |header| {
                header[48..64].fill(5);
                header[72..80].copy_from_slice(&(1u64 << 40).to_le_bytes());
            });
        })
    };
    vhdx_log_that_writes_outside: Corrupt, "log", |dir| {
        logged(dir, |bytes| {
            let length = le(bytes, LOG + 8, 4);
            let outside = (1u64 << 62).to_le_bytes();
            vhdx::resum(bytes, LOG..LOG + length, |entry| entry[80..88].copy_from_slice(&outside));
        })
    };
    vhd_bat_past_the_end: Corrupt, "reaches past the end", |dir| {
        made(dir, "vpc", "subformat=dynamic,force_size=on", "vm.vhd", |bytes| {
            let table = vhd::be(bytes, 512 + 16, 8);
            bytes[table..table + 4].copy_from_slice(&[0xff, 0xff, 0xff, 0xfe]);
        })
    };
    vhdx_bat_past_the_end: Corrupt, "reaches past the end", |dir| {
        made(dir, "vhdx", SMALL, "vm.vhdx", |bytes| {
            let places = [32, 64].map(|at| le(bytes, (192 << 10) + at, 8));
            let is_bat = |at: &usize| !bytes[*at..].starts_with(b"metadata");
            let bat = places.into_iter().find(is_bat).unwrap();
            bytes[bat..bat + 8].copy_from_slice(&((1u64 << 50) | 6).to_le_bytes());
        })
    };
    cowd_table_past_the_end: Corrupt, "truncated", |dir| {
        let mut bytes = vmfs::cowd(&fs::read(raw(dir)).unwrap(), 8);
        put32(&mut bytes, 2048, 1 << 30);
        extent(dir, "VMFSSPARSE", &bytes)
    };
    se_sparse_entry_of_no_kind: Corrupt, "0xf000000000000000", |dir| {
        let mut bytes = vmfs::se_sparse(&fs::read(raw(dir)).unwrap(), false);
        let tables = le(&bytes, 18 * 8, 8) * 512;
        bytes[tables..tables + 8].copy_from_slice(&(0xf_u64 << 60).to_le_bytes());
        extent(dir, "SESPARSE", &bytes)
    };
    ova_member_of_2_63: Corrupt, "vm.ova", |dir| {
        ova(dir, |bytes| {
            // Base 256: the highest bit marks it.
            let field = header_of(bytes, b"a.img") + 124;
            bytes[field..field + 12].copy_from_slice(&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]);
            resum_tar(bytes, field - 124);
        })
    };
    ova_with_a_duplicate_member: Invalid, "appears twice", |dir| {
        ova(dir, |bytes| {
            let at = header_of(bytes, b"a.img");
            let member = bytes[at..at + 512 + 4096].to_vec();
            bytes.splice(at..at, member);
        })
    };
    ova_without_its_disk: Invalid, "not a member", |dir| {
        ova(dir, |bytes| {
            let at = header_of(bytes, b"a.img");
            bytes[at..at + 5].copy_from_slice(b"b.img");
            resum_tar(bytes, at);
        })
    };
    ova_with_a_link: Invalid, "link or a device", |dir| {
        ova(dir, |bytes| {
            let at = header_of(bytes, b"a.img");
            bytes[at + 156] = b'2';
            resum_tar(bytes, at);
        })
    };
    ovf_with_an_external_entity: Invalid, "document type", |dir| {
        ovf(dir, "<!DOCTYPE x [<!ENTITY e SYSTEM \"file:///etc/passwd\">]><Envelope ")
    };
    ovf_with_billions_of_laughs: Invalid, "document type", |dir| {
        ovf(dir, "<!DOCTYPE x [<!ENTITY a \"ha\"><!ENTITY b \"&a;&a;&a;&a;&a;&a;&a;&a;\">\
             <!ENTITY c \"&b;&b;&b;&b;&b;&b;&b;&b;\"><!ENTITY d \"&c;&c;&c;&c;&c;&c;&c;&c;\">]>\
             <Envelope ")
    };
    qcow2_backing_outside: Invalid, "/etc/passwd", |dir| {
        made(dir, "qcow2", "cluster_size=64k", "vm.qcow2", |_| ());
        qemu_img(&["rebase", "-u", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw",
            text(&dir.join("vm.qcow2"))]);
        "vm.qcow2"
    };
    qcow2_data_file_outside: Invalid, "/etc/passwd", |dir| {
        let path = dir.join("vm.qcow2");
        let data = format!("data_file={}", text(&dir.join("data")));
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", &data, text(&path), "1M"]);
        qemu_img(&["amend", "-f", "qcow2", "-o", "data_file=/etc/passwd", text(&path)]);
        fs::remove_file(dir.join("data")).unwrap();
        "vm.qcow2"
    };
    qcow2_encrypted: Unsupported, "encrypted", |dir| {
        let path = dir.join("vm.qcow2");
        let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
        qemu_img(&["create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=x", "-o", options,
            text(&path), "1M"]);
        "vm.qcow2"
    };
    qcow2_marked_corrupt: Corrupt, "marked as corrupt", |dir| {
        made(dir, "qcow2", "cluster_size=64k", "vm.qcow2", |bytes| bytes[79] |= 2)
    };
    qcow2_overlapping_clusters: Corrupt, "can hold", |dir| {
        made(dir, "qcow2", "cluster_size=4k", "vm.qcow2", |bytes| {
            let l1 = vhd::be(bytes, 40, 8);
            let l2 = vhd::be(bytes, l1, 8) & 0xff_ffff_fe00;
            let first: [u8; 8] = bytes[l2..l2 + 8].try_into().unwrap();
            bytes[l2..l2 + 4096].copy_from_slice(&first.repeat(512));
            let length = bytes.len() - (1 << 20);
            bytes.truncate(length);
        })
    };
}

fn le(bytes: &[u8], at: usize, width: usize) -> usize {
    let field = bytes[at..at + width].iter().rev();
    field.fold(0, |value, byte| value << 8 | usize::from(*byte))
}

fn put32(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes());
}

/// Where the first grain table is.
fn table(bytes: &[u8]) -> usize {
    le(bytes, le(bytes, 56, 8) * 512, 4) * 512
}

fn raw(dir: &Path) -> PathBuf {
    let data = images::noise(1, 2 << 20);
    images::raw_disk(
        &dir.join(".raw"),
        SIZE,
        &[(0, &data), (SIZE - 512, &[9; 512])],
    )
}

/// An image that qemu-img makes, changed.
fn made(
    dir: &Path,
    format: &str,
    options: &str,
    name: &'static str,
    change: impl FnOnce(&mut Vec<u8>),
) -> &'static str {
    let (raw, path) = (raw(dir), dir.join(name));
    qemu_img(&[
        "convert",
        "-f",
        "raw",
        "-O",
        format,
        "-o",
        options,
        text(&raw),
        text(&path),
    ]);
    fs::remove_file(raw).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(&path, bytes).unwrap();
    name
}

fn sparse(dir: &Path, subformat: &str, change: impl FnOnce(&mut Vec<u8>)) -> &'static str {
    made(
        dir,
        "vmdk",
        &format!("subformat={subformat}"),
        "vm.vmdk",
        change,
    )
}

/// Replaces the first grain by another at the end of the file.
fn grain(bytes: &mut Vec<u8>, content: &[u8], claims: Option<usize>) {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(content).unwrap();
    let stream = encoder.finish().unwrap();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    let (table, at) = (table(bytes), bytes.len());
    put32(bytes, table, at / 512);
    bytes.extend([0; 8]);
    bytes.extend((claims.unwrap_or(stream.len()) as u32).to_le_bytes());
    bytes.extend(stream);
    bytes.resize(at + 4 * GRAIN, 0);
}

/// A delta disk that is known by the same number as its parent.
fn delta(dir: &Path, name: &'static str, below: &str) -> &'static str {
    let sectors = SIZE / 512;
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=00000007\nparentCID=00000007\n\
         createType=\"monolithicSparse\"\nparentFileNameHint=\"{below}\"\n\
         RW {sectors} SPARSE \"{name}\"\n"
    );
    made(dir, "vmdk", "subformat=monolithicSparse", name, |bytes| {
        bytes[512..1536].fill(0);
        bytes[512..512 + text.len()].copy_from_slice(text.as_bytes());
    })
}

fn descriptor(dir: &Path, extent: &str) -> &'static str {
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
         createType=\"monolithicFlat\"\n{extent}\n"
    );
    fs::write(dir.join("vm.vmdk"), text).unwrap();
    "vm.vmdk"
}

fn extent(dir: &Path, kind: &str, bytes: &[u8]) -> &'static str {
    fs::remove_file(dir.join(".raw")).unwrap();
    fs::write(dir.join("vm-delta.vmdk"), bytes).unwrap();
    descriptor(dir, &format!("RW {} {kind} \"vm-delta.vmdk\"", SIZE / 512))
}

const SMALL: &str = "block_size=1M,log_size=1M";
const HEADERS: [usize; 2] = [64 << 10, 128 << 10];
const LOG: usize = 1 << 20;

fn headers(bytes: &mut [u8], change: impl Fn(&mut [u8])) {
    for at in HEADERS {
        vhdx::resum(bytes, at..at + 4096, &change);
    }
}

/// A VHDX with a log to replay, changed.
fn logged(dir: &Path, change: impl FnOnce(&mut Vec<u8>)) -> &'static str {
    let path = dir.join("vm.vhdx");
    qemu_img(&["create", "-q", "-f", "vhdx", "-o", SMALL, text(&path), "3M"]);
    let write = ["-f", "vhdx", "-c", "write -P 7 1M 100k", text(&path)];
    images::run("qemu-utils", "qemu-io", &write);
    vhdx::lose_the_bat(&path);
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(&path, bytes).unwrap();
    "vm.vhdx"
}

fn rebase(dir: &Path, name: &'static str, below: &str) -> &'static str {
    let path = dir.join(name);
    qemu_img(&[
        "rebase",
        "-u",
        "-f",
        "qcow2",
        "-b",
        below,
        "-F",
        "qcow2",
        text(&path),
    ]);
    name
}

/// The OVF of a machine that is called as its directory is.
fn described(dir: &Path) -> String {
    let name = dir.file_name().unwrap().to_str().unwrap();
    images::ovf(&[("a.img", 4096)]).replace("web-01", name)
}

fn ova(dir: &Path, change: impl FnOnce(&mut Vec<u8>)) -> &'static str {
    let parts = dir.join("parts");
    fs::create_dir(&parts).unwrap();
    fs::write(parts.join("vm.ovf"), described(dir)).unwrap();
    fs::write(parts.join("a.img"), [3; 4096]).unwrap();
    let mut bytes = fs::read(images::ova(&parts, &["vm.ovf", "a.img"])).unwrap();
    fs::remove_dir_all(parts).unwrap();
    change(&mut bytes);
    fs::write(dir.join("vm.ova"), bytes).unwrap();
    "vm.ova"
}

fn header_of(bytes: &[u8], name: &[u8]) -> usize {
    let mut blocks = (0..bytes.len()).step_by(512);
    blocks.find(|at| bytes[*at..].starts_with(name)).unwrap()
}

fn resum_tar(bytes: &mut [u8], at: usize) {
    bytes[at + 148..at + 156].fill(b' ');
    let sum: u64 = bytes[at..at + 512]
        .iter()
        .map(|byte| u64::from(*byte))
        .sum();
    bytes[at + 148..at + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn ovf(dir: &Path, opening: &str) -> &'static str {
    let text = described(dir).replacen("<Envelope ", opening, 1);
    fs::write(dir.join("vm.ovf"), text).unwrap();
    "vm.ovf"
}

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

/// Drops a case under its own name: its only file, or its directory with a manifest.
fn drop_into(site: &Site, case: &Case) {
    let dir = site.top.path().join(case.name);
    fs::create_dir(&dir).unwrap();
    let owner = (case.make)(&dir);
    let queue = &site.directories.queue;
    let extension = Path::new(owner).extension().unwrap().to_str().unwrap();
    if fs::read_dir(&dir).unwrap().count() == 1 {
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
        assert!(lines[0].contains(case.says), "{}: {told}", case.name);
        // This one the queue refuses to read, before any parser does.
        let kind = match case.name {
            "descriptor_of_1_gib" => ErrorKind::Invalid,
            _ => case.kind,
        };
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
