//! The region table ([MS-VHDX] 2.2.3): where the BAT and the metadata are, and that nothing lies on
//! top of anything else.
use std::ops::Range;
use std::path::Path;

use super::crc32c;
use super::header::{
    Guid, HEADER_SECTION_BYTES, Header, MIB, binary, field32, field64, guid, written,
};
use super::log::Replayed;
use crate::disk::{corrupt, unsupported};
use crate::error::Result;

const TABLES_AT: [u64; 2] = [192 << 10, 256 << 10];
const TABLE_BYTES: usize = 64 << 10;
const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 32;
const MAX_ENTRIES: u32 = 2047;
const BAT: Guid = binary(
    0x2dc2_7766,
    0xf623,
    0x4200,
    [0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08],
);
const METADATA: Guid = binary(
    0x8b7c_a206,
    0x4790,
    0x4b9a,
    [0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e],
);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Regions {
    pub bat: Range<u64>,
    pub metadata: Range<u64>,
    /// Everything that no block may lie upon, in ascending order.
    taken: Vec<Range<u64>>,
}

impl Regions {
    pub(super) fn read(file: &Replayed, header: &Header) -> Result<Self> {
        let path = file.window.path();
        let mut table = None;
        for offset_bytes in TABLES_AT {
            let bytes = file.read_vec(offset_bytes, TABLE_BYTES)?;
            let is_sound = bytes.starts_with(b"regi")
                && field32(&bytes, 4) == crc32c::of_structure(&bytes)
                && field32(&bytes, 8) <= MAX_ENTRIES;
            if is_sound {
                table = Some(bytes);
                break;
            }
        }
        let table =
            table.ok_or_else(|| corrupt(path, "neither of the two region tables is sound"))?;
        let count = field32(&table, 8) as usize;
        let log = header.log_at..header.log_at.saturating_add(header.log_bytes);
        let mut taken = vec![0..HEADER_SECTION_BYTES, log];
        let (mut bat, mut metadata) = (None, None);
        let entries = table.get(HEADER_BYTES..).unwrap_or_default();
        for entry in entries.chunks_exact(ENTRY_BYTES).take(count) {
            let id = guid(entry, 0);
            let region = bounds(file, entry, &id)?;
            let known = match id {
                BAT => bat.replace(region.clone()),
                METADATA => metadata.replace(region.clone()),
                _ if field32(entry, 28) & 1 != 0 => {
                    let what = format!("the required region {}", written(&id));
                    return Err(unsupported(path, what));
                }
                _ => None,
            };
            if known.is_some() {
                let what = format!("the region table has {} twice", written(&id));
                return Err(corrupt(path, what));
            }
            taken.push(region);
        }
        let missing = |what: &str| corrupt(path, format!("the region table has no {what}"));
        Ok(Self {
            bat: bat.ok_or_else(|| missing("BAT"))?,
            metadata: metadata.ok_or_else(|| missing("metadata region"))?,
            taken: disjoint(path, taken)?,
        })
    }

    /// Whether the bytes would lie in the header section, the log or a region.
    pub(super) fn overlaps(&self, start: u64, end: u64) -> bool {
        let after = self.taken.partition_point(|taken| taken.start < end);
        let before = after.checked_sub(1).and_then(|last| self.taken.get(last));
        before.is_some_and(|taken| taken.end > start)
    }
}

/// The entry's region, which has to be within the file.
fn bounds(file: &Replayed, entry: &[u8], id: &Guid) -> Result<Range<u64>> {
    let (start, length_bytes) = (field64(entry, 16), u64::from(field32(entry, 24)));
    let end = start.checked_add(length_bytes);
    let end = end.filter(|end| *end <= file.length_bytes && start >= HEADER_SECTION_BYTES);
    let aligned = start.is_multiple_of(MIB) && length_bytes.is_multiple_of(MIB) && length_bytes > 0;
    end.filter(|_| aligned)
        .map(|end| start..end)
        .ok_or_else(|| {
            let what = format!(
                "the region {} of {length_bytes} bytes at offset {start} is not within the file",
                written(id)
            );
            corrupt(file.window.path(), what)
        })
}

fn disjoint(path: &Path, mut ranges: Vec<Range<u64>>) -> Result<Vec<Range<u64>>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| range.start);
    for (one, other) in ranges.iter().zip(ranges.iter().skip(1)) {
        if one.end > other.start {
            let what = format!(
                "the regions at offsets {} and {} overlap",
                one.start, other.start
            );
            return Err(corrupt(path, what));
        }
    }
    Ok(ranges)
}
