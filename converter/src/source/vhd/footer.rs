//! The hard disk footer (Virtual Hard Disk Image Format 1.0, "Hard Disk Footer Format").
//!
//! It ends every VHD; dynamic and differencing ones have a copy at the front. Takes bytes.
use std::path::Path;

use crate::disk::{MAX_CAPACITY_BYTES, SECTOR_BYTES, Window, corrupt, unsupported};
use crate::error::Result;

pub(super) const FOOTER_BYTES: usize = 512;
pub(in crate::source) const COOKIE: &[u8; 8] = b"conectix";
/// Virtual PC before 2004 wrote its footers one byte short.
const OLD_FOOTER_BYTES: usize = 511;
const VERSION_MAJOR: u32 = 1;
const CHECKSUM_AT: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DiskType {
    Fixed,
    Dynamic,
    Differencing,
}

impl DiskType {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Dynamic => "dynamic",
            Self::Differencing => "differencing",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Footer {
    pub disk_type: DiskType,
    pub capacity_bytes: u64,
    /// Where the dynamic disk header is; meaningless for a fixed disk.
    pub data_offset_bytes: u64,
    pub unique_id: [u8; 16],
    pub origin: Origin,
    /// Where the guest's bytes of a fixed disk end at the latest.
    pub offset_bytes: u64,
}

/// What the footer says of its writer and the machine: shown, never relied on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    pub application: String,
    pub version: u32,
    pub host: String,
    /// Seconds since 2000.
    pub created_seconds: u32,
    /// Cylinders, heads and sectors.
    pub geometry: (u16, u8, u8),
    pub saved_state: bool,
    /// The footer at the end was lost: this is its copy.
    pub is_copy: bool,
}

impl Footer {
    /// The footer at the end of `window`; the copy at the front if that one was lost.
    pub(super) fn read(window: &Window) -> Result<Self> {
        let file_bytes = window.length_bytes();
        let mut tail = window.read_vec(
            file_bytes.saturating_sub(FOOTER_BYTES as u64),
            FOOTER_BYTES.min(file_bytes as usize),
        )?;
        let mut footer_bytes = FOOTER_BYTES;
        if !tail.starts_with(COOKIE) && tail.get(1..9) == Some(COOKIE) {
            tail.rotate_left(1);
            if let Some(last) = tail.last_mut() {
                *last = 0;
            }
            footer_bytes = OLD_FOOTER_BYTES;
        }
        let offset_bytes = file_bytes.saturating_sub(footer_bytes as u64);
        let found = Self::parse(&tail, window.path(), offset_bytes);
        if found.is_ok() || file_bytes < 2 * FOOTER_BYTES as u64 {
            return found;
        }
        // A writer that died while the file grew has written a block over the footer. A fixed
        // disk has no copy: there the front is the guest's.
        let head = window.read_vec(0, FOOTER_BYTES)?;
        match Self::parse(&head, window.path(), offset_bytes) {
            Ok(mut copy) if copy.disk_type != DiskType::Fixed => {
                copy.origin.is_copy = true;
                Ok(copy)
            }
            _ => found,
        }
    }

    fn parse(bytes: &[u8], path: &Path, offset_bytes: u64) -> Result<Self> {
        let bytes: &[u8; FOOTER_BYTES] = bytes
            .first_chunk()
            .ok_or_else(|| corrupt(path, "truncated: too short for a VHD footer"))?;
        if !bytes.starts_with(COOKIE) {
            return Err(corrupt(
                path,
                "truncated: it does not end with a VHD footer",
            ));
        }
        check_sum(bytes, CHECKSUM_AT)
            .map_err(|what| corrupt(path, format!("the VHD footer at {offset_bytes}: {what}")))?;
        let version = field32(bytes, 12);
        if version >> 16 != VERSION_MAJOR {
            return Err(unsupported(path, format!("VHD version {version:#x}")));
        }
        let disk_type = match field32(bytes, 60) {
            2 => DiskType::Fixed,
            3 => DiskType::Dynamic,
            4 => DiskType::Differencing,
            other => return Err(unsupported(path, format!("VHD disk type {other}"))),
        };
        let capacity_bytes = field64(bytes, 48);
        let is_whole = capacity_bytes > 0 && capacity_bytes.is_multiple_of(SECTOR_BYTES);
        if !is_whole || capacity_bytes > MAX_CAPACITY_BYTES {
            let what = format!("the VHD footer claims a capacity of {capacity_bytes} bytes");
            return Err(corrupt(path, what));
        }
        Ok(Self {
            disk_type,
            capacity_bytes,
            data_offset_bytes: field64(bytes, 16),
            unique_id: guid(bytes, 68),
            origin: Origin {
                application: word(bytes, 28),
                version: field32(bytes, 32),
                host: word(bytes, 36),
                created_seconds: field32(bytes, 24),
                geometry: {
                    let [heads, sectors] = array(bytes, 58);
                    (field16(bytes, 56), heads, sectors)
                },
                saved_state: bytes.get(84) == Some(&1),
                is_copy: false,
            },
            offset_bytes,
        })
    }
}

/// The one's complement of the sum of all bytes but the checksum's own.
pub(super) fn check_sum(bytes: &[u8], at: usize) -> std::result::Result<(), String> {
    let own = at..at + 4;
    let sum = bytes
        .iter()
        .enumerate()
        .filter(|(index, _)| !own.contains(index))
        .fold(0u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)));
    let stated = field32(bytes, at);
    if stated == !sum {
        Ok(())
    } else {
        Err(format!(
            "its checksum is {:#010x}, not {stated:#010x} as it says",
            !sum
        ))
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk::<N>());
    field.copied().unwrap_or([0; N])
}

/// Four letters, padded with spaces.
fn word(bytes: &[u8], at: usize) -> String {
    let letters = array::<4>(bytes, at);
    String::from_utf8_lossy(&letters).trim().to_owned()
}

fn field16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

pub(super) fn field32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

pub(super) fn field64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

pub(super) fn guid(bytes: &[u8], at: usize) -> [u8; 16] {
    array(bytes, at)
}
