//! Sound, damaged and hostile VHDs, built here: no tool writes the differencing ones.
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use super::*;
use crate::error::{Error, ErrorKind};
use crate::source::seen::guest_bytes;

const BLOCK: u64 = 64 << 10;
const HEADER: usize = 512;
const BAT: usize = 1536;
const LOCATOR: usize = 2048;

/// A VHD whose parts a test may damage; checksums are made at the end.
struct Sample {
    bytes: Vec<u8>,
    footer: [u8; 512],
    copies_footer: bool,
}

impl Sample {
    fn fixed(data: &[u8]) -> Self {
        Self {
            bytes: data.to_vec(),
            footer: footer(2, data.len() as u64, 1),
            copies_footer: false,
        }
    }

    /// A dynamic disk of four blocks and one sector; number 2 is filled with `fill`.
    fn dynamic(id: u8, fill: u8) -> Self {
        let mut sample = Self {
            bytes: vec![0; 2560],
            footer: footer(3, 4 * BLOCK + 512, id),
            copies_footer: true,
        };
        sample.put(HEADER, b"cxsparse");
        sample.put(HEADER + 16, &(BAT as u64).to_be_bytes());
        sample.put32(HEADER + 24, 0x1_0000);
        sample.put32(HEADER + 28, 5);
        sample.put32(HEADER + 32, BLOCK as u32);
        sample.put(BAT, &[0xff; 20]);
        sample.put32(BAT + 8, 5);
        sample.bytes.extend([0xff; 512]);
        sample.bytes.extend([fill; BLOCK as usize]);
        sample
    }

    /// A child of the disk `parent`: of block 2 it has the second and the last sector only.
    fn differencing(id: u8, fill: u8, parent: u8, path: &str) -> Self {
        let mut sample = Self::dynamic(id, fill);
        sample.footer[60..64].copy_from_slice(&4u32.to_be_bytes());
        sample.put(HEADER + 40, &[parent; 16]);
        let path: Vec<u8> = path.encode_utf16().flat_map(u16::to_le_bytes).collect();
        sample.put(HEADER + 576, b"W2ru");
        sample.put32(HEADER + 576 + 8, path.len() as u32);
        sample.put32(HEADER + 576 + 20, LOCATOR as u32);
        sample.put(LOCATOR, &path);
        sample.bytes[2560..3072].fill(0);
        sample.bytes[2560] = 0b0100_0000;
        sample.bytes[2560 + 15] = 1;
        sample
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_be_bytes());
    }

    fn build(&self) -> Vec<u8> {
        let (mut bytes, mut footer) = (self.bytes.clone(), self.footer);
        summed(&mut footer, 64);
        if self.copies_footer {
            bytes[..512].copy_from_slice(&footer);
            summed(&mut bytes[HEADER..HEADER + 1024], 36);
        }
        bytes.extend(footer);
        bytes
    }
}

fn footer(disk_type: u32, capacity_bytes: u64, id: u8) -> [u8; 512] {
    let mut footer = [0; 512];
    footer[..8].copy_from_slice(COOKIE);
    footer[12..16].copy_from_slice(&0x1_0000u32.to_be_bytes());
    footer[16..24].copy_from_slice(&(HEADER as u64).to_be_bytes());
    footer[48..56].copy_from_slice(&capacity_bytes.to_be_bytes());
    footer[60..64].copy_from_slice(&disk_type.to_be_bytes());
    footer[68..84].fill(id);
    footer
}

fn summed(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let sum = bytes.iter().fold(0u32, |sum, byte| sum + u32::from(*byte));
    bytes[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

type Files = BTreeMap<&'static str, Vec<u8>>;

fn window(bytes: &[u8]) -> Window {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Window::whole(file, Path::new("x.vhd")).unwrap()
}

fn read_with(bytes: &[u8], files: &Files) -> Result<(Vec<u8>, &'static str)> {
    let lookup = |name: &str| match files.get(name) {
        Some(bytes) => Ok(window(bytes)),
        None => Err(Error::invalid(format!("{name} was asked for"))),
    };
    let (image, kind) = open(window(bytes), &lookup)?;
    Ok((guest_bytes(image.as_ref())?, kind))
}

fn read(sample: &Sample) -> Result<(Vec<u8>, &'static str)> {
    read_with(&sample.build(), &Files::new())
}

/// Four blocks and a sector, block 2 of which is `block`.
fn guest(block: &[u8]) -> Vec<u8> {
    let mut guest = vec![0; 4 * BLOCK as usize + 512];
    guest[2 * BLOCK as usize..3 * BLOCK as usize].copy_from_slice(block);
    guest
}

#[test]
fn reads_what_is_sound() {
    let data: Vec<u8> = (0..4096u32).map(|at| (at % 251) as u8).collect();
    let fixed = Sample::fixed(&data);
    assert_eq!(read(&fixed).unwrap(), (data.clone(), "fixed"));
    let mut old = fixed.build();
    old.pop();
    assert_eq!(
        read_with(&old, &Files::new()).unwrap(),
        (data, "fixed"),
        "a footer of 511 bytes"
    );
    let dynamic = Sample::dynamic(1, 7);
    let expected = (guest(&[7; BLOCK as usize]), "dynamic");
    assert_eq!(read(&dynamic).unwrap(), expected);
    let mut grown = dynamic.build();
    let footer_at = grown.len() - 512;
    grown[footer_at..].fill(9);
    assert_eq!(
        read_with(&grown, &Files::new()).unwrap(),
        expected,
        "a lost footer has a copy"
    );
}

#[test]
fn children_show_their_parents() {
    let mut block = [7; BLOCK as usize];
    block[512..1024].fill(8);
    block[BLOCK as usize - 512..].fill(8);
    let child = Sample::differencing(2, 8, 1, ".\\base\\p.vhd").build();
    let dynamic = Sample::dynamic(1, 7).build();
    for name in ["base/p.vhd", "p.vhd"] {
        let files = Files::from([(name, dynamic.clone())]);
        let seen = read_with(&child, &files).unwrap();
        assert_eq!(seen, (guest(&block), "differencing"), "{name}");
    }
    // A fixed parent that is smaller than the child.
    let small = Sample::fixed(&[3; 4096]).build();
    let (seen, _) = read_with(&child, &Files::from([("p.vhd", small)])).unwrap();
    assert_eq!(seen[..4096], [3; 4096]);
    assert_eq!(
        seen[4096..2 * BLOCK as usize + 512],
        [0; 2 * 65536 - 4096 + 512]
    );
    // The parent of the parent is looked for beside that one first.
    let grandchild = Sample::differencing(3, 9, 2, "base\\c.vhd").build();
    let middle = Sample::differencing(2, 8, 1, "p.vhd").build();
    let files = Files::from([("base/c.vhd", middle), ("base/p.vhd", dynamic)]);
    block[512..1024].fill(9);
    block[BLOCK as usize - 512..].fill(9);
    assert_eq!(read_with(&grandchild, &files).unwrap().0, guest(&block));
}

#[test]
fn parents_that_are_not_the_parent_are_refused() {
    let child = |parent: u8, path: &str| Sample::differencing(2, 8, parent, path).build();
    let lost = read_with(&child(1, "C:\\p.vhd"), &Files::new()).unwrap_err();
    assert_eq!(lost.kind, ErrorKind::Invalid);
    assert!(lost.to_string().contains("p.vhd") && lost.remedy.is_some());
    let files = Files::from([("p.vhd", Sample::dynamic(9, 7).build())]);
    let other = read_with(&child(1, "p.vhd"), &files).unwrap_err();
    assert_eq!(other.kind, ErrorKind::Corrupt);
    let nameless = read_with(&child(1, ""), &Files::new()).unwrap_err();
    assert_eq!(nameless.kind, ErrorKind::Corrupt);
    // Its own parent, and two that are each other's.
    let files = Files::from([("x.vhd", child(2, "x.vhd"))]);
    let own = read_with(&child(2, "x.vhd"), &files).unwrap_err();
    assert!(own.to_string().contains("itself"), "{own}");
    let files = Files::from([
        ("a.vhd", Sample::differencing(3, 8, 2, "b.vhd").build()),
        ("b.vhd", child(3, "a.vhd")),
    ]);
    let circle = read_with(&child(3, "a.vhd"), &files).unwrap_err();
    assert!(circle.to_string().contains("itself"), "{circle}");
    // Longer than any chain is.
    let names: Vec<&'static str> = (0..100).map(|n| &*format!("{n}.vhd").leak()).collect();
    let link = |n: u8| Sample::differencing(n, 8, n + 1, &format!("{}.vhd", n + 1)).build();
    let files = names.iter().zip(0..).map(|(name, n)| (*name, link(n)));
    let long = read_with(&link(0), &files.collect()).unwrap_err();
    assert_eq!(long.kind, ErrorKind::Corrupt);
    assert!(long.to_string().contains("chain"), "{long}");
}

#[test]
fn parents_never_lie_outside_the_job() {
    let top = tempfile::tempdir().unwrap();
    let job = top.path().join("job");
    std::fs::create_dir(&job).unwrap();
    let parent = Sample::dynamic(1, 7).build();
    std::fs::write(top.path().join("p.vhd"), &parent).unwrap();
    std::os::unix::fs::symlink("../p.vhd", job.join("link.vhd")).unwrap();
    let absolute = top.path().join("p.vhd").to_string_lossy().into_owned();
    let roots = queue::roots::Roots::open(&job, &[]).unwrap();
    let child = job.join("c.avhd");
    let opened = |path: &str| {
        let bytes = Sample::differencing(2, 8, 1, path).build();
        std::fs::write(&child, bytes).unwrap();
        let unpacker = crate::source::Unpacker {
            directory: top.path(),
            observer: &crate::disk::Unobserved,
            patience: std::time::Duration::ZERO,
        };
        crate::source::open(&roots, &child, true, &unpacker)
            .map(|appliance| appliance.disks[0].format.clone())
    };
    for path in [
        "..\\p.vhd",
        "link.vhd",
        &absolute,
        "/etc/shadow",
        "/dev/zero",
    ] {
        let error = opened(path).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{path}: {error}");
        assert!(error.remedy.is_some(), "{path}");
    }
    std::fs::write(job.join("p.vhd"), &parent).unwrap();
    assert_eq!(opened("..\\p.vhd").unwrap(), "vhd (differencing)");
}

#[test]
fn damage_is_refused() {
    type Damage = fn(&mut Sample);
    let cases: [(&str, Damage); 15] = [
        ("capacity 0", |s| s.footer[48..56].fill(0)),
        ("capacity 2^63", |s| s.footer[48] = 0x80),
        ("capacity of half a sector", |s| s.footer[55] = 1),
        ("capacity beyond the BAT", |s| s.footer[53] = 9),
        ("header past the end", |s| s.footer[16] = 0x80),
        ("header in the footer", |s| s.footer[16..24].fill(0)),
        ("header cookie", |s| s.put(HEADER, b"x")),
        ("BAT past the end", |s| s.put(HEADER + 16, &[0x7f])),
        ("BAT in the header", |s| s.put32(HEADER + 20, 1024)),
        ("block size 0", |s| s.put32(HEADER + 32, 0)),
        ("block size 3", |s| s.put32(HEADER + 32, 3)),
        ("entry past the end", |s| s.put32(BAT, 0xffff_fffe)),
        ("entry in the header", |s| s.put32(BAT, 1)),
        ("entry in the footer's copy", |s| s.put32(BAT, 0)),
        ("blocks upon each other", |s| {
            (0..4).for_each(|n| s.put32(BAT + 4 * n, 5));
        }),
    ];
    for (what, damage) in cases {
        let mut sample = Sample::dynamic(1, 7);
        damage(&mut sample);
        let error = read(&sample).expect_err(what);
        assert_eq!(error.kind, ErrorKind::Corrupt, "{what}: {error}");
        assert!(error.to_string().contains("x.vhd"), "{what}: {error}");
    }
    let unsupported: [(&str, Damage); 4] = [
        ("version", |s| s.footer[12..16].fill(2)),
        ("type", |s| s.footer[63] = 6),
        ("header version", |s| s.put32(HEADER + 24, 0x2_0000)),
        ("block size", |s| s.put32(HEADER + 32, 512)),
    ];
    for (what, damage) in unsupported {
        let mut sample = Sample::dynamic(1, 7);
        damage(&mut sample);
        assert_eq!(
            read(&sample).unwrap_err().kind,
            ErrorKind::Unsupported,
            "{what}"
        );
    }
    let mut locator = Sample::differencing(2, 8, 1, "p.vhd");
    locator.put32(HEADER + 576 + 8, u32::MAX);
    assert_eq!(read(&locator).unwrap_err().kind, ErrorKind::Corrupt);
    let mut summed = Sample::dynamic(1, 7).build();
    let length = summed.len();
    summed[length - 400] ^= 1;
    summed[100] ^= 1;
    let error = read_with(&summed, &Files::new()).unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");
}

#[test]
fn every_truncation_is_noticed() {
    let fixed = Sample::fixed(&[1; 8192]).build();
    let dynamic = Sample::dynamic(1, 7).build();
    for bytes in [fixed, dynamic] {
        // Without its footer a dynamic disk has the copy, and is whole.
        for length in (0..bytes.len() - 512).step_by(331) {
            let error = read_with(&bytes[..length], &Files::new()).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Corrupt, "{length}: {error}");
        }
    }
}
