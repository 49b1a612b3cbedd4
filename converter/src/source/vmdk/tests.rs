//! Hostile and damaged VMDKs: each is an error with its kind, never a panic or a hang.
use std::path::{Path, PathBuf};

use super::*;
use crate::disk::{BLOCK_BYTES, HostOffset};
use crate::error::ErrorKind;

const GRAIN: usize = BLOCK_BYTES as usize;

/// A sparse VMDK whose parts a test may damage.
struct Sample {
    bytes: Vec<u8>,
    directory: usize,
    table: usize,
    grain: usize,
}

impl Sample {
    /// One grain of sevens at the start of a disk of `sectors`.
    fn new(sectors: u64, compressed: bool) -> Self {
        let descriptor = format!(
            "{}\nparentCID=ffffffff\ncreateType=\"monolithicSparse\"\nRW {sectors} SPARSE \"x\"\n",
            descriptor::SIGNATURE
        );
        let entries = sectors.div_ceil(128 * 512).max(1) as usize;
        let directory = 512 * 2;
        let table = directory + (entries * 4).next_multiple_of(512);
        let grain = table + 2048;
        let mut sample = Self {
            bytes: vec![0; grain],
            directory,
            table,
            grain,
        };
        sample.put(0, b"KDMV");
        sample.put32(4, 1);
        sample.put32(8, if compressed { 0x3_0001 } else { 1 });
        for (at, value) in [(12, sectors), (20, 128), (28, 1), (36, 1), (56, 2), (64, 2)] {
            sample.put64(at, value);
        }
        sample.put32(44, 512);
        sample.put(73, b"\n \r\n");
        sample.put(77, &u16::from(compressed).to_le_bytes());
        sample.put(512, descriptor.as_bytes());
        sample.put32(directory, (table / 512) as u32);
        sample.put32(table, (grain / 512) as u32);
        let sevens = vec![7; GRAIN];
        let stored = if compressed {
            packed_grain(0, &sevens)
        } else {
            sevens
        };
        sample.bytes.extend(stored);
        sample
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    fn put64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    fn read(&self) -> Result<Vec<u8>> {
        read_all(&self.bytes)
    }
}

fn deflated(bytes: &[u8]) -> Vec<u8> {
    let mut deflater = libdeflater::Compressor::new(libdeflater::CompressionLvl::fastest());
    let mut stream = vec![0; deflater.zlib_compress_bound(bytes.len())];
    let length = deflater.zlib_compress(bytes, &mut stream).unwrap();
    stream.truncate(length);
    stream
}

fn packed_grain(sector: u64, bytes: &[u8]) -> Vec<u8> {
    let stream = deflated(bytes);
    let mut grain = sector.to_le_bytes().to_vec();
    grain.extend((stream.len() as u32).to_le_bytes());
    grain.extend(stream);
    grain
}

fn window(bytes: &[u8]) -> Window {
    use std::io::Write;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Window::whole(file, Path::new("x.vmdk")).unwrap()
}

fn no_files(name: &str) -> Result<Window> {
    Err(Error::invalid(format!("{name} was asked for")))
}

/// Opens the bytes as whatever they look like and reads everything that the map says is stored.
fn read_all(bytes: &[u8]) -> Result<Vec<u8>> {
    let window = window(bytes);
    let (image, _) = open(window, &no_files)?;
    let mut read = Vec::new();
    let mut end = 0;
    for extent in image.extents() {
        let extent = extent?;
        assert_eq!(extent.start.0, end, "the map has gaps");
        assert!(extent.length_bytes > 0, "the map does not move");
        end += extent.length_bytes;
        match extent.stored {
            Stored::Hole | Stored::Zero => {}
            Stored::Plain { file, offset } => {
                let at = read.len();
                read.resize(at + extent.length_bytes as usize, 0);
                image.files()[file].read_exact_at(&mut read[at..], offset.0)?;
            }
            Stored::Packed { unit, .. } => {
                let mut out = vec![0; unit.unpacked_bytes as usize];
                let file = &image.files()[unit.file];
                let stored = file.read_vec(unit.offset.0, unit.limit_bytes as usize)?;
                image.unpack(&unit, &stored, &mut out)?;
                read.extend(out);
            }
        }
    }
    assert_eq!(end, image.capacity_bytes());
    Ok(read)
}

#[test]
fn reads_what_is_sound() {
    for compressed in [false, true] {
        for sectors in [128, 1000, 1 << 31] {
            let read = Sample::new(sectors, compressed).read().unwrap();
            assert_eq!(read, vec![7; GRAIN], "{compressed} {sectors}");
        }
        // A disk that ends within its only grain.
        let read = Sample::new(3, compressed).read().unwrap();
        assert_eq!(read, vec![7; 3 * 512], "{compressed}");
    }
}

#[test]
fn damaged_headers_and_tables_are_refused() {
    type Damage = fn(&mut Sample);
    let cases: [(&str, Damage); 17] = [
        ("magic", |s| s.put(0, b"KDMX")),
        ("text transfer", |s| s.put(73, b"\n \n\n")),
        ("capacity 0", |s| s.put64(12, 0)),
        ("capacity 2^63", |s| s.put64(12, 1 << 63)),
        ("capacity beyond the directory", |s| s.put64(12, 1 << 36)),
        ("grain size 0", |s| s.put64(20, 0)),
        ("grain size 3", |s| s.put64(20, 3)),
        ("grain size 2^40", |s| s.put64(20, 1 << 40)),
        ("table entries", |s| s.put32(44, u32::MAX)),
        ("descriptor of 1 GiB", |s| s.put64(36, 1 << 21)),
        ("descriptor past the end", |s| s.put64(28, 1 << 30)),
        ("descriptor offset overflows", |s| s.put64(28, u64::MAX)),
        ("directory past the end", |s| s.put64(56, 1 << 30)),
        ("directory in the header", |s| s.put64(56, 0)),
        ("directory points into itself", |s| s.put32(s.directory, 2)),
        ("table past the end", |s| s.put32(s.directory, u32::MAX)),
        ("grain past the end", |s| s.put32(s.table, u32::MAX)),
    ];
    for (what, damage) in cases {
        for compressed in [false, true] {
            let mut sample = Sample::new(1000, compressed);
            damage(&mut sample);
            let error = sample.read().expect_err(what);
            assert_eq!(error.kind, ErrorKind::Corrupt, "{what}: {error}");
            assert!(error.to_string().contains("x.vmdk"), "{what}: {error}");
        }
    }
    let mut sample = Sample::new(1000, false);
    sample.put32(sample.table, 2);
    assert_eq!(sample.read().unwrap_err().kind, ErrorKind::Corrupt);
    let mut sample = Sample::new(1000, false);
    sample.put32(4, 4);
    assert_eq!(sample.read().unwrap_err().kind, ErrorKind::Unsupported);
}

#[test]
fn what_lies_on_top_of_each_other_is_refused() {
    let refused = |sample: &Sample, what: &str| {
        let error = sample.read().expect_err(what);
        assert_eq!(error.kind, ErrorKind::Corrupt, "{what}: {error}");
        let text = error.to_string();
        assert!(text.contains(what) && text.contains("offset"), "{text}");
    };
    for compressed in [false, true] {
        // One table for the whole of a terabyte, as every directory entry says.
        let mut sample = Sample::new(1 << 31, compressed);
        sample.put32(sample.table, 0);
        for entry in (sample.directory..sample.table).step_by(4) {
            sample.put32(entry, (sample.table / 512) as u32);
        }
        refused(&sample, "grain tables lie on top of each other");
        for (place, what) in [
            (1, "in the header"),
            (sample.directory / 512, "in the header"),
            (sample.table / 512, "lies in its grain table"),
        ] {
            let mut sample = Sample::new(1000, compressed);
            let sector = if place > 2 { sample.table / 512 } else { place };
            sample.put32(sample.table, sector as u32);
            refused(&sample, what);
        }
    }
    // One grain for the whole of the disk, as every table entry says.
    let mut sample = Sample::new(1000, false);
    for entry in 0..7 {
        sample.put32(sample.table + 4 * entry, (sample.grain / 512) as u32);
    }
    refused(&sample, "grains lie on top of each other");
}

#[test]
fn every_truncation_is_noticed() {
    for compressed in [false, true] {
        let sample = Sample::new(1000, compressed);
        for length in (0..sample.bytes.len()).step_by(331) {
            if length < 4 {
                continue;
            }
            let error = read_all(&sample.bytes[..length]).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Corrupt, "{length}: {error}");
        }
    }
}

#[test]
fn damaged_grains_are_refused() {
    let grains: [(&str, Vec<u8>); 8] = [
        ("another sector", packed_grain(128, &[7; GRAIN])),
        ("deflate bomb", packed_grain(0, &vec![0; 64 << 20])),
        ("one byte too long", packed_grain(0, &[7; GRAIN + 1])),
        ("one byte too short", packed_grain(0, &[7; GRAIN - 1])),
        ("no stream", packed_grain(0, &[7; GRAIN])[..13].to_vec()),
        ("a marker, no grain", vec![0; 512]),
        ("longer than its grain", {
            let mut grain = packed_grain(0, &[7; GRAIN]);
            grain[8..12].copy_from_slice(&(3 * GRAIN as u32).to_le_bytes());
            grain.resize(4 * GRAIN, 0);
            grain
        }),
        ("wrong Adler-32", {
            let mut grain = packed_grain(0, &[7; GRAIN]);
            *grain.last_mut().unwrap() ^= 1;
            grain
        }),
    ];
    for (what, grain) in grains {
        let mut sample = Sample::new(1000, true);
        sample.bytes.truncate(sample.grain);
        sample.bytes.extend(grain);
        let error = sample.read().expect_err(what);
        assert_eq!(error.kind, ErrorKind::Corrupt, "{what}: {error}");
        assert!(error.to_string().contains("offset"), "{what}: {error}");
    }
}

/// The sample with its directory only in the footer, as VMware writes streams.
fn with_footer(sample: &Sample) -> Vec<u8> {
    let mut bytes = sample.bytes.clone();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    let mut marker = vec![0; 512];
    marker[0] = 1;
    marker[12] = 3;
    bytes.extend(marker);
    bytes.extend(&sample.bytes[..512]);
    bytes.extend([0; 512]);
    bytes[56..64].fill(0xff);
    bytes
}

#[test]
fn finds_the_directory_by_the_footer() {
    let sample = Sample::new(1000, true);
    let bytes = with_footer(&sample);
    assert_eq!(read_all(&bytes).unwrap(), vec![7; GRAIN]);
    let length = bytes.len();
    for cut in [1, 512, 1024, 1536] {
        let error = read_all(&bytes[..length - cut]).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupt, "{cut}: {error}");
    }
    let mut other = bytes.clone();
    other[length - 1024 + 12] ^= 1;
    assert!(read_all(&other).is_err(), "the footer has another capacity");
    let mut lost = bytes;
    lost[length - 1024 + 56..length - 1024 + 64].fill(0xff);
    assert!(read_all(&lost).is_err(), "the footer points to the footer");
}

#[test]
fn a_split_descriptor_reads_its_parts_and_only_what_the_lookup_gives() {
    let text = |lines: &str| format!("{}\n{lines}", descriptor::SIGNATURE).into_bytes();
    let flat = window(&[9; 4096]);
    let lookup = |name: &str| match name {
        "flat" => Ok(flat.clone()),
        "sparse" => Ok(window(&Sample::new(1000, false).bytes)),
        _ => no_files(name),
    };
    let lines = "RW 2 FLAT \"flat\" 6\nRW 4 ZERO\nRW 0 ZERO\nRW 1000 SPARSE \"sparse\"\n";
    let (image, _) = open(window(&text(lines)), &lookup).unwrap();
    assert_eq!(image.capacity_bytes(), 1006 * 512);
    let extents: Vec<_> = image.extents().map(|extent| extent.unwrap()).collect();
    assert_eq!(
        extents[0].stored,
        Stored::Plain {
            file: 0,
            offset: HostOffset(6 * 512)
        }
    );
    assert_eq!(extents[1].stored, Stored::Zero);
    assert_eq!(extents[2].start, GuestOffset(6 * 512));
    let cases = [
        ("RW 3 FLAT \"flat\" 6", ErrorKind::Corrupt),
        (
            "RW 1 FLAT \"flat\" 18446744073709551615",
            ErrorKind::Corrupt,
        ),
        ("RW 9223372036854775808 ZERO", ErrorKind::Corrupt),
        ("RW 137438953472 ZERO\nRW 1 ZERO", ErrorKind::Corrupt),
        ("RW 1001 SPARSE \"sparse\"", ErrorKind::Corrupt),
        ("RW 1 SPARSE \"flat\"", ErrorKind::Corrupt),
        ("RW 1 FLAT \"/etc/shadow\" 0", ErrorKind::Invalid),
        ("RW 0 ZERO", ErrorKind::Corrupt),
    ];
    for (lines, kind) in cases {
        let error = open(window(&text(lines)), &lookup).err().unwrap();
        assert_eq!(error.kind, kind, "{lines}: {error}");
    }
    let large = tempfile::tempfile().unwrap();
    large.set_len(1 << 30).unwrap();
    let large = Window::whole(large, &PathBuf::from("x.vmdk")).unwrap();
    assert!(open(large, &lookup).is_err());
}

#[test]
fn a_part_of_a_split_disk_asks_for_its_descriptor() {
    let mut sample = Sample::new(1000, false);
    sample.put64(28, 0);
    let error = sample.read().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert!(error.remedy.unwrap().contains("descriptor"));
}
