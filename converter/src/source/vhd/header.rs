//! The dynamic disk header (Virtual Hard Disk Image Format 1.0, "Dynamic Disk Header Format").
//!
//! Every number is checked here against the file's length before anyone uses it.
use std::path::Path;

use super::footer::{check_sum, field32, field64, guid};
use crate::disk::{SECTOR_BYTES, Window, corrupt, unsupported};
use crate::error::Result;
use crate::source::parent::{MAX_PATH_BYTES, utf16};

pub(super) const HEADER_BYTES: usize = 1024;
const COOKIE: &[u8; 8] = b"cxsparse";
const VERSION_MAJOR: u32 = 1;
const CHECKSUM_AT: usize = 36;
const PARENT_NAME: std::ops::Range<usize> = 64..576;
const LOCATORS_AT: usize = 576;
const LOCATORS: usize = 8;
const LOCATOR_BYTES: usize = 24;
/// The specification's default is 2 MiB; writers are known to use 512 KiB to 16 MiB.
const BLOCK_BYTES: std::ops::RangeInclusive<u64> = 64 << 10..=256 << 20;

/// Platform codes: a relative and an absolute Windows path (UTF-16, little endian), a file URL.
const W2RU: u32 = u32::from_be_bytes(*b"W2ru");
const W2KU: u32 = u32::from_be_bytes(*b"W2ku");
const MACX: u32 = u32::from_be_bytes(*b"MacX");

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub offset_bytes: u64,
    pub block_bytes: u64,
    /// Where the BAT is, and the entries it needs for the capacity.
    pub table_bytes: u64,
    pub entries: u64,
    pub parent_unique_id: [u8; 16],
    /// What the parent may be called, best first.
    pub parent_paths: Vec<String>,
}

impl Header {
    pub(super) fn read(window: &Window, offset_bytes: u64, capacity_bytes: u64) -> Result<Self> {
        let path = window.path();
        let bytes = window.read_vec(offset_bytes, HEADER_BYTES)?;
        if !bytes.starts_with(COOKIE) {
            let what = format!("no dynamic disk header at offset {offset_bytes}");
            return Err(corrupt(path, what));
        }
        check_sum(&bytes, CHECKSUM_AT).map_err(|what| {
            let header = format!("the dynamic disk header at {offset_bytes}");
            corrupt(path, format!("{header}: {what}"))
        })?;
        let version = field32(&bytes, 24);
        if version >> 16 != VERSION_MAJOR {
            let what = format!("dynamic disk header version {version:#x}");
            return Err(unsupported(path, what));
        }
        let block_bytes = check_block(path, u64::from(field32(&bytes, 32)))?;
        let entries = capacity_bytes.div_ceil(block_bytes);
        let most = u64::from(field32(&bytes, 28));
        if most < entries {
            let what = format!("the BAT has {most} entries, the capacity needs {entries}");
            return Err(corrupt(path, what));
        }
        let table_bytes = field64(&bytes, 16);
        let table_end = table_bytes.checked_add(entries * 4);
        if table_end.is_none_or(|end| end > window.length_bytes()) {
            let what = format!("truncated: the BAT at {table_bytes} reaches past the end");
            return Err(corrupt(path, what));
        }
        let header = Self {
            offset_bytes,
            block_bytes,
            table_bytes,
            entries,
            parent_unique_id: guid(&bytes, 40),
            parent_paths: parent_paths(window, &bytes)?,
        };
        if header.overlaps_header(table_bytes, entries * 4) {
            let what = format!("the BAT at {table_bytes} lies in the headers");
            return Err(corrupt(path, what));
        }
        Ok(header)
    }

    fn overlaps_header(&self, offset_bytes: u64, length_bytes: u64) -> bool {
        let end = offset_bytes.saturating_add(length_bytes);
        let header_end = self.offset_bytes.saturating_add(HEADER_BYTES as u64);
        offset_bytes < SECTOR_BYTES || (offset_bytes < header_end && end > self.offset_bytes)
    }

    /// Whether the bytes would lie in the copy of the footer, the header or the BAT.
    pub(super) fn overlaps_structure(&self, offset_bytes: u64, length_bytes: u64) -> bool {
        let end = offset_bytes.saturating_add(length_bytes);
        let table_end = self.table_bytes.saturating_add(self.entries * 4);
        self.overlaps_header(offset_bytes, length_bytes)
            || (offset_bytes < table_end && end > self.table_bytes)
    }

    /// The sector bitmap before each block: a bit per sector, in whole sectors.
    pub(super) fn bitmap_bytes(&self) -> u64 {
        (self.block_bytes / SECTOR_BYTES)
            .div_ceil(8)
            .next_multiple_of(SECTOR_BYTES)
    }
}

fn check_block(path: &Path, block_bytes: u64) -> Result<u64> {
    if !block_bytes.is_power_of_two() || block_bytes < SECTOR_BYTES {
        let what = format!("the dynamic disk header claims blocks of {block_bytes} bytes");
        return Err(corrupt(path, what));
    }
    if !BLOCK_BYTES.contains(&block_bytes) {
        return Err(unsupported(path, format!("a block size of {block_bytes}")));
    }
    Ok(block_bytes)
}

/// The relative path first, then the absolute one, then the plain name of the header.
fn parent_paths(window: &Window, bytes: &[u8]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for index in 0..LOCATORS {
        let at = LOCATORS_AT + index * LOCATOR_BYTES;
        let code = field32(bytes, at);
        let Some(rank) = [W2RU, W2KU, MACX].iter().position(|known| *known == code) else {
            continue;
        };
        let length_bytes = field32(bytes, at + 8);
        if length_bytes > MAX_PATH_BYTES {
            let what = format!("parent locator {index} claims {length_bytes} bytes");
            return Err(corrupt(window.path(), what));
        }
        let text = window.read_vec(field64(bytes, at + 16), length_bytes as usize)?;
        let path = match code {
            MACX => String::from_utf8_lossy(&text).into_owned(),
            _ => utf16(&text, u16::from_le_bytes),
        };
        found.push((rank, path));
    }
    found.sort_by_key(|(rank, _)| *rank);
    let name = bytes.get(PARENT_NAME).unwrap_or_default();
    let name = utf16(name, u16::from_be_bytes);
    let paths = found.into_iter().map(|(_, path)| path).chain([name]);
    Ok(paths.filter(|path| !path.is_empty()).collect())
}
