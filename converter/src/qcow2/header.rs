//! The header of a qcow2, version 2 or 3, and its extensions.
//!
//! Every number is checked against the file's length before anyone uses it; names are data.
use std::path::Path;

use super::{COMPRESSION_TYPE, COMPRESSION_TYPE_AT, Compression, HEADER_BYTES, MAGIC};
use crate::disk::{SECTOR_BYTES, Window, check_capacity, corrupt, unsupported};
use crate::error::Result;

/// Of version 2; version 3 adds features from here on.
const HEADER_2_BYTES: usize = 72;
/// The largest L1 table that QEMU reads, too.
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_NAME_BYTES: u32 = 1023;
/// Incompatible features: the image was not closed, and it is known to be damaged.
pub(super) const DIRTY: u64 = 1;
const CORRUPT: u64 = 2;
const DATA_FILE: u64 = 4;
const EXTENDED_L2: u64 = 16;
/// A compatible feature.
pub(super) const LAZY_REFCOUNTS: u64 = 1;
/// Types of header extensions.
const BACKING_FORMAT: u32 = 0xe279_2aca;
const DATA_FILE_NAME: u32 = 0x4441_5441;

pub(super) struct Header {
    pub version: u32,
    pub capacity_bytes: u64,
    pub cluster_bytes: u64,
    pub l1_offset: u64,
    pub compression: Compression,
    pub l1_entries: u32,
    pub refcount_bits: u32,
    /// Of version 3: features that a reader must know, may know, and that clear themselves.
    pub features: [u64; 3],
}

/// What an image names beside itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct References {
    pub backing: Option<Backing>,
    /// The file that its data clusters are in.
    pub data_file: Option<String>,
    pub snapshots: u32,
}

/// The image below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    pub name: String,
    /// `raw`, `qcow2`, `vmdk` …, if the image says so.
    pub format: Option<String>,
}

impl Header {
    pub(super) fn read(window: &Window) -> Result<(Self, References)> {
        let path = window.path();
        let length_bytes = (COMPRESSION_TYPE_AT as u64 + 1).min(window.length_bytes());
        let bytes = window.read_vec(0, length_bytes as usize)?;
        if bytes.len() < HEADER_2_BYTES || word(&bytes, 0) != MAGIC {
            return Err(corrupt(path, "the file does not begin as a qcow2"));
        }
        let version = word(&bytes, 4);
        if !(2..=3).contains(&version) {
            return Err(unsupported(path, format!("qcow2 version {version}")));
        }
        let features = if version == 3 { long(&bytes, 72) } else { 0 };
        check_features(path, features)?;
        if word(&bytes, 32) != 0 {
            return Err(unsupported(path, "an encrypted qcow2"));
        }
        let cluster_bits = word(&bytes, 20);
        if !(9..=21).contains(&cluster_bits) {
            let what = format!("the qcow2 header claims clusters of 2^{cluster_bits} bytes");
            return Err(corrupt(path, what));
        }
        let length = match version {
            2 => HEADER_2_BYTES,
            _ => word(&bytes, 100) as usize,
        };
        let least = if version == 2 {
            HEADER_2_BYTES
        } else {
            HEADER_BYTES
        };
        if length < least || length > 1 << cluster_bits {
            return Err(corrupt(
                path,
                format!("the qcow2 header claims {length} bytes"),
            ));
        }
        let capacity_bytes = check_capacity(path, long(&bytes, 24).div_ceil(SECTOR_BYTES))?;
        if capacity_bytes == 0 {
            return Err(corrupt(path, "the qcow2 header claims a capacity of 0"));
        }
        let header = Self {
            version,
            capacity_bytes,
            cluster_bytes: 1 << cluster_bits,
            l1_offset: long(&bytes, 40),
            compression: compression(path, features, bytes.get(..length).unwrap_or(&bytes))?,
            l1_entries: word(&bytes, 36),
            refcount_bits: match version {
                2 => 16,
                _ => 1 << word(&bytes, 96).min(6),
            },
            features: match version {
                2 => [0; 3],
                _ => [features, long(&bytes, 80), long(&bytes, 88)],
            },
        };
        header.check_l1(window, word(&bytes, 36))?;
        let references = header.references(window, &bytes, length, features)?;
        Ok((header, references))
    }

    /// Guest bytes that one L2 table maps.
    pub(super) fn l2_span_bytes(&self) -> u64 {
        self.cluster_bytes * (self.cluster_bytes / 8)
    }

    pub(super) fn l1_entries(&self) -> u64 {
        self.capacity_bytes.div_ceil(self.l2_span_bytes())
    }

    fn check_l1(&self, window: &Window, entries: u32) -> Result<()> {
        let needed = self.l1_entries();
        let end = self.l1_offset.checked_add(needed * 8);
        let inside = end.is_some_and(|end| end <= window.length_bytes());
        if u64::from(entries) >= needed && inside && needed * 8 <= MAX_L1_BYTES {
            return Ok(());
        }
        let what = format!(
            "the qcow2 L1 table of {entries} entries at offset {} does not hold the {needed} that \
             are needed",
            self.l1_offset
        );
        Err(corrupt(window.path(), what))
    }

    fn references(
        &self,
        window: &Window,
        bytes: &[u8],
        header_bytes: usize,
        features: u64,
    ) -> Result<References> {
        let path = window.path();
        // Extensions and the backing file's name stand in the first cluster.
        let first_bytes = self.cluster_bytes.min(window.length_bytes());
        let first = window.read_vec(0, first_bytes as usize)?;
        let (name_at, name_bytes) = (long(bytes, 8), word(bytes, 16));
        let extensions_end = match name_at {
            0 => first.len(),
            _ => first.len().min(name_at as usize),
        };
        let extensions = first.get(header_bytes..extensions_end).unwrap_or_default();
        let mut backing_format = None;
        let mut data_file = None;
        for (kind, value) in Extensions(extensions) {
            match kind {
                BACKING_FORMAT => backing_format = Some(text(path, value)?),
                DATA_FILE_NAME => data_file = Some(text(path, value)?),
                _ => {}
            }
        }
        if features & DATA_FILE == 0 {
            data_file = None;
        } else if data_file.is_none() {
            return Err(corrupt(path, "the qcow2 does not name its data file"));
        }
        let backing = if name_at == 0 {
            None
        } else {
            let end = name_at.checked_add(u64::from(name_bytes));
            let name = end
                .filter(|_| (1..=MAX_NAME_BYTES).contains(&name_bytes))
                .and_then(|end| first.get(name_at as usize..end as usize));
            let Some(name) = name else {
                let what = format!("a backing file's name of {name_bytes} bytes at {name_at}");
                return Err(corrupt(path, what));
            };
            Some(Backing {
                name: text(path, name)?,
                format: backing_format,
            })
        };
        Ok(References {
            backing,
            data_file,
            snapshots: word(bytes, 60),
        })
    }
}

/// Type and value of each extension, as far as they are whole.
struct Extensions<'a>(&'a [u8]);

impl<'a> Iterator for Extensions<'a> {
    type Item = (u32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (head, rest) = self.0.split_at_checked(8)?;
        let (kind, length) = (word(head, 0), word(head, 4) as usize);
        let value = rest.get(..length)?;
        self.0 = rest.get(length.next_multiple_of(8)..).unwrap_or_default();
        (kind != 0).then_some((kind, value))
    }
}

fn check_features(path: &Path, features: u64) -> Result<()> {
    if features & CORRUPT != 0 {
        return Err(corrupt(path, "the qcow2 is marked as corrupt"));
    }
    if features & EXTENDED_L2 != 0 {
        return Err(unsupported(
            path,
            "a qcow2 with extended L2 entries (subclusters)",
        ));
    }
    let refused = features & !(DIRTY | DATA_FILE | COMPRESSION_TYPE);
    if refused != 0 {
        return Err(unsupported(path, format!("qcow2 feature {refused:#x}")));
    }
    Ok(())
}

/// Without its feature bit the field does not count.
fn compression(path: &Path, features: u64, header: &[u8]) -> Result<Compression> {
    if features & COMPRESSION_TYPE == 0 {
        return Ok(Compression::Zlib);
    }
    match header.get(COMPRESSION_TYPE_AT) {
        Some(0) => Ok(Compression::Zlib),
        Some(1) => Ok(Compression::Zstd),
        Some(other) => Err(unsupported(path, format!("qcow2 compression type {other}"))),
        None => Err(corrupt(
            path,
            "the qcow2 header ends before its compression type",
        )),
    }
}

fn text(path: &Path, bytes: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(bytes);
    let text = text.map_err(|_| corrupt(path, "a name in the qcow2 header is not UTF-8"))?;
    Ok(text.to_owned())
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    u32::from_be_bytes(field.copied().unwrap_or_default())
}

fn long(bytes: &[u8], at: usize) -> u64 {
    (u64::from(word(bytes, at)) << 32) | u64::from(word(bytes, at + 4))
}
