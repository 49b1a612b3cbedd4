//! Reads a qcow2 back, without compression, backing or data files: what this program wrote itself.
use std::path::Path;

use super::MAGIC;
use crate::disk::{
    Extent, Extents, GuestOffset, HostOffset, Image, Packed, SECTOR_BYTES, Stored, Window,
    check_capacity, corrupt, unsupported,
};
use crate::error::Result;

/// Of version 2; version 3 adds features from here on.
const HEADER_2_BYTES: usize = 72;
const HEADER_3_BYTES: usize = 80;
/// Incompatible features: the image was not closed, and it is known to be damaged.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 2;
/// The compression type differs from zlib: no matter without compressed clusters.
const COMPRESSION_TYPE: u64 = 8;
/// Bits 9 to 55 of L1 and L2 entries.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;

pub struct Qcow2Image {
    files: [Window; 1],
    capacity_bytes: u64,
    cluster_bytes: u64,
    l1_offset: u64,
}

impl Qcow2Image {
    pub fn open(window: Window) -> Result<Self> {
        let path = window.path().to_path_buf();
        let length_bytes = (HEADER_3_BYTES as u64).min(window.length_bytes());
        let header = window.read_vec(0, length_bytes as usize)?;
        if header.len() < HEADER_2_BYTES || word(&header, 0) != MAGIC {
            return Err(corrupt(&path, "the file does not begin as a qcow2"));
        }
        let version = word(&header, 4);
        let features = if version == 3 { long(&header, 72) } else { 0 };
        check_features(&path, version, features, &header)?;
        let cluster_bits = word(&header, 20);
        if !(9..=21).contains(&cluster_bits) {
            let what = format!("the qcow2 header claims clusters of 2^{cluster_bits} bytes");
            return Err(corrupt(&path, what));
        }
        let size_bytes = long(&header, 24);
        let image = Self {
            capacity_bytes: check_capacity(&path, size_bytes.div_ceil(SECTOR_BYTES))?,
            cluster_bytes: 1 << cluster_bits,
            l1_offset: long(&header, 40),
            files: [window],
        };
        let (entries, needed) = (u64::from(word(&header, 36)), image.l1_entries());
        let end = image.l1_offset.checked_add(needed * 8);
        if entries < needed || end.is_none_or(|end| end > image.window().length_bytes()) {
            let what = format!(
                "the qcow2 L1 table of {entries} entries at offset {} does not hold the {needed} \
                 that are needed",
                image.l1_offset
            );
            return Err(corrupt(&path, what));
        }
        Ok(image)
    }

    fn window(&self) -> &Window {
        let [window] = &self.files;
        window
    }

    fn l2_span_bytes(&self) -> u64 {
        self.cluster_bytes * (self.cluster_bytes / 8)
    }

    fn l1_entries(&self) -> u64 {
        self.capacity_bytes.div_ceil(self.l2_span_bytes())
    }

    /// A checked offset of a table or data cluster of which `length_bytes` are needed.
    fn locate(&self, entry: u64, length_bytes: u64, what: &str) -> Result<u64> {
        let offset = entry & OFFSET_MASK;
        let inside = offset + length_bytes <= self.window().length_bytes();
        if inside && offset.is_multiple_of(self.cluster_bytes) {
            return Ok(offset);
        }
        let what = format!("the qcow2 {what} at offset {offset} is past the end or not aligned");
        Err(corrupt(self.window().path(), what))
    }
}

fn check_features(path: &Path, version: u32, features: u64, header: &[u8]) -> Result<()> {
    if !(2..=3).contains(&version) {
        return Err(unsupported(path, format!("qcow2 version {version}")));
    }
    if features & CORRUPT != 0 {
        return Err(corrupt(path, "the qcow2 is marked as corrupt"));
    }
    let refused = features & !(DIRTY | COMPRESSION_TYPE);
    if refused != 0 {
        return Err(unsupported(path, format!("qcow2 feature {refused:#x}")));
    }
    if long(header, 8) != 0 {
        return Err(unsupported(path, "a qcow2 with a backing file"));
    }
    if word(header, 32) != 0 {
        return Err(unsupported(path, "an encrypted qcow2"));
    }
    Ok(())
}

impl Image for Qcow2Image {
    fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    fn files(&self) -> &[Window] {
        &self.files
    }

    fn extents(&self) -> Extents<'_> {
        Box::new(Clusters {
            image: self,
            next_bytes: 0,
            l2: Vec::new(),
            l2_index: None,
        })
    }

    fn unpack(&self, unit: &Packed, _stored: &[u8], _out: &mut [u8]) -> Result<u64> {
        let what = format!("the compressed qcow2 cluster at {}", unit.offset.0);
        Err(unsupported(self.window().path(), what))
    }
}

struct Clusters<'a> {
    image: &'a Qcow2Image,
    next_bytes: u64,
    l2: Vec<u64>,
    l2_index: Option<u64>,
}

impl Clusters<'_> {
    /// False if the L1 table has no L2 table there.
    fn load_l2(&mut self, index: u64) -> Result<bool> {
        if self.l2_index == Some(index) {
            return Ok(true);
        }
        let (image, window) = (self.image, self.image.window());
        let entry = window.read_vec(image.l1_offset + index * 8, 8)?;
        let entry = long(&entry, 0);
        if entry & OFFSET_MASK == 0 {
            return Ok(false);
        }
        let offset = image.locate(entry, image.cluster_bytes, "L2 table")?;
        let bytes = window.read_vec(offset, image.cluster_bytes as usize)?;
        let (entries, _) = bytes.as_chunks::<8>();
        self.l2 = entries
            .iter()
            .map(|entry| u64::from_be_bytes(*entry))
            .collect();
        self.l2_index = Some(index);
        Ok(true)
    }

    fn advance(&mut self) -> Result<Extent> {
        let image = self.image;
        let start = self.next_bytes;
        let span = image.l2_span_bytes();
        let (end, stored) = if self.load_l2(start / span)? {
            let end = start
                .saturating_add(image.cluster_bytes)
                .min(image.capacity_bytes);
            let at = (start % span / image.cluster_bytes) as usize;
            let entry = self.l2.get(at).copied().unwrap_or(0);
            (end, self.stored(entry, end - start)?)
        } else {
            let end = (start / span + 1).saturating_mul(span);
            (end.min(image.capacity_bytes), Stored::Hole)
        };
        self.next_bytes = end;
        Ok(Extent {
            start: GuestOffset(start),
            length_bytes: end - start,
            stored,
        })
    }

    fn stored(&self, entry: u64, length_bytes: u64) -> Result<Stored> {
        if entry & COMPRESSED != 0 {
            let path = self.image.window().path();
            return Err(unsupported(path, "a compressed qcow2 cluster"));
        }
        if entry & ZERO != 0 {
            return Ok(Stored::Zero);
        }
        if entry & OFFSET_MASK == 0 {
            return Ok(Stored::Hole);
        }
        let offset = self.image.locate(entry, length_bytes, "cluster")?;
        Ok(Stored::Plain {
            file: 0,
            offset: HostOffset(offset),
        })
    }
}

impl Iterator for Clusters<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next_bytes >= self.image.capacity_bytes {
            return None;
        }
        let extent = self.advance();
        if extent.is_err() {
            self.next_bytes = self.image.capacity_bytes;
        }
        Some(extent)
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    u32::from_be_bytes(field.copied().unwrap_or_default())
}

fn long(bytes: &[u8], at: usize) -> u64 {
    (u64::from(word(bytes, at)) << 32) | u64::from(word(bytes, at + 4))
}
