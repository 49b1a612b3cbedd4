//! The metadata region ([MS-VHDX] 2.6): sizes, and where a differencing disk's parent is.
use std::ops::Range;

use super::header::{Guid, MIB, binary, field16, field32, field64, guid, written};
use super::log::Replayed;
use crate::disk::{MAX_CAPACITY_BYTES, Window, corrupt, unsupported};
use crate::error::{Error, Result};
use crate::source::parent::utf16;

const TABLE_BYTES: usize = 64 << 10;
const HEADER_BYTES: usize = 32;
const ENTRY_BYTES: usize = 32;
const MAX_ENTRIES: u16 = 2047;
const MAX_ITEM_BYTES: u64 = MIB;
const IS_USER: u32 = 1;
const IS_REQUIRED: u32 = 1 << 2;
const BLOCK_BYTES: std::ops::RangeInclusive<u64> = MIB..=256 * MIB;
const LEAVE_BLOCKS_ALLOCATED: u32 = 1;
const HAS_PARENT: u32 = 1 << 1;
/// No key of a parent locator is longer, in bytes.
const MAX_KEY_BYTES: usize = 64;

const FILE_PARAMETERS: Guid = binary(
    0xcaa1_6737,
    0xfa36,
    0x4d43,
    [0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b],
);
const VIRTUAL_DISK_SIZE: Guid = binary(
    0x2fa5_4224,
    0xcd1b,
    0x4876,
    [0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8],
);
const VIRTUAL_DISK_ID: Guid = binary(
    0xbeca_12ab,
    0xb2e6,
    0x4523,
    [0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46],
);
const LOGICAL_SECTOR_SIZE: Guid = binary(
    0x8141_bf1d,
    0xa96f,
    0x4709,
    [0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f],
);
const PHYSICAL_SECTOR_SIZE: Guid = binary(
    0xcda3_48c7,
    0x445d,
    0x4471,
    [0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56],
);
const PARENT_LOCATOR: Guid = binary(
    0xa8d3_5f2d,
    0xb30b,
    0x454d,
    [0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c],
);
const VHDX_LOCATOR: Guid = binary(
    0xb04a_efb7,
    0xd19e,
    0x4a81,
    [0xb7, 0x89, 0x25, 0xb8, 0xe9, 0x44, 0x59, 0x13],
);
const KNOWN: [Guid; 6] = [
    FILE_PARAMETERS,
    VIRTUAL_DISK_SIZE,
    VIRTUAL_DISK_ID,
    LOGICAL_SECTOR_SIZE,
    PHYSICAL_SECTOR_SIZE,
    PARENT_LOCATOR,
];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Metadata {
    pub capacity_bytes: u64,
    pub block_bytes: u64,
    pub sector_bytes: u64,
    /// What lies below, and the disk's page 83 identifier: shown, never relied on.
    pub physical_sector_bytes: Option<u32>,
    pub disk_id: Option<Guid>,
    /// Every block has its place: a fixed disk.
    pub leaves_allocated: bool,
    pub parent: Option<ParentLocator>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ParentLocator {
    /// What the parent's data write GUID may be, as it is written.
    pub linkages: Vec<String>,
    /// In the order in which the specification has them tried.
    pub paths: Vec<String>,
}

impl Metadata {
    pub(super) fn read(file: &Replayed, region: &Range<u64>) -> Result<Self> {
        let items = Items::read(file, region)?;
        let parameters = items.get(&FILE_PARAMETERS, 8)?;
        let block_bytes = u64::from(field32(&parameters, 0));
        let flags = field32(&parameters, 4);
        if !block_bytes.is_power_of_two() || !BLOCK_BYTES.contains(&block_bytes) {
            return Err(items.corrupt(format!("the block size is {block_bytes} bytes")));
        }
        let sector_bytes = u64::from(field32(&items.get(&LOGICAL_SECTOR_SIZE, 4)?, 0));
        if !matches!(sector_bytes, 512 | 4096) {
            return Err(items.corrupt(format!("the sector size is {sector_bytes} bytes")));
        }
        let capacity_bytes = field64(&items.get(&VIRTUAL_DISK_SIZE, 8)?, 0);
        let is_whole = capacity_bytes > 0 && capacity_bytes.is_multiple_of(sector_bytes);
        if !is_whole || capacity_bytes > MAX_CAPACITY_BYTES {
            return Err(items.corrupt(format!("the capacity is {capacity_bytes} bytes")));
        }
        let parent = (flags & HAS_PARENT != 0)
            .then(|| items.parent())
            .transpose()?;
        Ok(Self {
            capacity_bytes,
            block_bytes,
            sector_bytes,
            physical_sector_bytes: items
                .get(&PHYSICAL_SECTOR_SIZE, 4)
                .ok()
                .map(|bytes| field32(&bytes, 0)),
            disk_id: items
                .get(&VIRTUAL_DISK_ID, 16)
                .ok()
                .map(|bytes| guid(&bytes, 0)),
            leaves_allocated: flags & LEAVE_BLOCKS_ALLOCATED != 0,
            parent,
        })
    }
}

/// The known items, their places checked.
struct Items<'a> {
    file: &'a Replayed,
    found: Vec<(Guid, Range<u64>)>,
}

impl<'a> Items<'a> {
    fn read(file: &'a Replayed, region: &Range<u64>) -> Result<Self> {
        let mut items = Self {
            file,
            found: Vec::new(),
        };
        let table = file.read_vec(region.start, TABLE_BYTES)?;
        let count = field16(&table, 10);
        if !table.starts_with(b"metadata") || count > MAX_ENTRIES {
            return Err(items.corrupt("its table is not sound".to_owned()));
        }
        let entries = table.get(HEADER_BYTES..).unwrap_or_default();
        for entry in entries.chunks_exact(ENTRY_BYTES).take(count.into()) {
            let (id, flags) = (guid(entry, 0), field32(entry, 24));
            if flags & IS_USER != 0 || !KNOWN.contains(&id) {
                if flags & IS_REQUIRED != 0 {
                    let what = format!("the required metadata item {}", written(&id));
                    return Err(unsupported(file.window.path(), what));
                }
                continue;
            }
            let (offset_bytes, length_bytes) = (field32(entry, 16), field32(entry, 20));
            let start = region.start.saturating_add(u64::from(offset_bytes));
            let end = start.saturating_add(u64::from(length_bytes));
            let is_inside = offset_bytes as usize >= TABLE_BYTES && end <= region.end;
            if !is_inside || u64::from(length_bytes) > MAX_ITEM_BYTES {
                let what = format!(
                    "the item {} of {length_bytes} bytes at {offset_bytes} is not within it",
                    written(&id)
                );
                return Err(items.corrupt(what));
            }
            let clashes = |(other, range): &(Guid, Range<u64>)| {
                *other == id || (range.start < end && start < range.end)
            };
            if items.found.iter().any(clashes) {
                let what = format!("the item {} is there twice or on another", written(&id));
                return Err(items.corrupt(what));
            }
            items.found.push((id, start..end));
        }
        Ok(items)
    }

    /// The first `least_bytes` or, for 0, all bytes of an item.
    fn get(&self, id: &Guid, least_bytes: u64) -> Result<Vec<u8>> {
        let found = self.found.iter().find(|(known, _)| known == id);
        let range = found
            .map(|(_, range)| range)
            .filter(|range| range.end - range.start >= least_bytes)
            .ok_or_else(|| self.corrupt(format!("the item {} is missing", written(id))))?;
        let length_bytes = match least_bytes {
            0 => range.end - range.start,
            _ => least_bytes,
        };
        self.file.read_vec(range.start, length_bytes as usize)
    }

    /// [MS-VHDX] 2.6.2.6, the parent locator.
    fn parent(&self) -> Result<ParentLocator> {
        const KEYS: [&str; 5] = [
            "parent_linkage",
            "parent_linkage2",
            "relative_path",
            "volume_path",
            "absolute_win32_path",
        ];
        let item = self.get(&PARENT_LOCATOR, 0)?;
        let kind = guid(&item, 0);
        if kind != VHDX_LOCATOR {
            let what = format!("a parent of the type {}", written(&kind));
            return Err(unsupported(self.window().path(), what));
        }
        let text = |offset_bytes: u32, length_bytes: usize| {
            let rest = item.get(offset_bytes as usize..)?;
            Some(utf16(rest.get(..length_bytes)?, u16::from_le_bytes))
        };
        let outside = || self.corrupt("the parent locator reaches past its end".to_owned());
        let mut values: [Option<String>; KEYS.len()] = Default::default();
        let count = field16(&item, 18);
        let entries = item.get(20..).unwrap_or_default();
        for entry in entries.chunks_exact(12).take(count.into()) {
            let key_bytes = usize::from(field16(entry, 8));
            if key_bytes > MAX_KEY_BYTES {
                continue;
            }
            let key = text(field32(entry, 0), key_bytes).ok_or_else(outside)?;
            let known = KEYS.iter().position(|known| *known == key);
            if let Some(value) = known.and_then(|index| values.get_mut(index)) {
                let length_bytes = usize::from(field16(entry, 10));
                *value = Some(text(field32(entry, 4), length_bytes).ok_or_else(outside)?);
            }
        }
        let [linkage, linkage2, paths @ ..] = values;
        Ok(ParentLocator {
            linkages: [linkage, linkage2].into_iter().flatten().collect(),
            paths: paths.into_iter().flatten().collect(),
        })
    }

    fn window(&self) -> &Window {
        &self.file.window
    }

    fn corrupt(&self, what: String) -> Error {
        corrupt(
            self.window().path(),
            format!("in the metadata region, {what}"),
        )
    }
}
