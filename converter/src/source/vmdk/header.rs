//! The header of a hosted sparse extent (Virtual Disk Format 5.0, "Hosted Sparse Extent Header").
//!
//! Takes bytes; every number is checked here against the file's length before anyone uses it.
use std::path::Path;

use crate::disk::{SECTOR_BYTES, check_capacity, corrupt, unsupported};
use crate::error::Result;

/// "KDMV", little endian.
pub(crate) const MAGIC: [u8; 4] = *b"KDMV";
pub(crate) const HEADER_BYTES: usize = 512;
/// `gdOffset` of a header that leaves the truth to the footer.
const GD_AT_END: u64 = u64::MAX;
/// Entries of a grain table; the specification knows no other number.
const TABLE_ENTRIES: u64 = 512;
/// Grains of 4 KiB to 2 MiB; the specification asks for a power of two above 4 KiB.
const GRAIN_SECTORS: std::ops::RangeInclusive<u64> = 8..=4096;
/// A descriptor has some KiB; a larger one is not looked at.
pub(super) const MAX_DESCRIPTOR_BYTES: u64 = 1024 * 1024;

/// A grain table entry that says zeros, if the header's flags allow it.
const ZERO_GRAIN: u64 = 1;
/// The upper half of an SE sparse directory entry that leads to a table.
const ALLOCATED_TABLE: u64 = 0x1000_0000;

const FLAG_NEWLINES: u32 = 1;
const FLAG_ZERO_GRAINS: u32 = 1 << 2;
const FLAG_COMPRESSED: u32 = 1 << 16;
const FLAG_MARKERS: u32 = 1 << 17;
/// `compressAlgorithm` of RFC 1950 streams.
const DEFLATE: u16 = 1;
const MARKER_FOOTER: u32 = 3;

/// What is needed to read a sparse extent; offsets and sizes are within the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// `hosted`, `vmfsSparse`, `seSparse`.
    pub kind: &'static str,
    pub version: u32,
    /// Its writer had it open and did not close it.
    pub unclean: bool,
    pub capacity_bytes: u64,
    pub grain_bytes: u64,
    /// `None`: no descriptor inside, this is a part of a split disk.
    pub descriptor: Option<(u64, usize)>,
    pub directory: Directory,
    pub zero_grains: bool,
    pub compressed: bool,
    /// Entries of a grain table.
    pub table_entries: u64,
    pub pointers: Pointers,
}

/// How the entries of the grain directory and of grain tables are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pointers {
    /// 32-bit sectors of the file.
    Sectors,
    /// 64 bits with a type in the highest four, counting in two areas of the file (SE sparse).
    Typed {
        tables_bytes: u64,
        grains_bytes: u64,
    },
}

/// What an entry stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    Nothing,
    Zero,
    /// At this offset of the file, which was not yet held against its end.
    At(u64),
    Nonsense,
}

/// Where the grain directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Directory {
    At {
        offset_bytes: u64,
        entries: u64,
    },
    /// In the footer, whose copy of the header has to be parsed.
    Footer,
}

impl Header {
    /// Parses the first (or the footer's) 512 bytes of the file at `path`, which has `file_bytes`.
    pub(crate) fn parse(bytes: &[u8; HEADER_BYTES], path: &Path, file_bytes: u64) -> Result<Self> {
        let magic = u32::from_le_bytes(MAGIC);
        if field32(bytes, 0) != magic {
            return Err(corrupt(path, "the VMDK header does not begin with KDMV"));
        }
        let version = field32(bytes, 4);
        if !(1..=3).contains(&version) {
            return Err(unsupported(path, format!("VMDK version {version}")));
        }
        let flags = field32(bytes, 8);
        let newlines = bytes.get(73..77).unwrap_or_default();
        if flags & FLAG_NEWLINES != 0 && newlines != b"\n \r\n" {
            return Err(corrupt(
                path,
                "the VMDK header's line ends were changed: it was transferred as text",
            ));
        }
        let grain_sectors = field64(bytes, 20);
        if !grain_sectors.is_power_of_two() || !GRAIN_SECTORS.contains(&grain_sectors) {
            return Err(corrupt(
                path,
                format!("the VMDK header claims grains of {grain_sectors} sectors"),
            ));
        }
        let table_entries = field32(bytes, 44);
        if u64::from(table_entries) != TABLE_ENTRIES {
            return Err(corrupt(
                path,
                format!("the VMDK header claims grain tables of {table_entries} entries"),
            ));
        }
        let capacity_bytes = check_capacity(path, field64(bytes, 12))?;
        if capacity_bytes == 0 {
            return Err(corrupt(path, "the VMDK header claims a capacity of 0"));
        }
        let grain_bytes = grain_sectors * SECTOR_BYTES;
        Ok(Self {
            kind: "hosted",
            version,
            unclean: bytes.get(72) == Some(&1),
            capacity_bytes,
            grain_bytes,
            descriptor: descriptor(bytes, path, file_bytes)?,
            directory: directory(bytes, path, file_bytes, capacity_bytes, grain_bytes)?,
            zero_grains: flags & FLAG_ZERO_GRAINS != 0,
            compressed: compressed(bytes, path, flags)?,
            table_entries: TABLE_ENTRIES,
            pointers: Pointers::Sectors,
        })
    }

    /// Where the first grain of a stream may be (`overHead`): everything before it is structure.
    pub(super) fn overhead_bytes(bytes: &[u8; HEADER_BYTES]) -> u64 {
        field64(bytes, 64).saturating_mul(SECTOR_BYTES)
    }

    pub(super) fn entry_bytes(&self) -> u64 {
        match self.pointers {
            Pointers::Sectors => 4,
            Pointers::Typed { .. } => 8,
        }
    }

    pub(super) fn table_bytes(&self) -> u64 {
        self.table_entries * self.entry_bytes()
    }

    /// Where the grain table of a directory entry is.
    pub(super) fn table(&self, entry: u64) -> Entry {
        match self.pointers {
            _ if entry == 0 => Entry::Nothing,
            Pointers::Sectors => Entry::At(entry.saturating_mul(SECTOR_BYTES)),
            Pointers::Typed { tables_bytes, .. } if entry >> 32 == ALLOCATED_TABLE => {
                let within = (entry & u64::from(u32::MAX)).saturating_mul(self.table_bytes());
                Entry::At(tables_bytes.saturating_add(within))
            }
            Pointers::Typed { .. } => Entry::Nonsense,
        }
    }

    /// What a grain table's entry says of its grain.
    pub(super) fn grain(&self, entry: u64) -> Entry {
        match (self.pointers, entry >> 60) {
            _ if entry == 0 => Entry::Nothing,
            (Pointers::Sectors, _) if entry == ZERO_GRAIN && self.zero_grains => Entry::Zero,
            (Pointers::Sectors, _) => Entry::At(entry.saturating_mul(SECTOR_BYTES)),
            // Unmapped by the guest, or written as zeros.
            (Pointers::Typed { .. }, 1 | 2) => Entry::Zero,
            (Pointers::Typed { grains_bytes, .. }, 3) => {
                // The lowest twelve bits of the index stand above the others.
                let index = (entry >> 48 & 0xfff) | (entry << 16 >> 4);
                let within = index.saturating_mul(self.grain_bytes);
                Entry::At(grains_bytes.saturating_add(within))
            }
            (Pointers::Typed { .. }, _) => Entry::Nonsense,
        }
    }

    /// Where the grain directory is, its offset and length in bytes.
    pub(super) fn directory_range(&self) -> Option<(u64, u64)> {
        match self.directory {
            Directory::At {
                offset_bytes,
                entries,
            } => Some((offset_bytes, entries * self.entry_bytes())),
            Directory::Footer => None,
        }
    }

    /// Sectors that the header, the descriptor and the grain directory occupy must not be tables
    /// or grains.
    pub(super) fn overlaps_structure(&self, offset_bytes: u64, length_bytes: u64) -> bool {
        let end = offset_bytes.saturating_add(length_bytes);
        let is_in = |range: Option<(u64, u64)>| {
            range.is_some_and(|(start, length_bytes)| {
                offset_bytes < start.saturating_add(length_bytes) && end > start
            })
        };
        let descriptor = self
            .descriptor
            .map(|(start, length)| (start, length as u64));
        offset_bytes < HEADER_BYTES as u64 || is_in(descriptor) || is_in(self.directory_range())
    }
}

fn compressed(bytes: &[u8; HEADER_BYTES], path: &Path, flags: u32) -> Result<bool> {
    if flags & FLAG_COMPRESSED == 0 {
        return Ok(false);
    }
    let algorithm = field16(bytes, 77);
    if algorithm != DEFLATE {
        return Err(unsupported(
            path,
            format!("VMDK compression algorithm {algorithm}"),
        ));
    }
    if flags & FLAG_MARKERS == 0 {
        return Err(unsupported(path, "a compressed VMDK without markers"));
    }
    Ok(true)
}

fn descriptor(
    bytes: &[u8; HEADER_BYTES],
    path: &Path,
    file_bytes: u64,
) -> Result<Option<(u64, usize)>> {
    let (offset, size) = (field64(bytes, 28), field64(bytes, 36));
    if offset == 0 || size == 0 {
        return Ok(None);
    }
    let offset_bytes = offset.checked_mul(SECTOR_BYTES);
    let size_bytes = size
        .checked_mul(SECTOR_BYTES)
        .filter(|bytes| *bytes <= MAX_DESCRIPTOR_BYTES);
    let (Some(offset_bytes), Some(size_bytes)) = (offset_bytes, size_bytes) else {
        return Err(corrupt(
            path,
            format!("the VMDK header claims a descriptor of {size} sectors at sector {offset}"),
        ));
    };
    within(path, "descriptor", offset_bytes, size_bytes, file_bytes)?;
    Ok(Some((offset_bytes, size_bytes as usize)))
}

fn directory(
    bytes: &[u8; HEADER_BYTES],
    path: &Path,
    file_bytes: u64,
    capacity_bytes: u64,
    grain_bytes: u64,
) -> Result<Directory> {
    let sector = field64(bytes, 56);
    if sector == GD_AT_END {
        return Ok(Directory::Footer);
    }
    let entries = capacity_bytes.div_ceil(grain_bytes * TABLE_ENTRIES);
    let offset_bytes = sector.saturating_mul(SECTOR_BYTES);
    if offset_bytes < HEADER_BYTES as u64 {
        return Err(corrupt(
            path,
            format!("the VMDK grain directory is at sector {sector}, inside the header"),
        ));
    }
    within(
        path,
        "grain directory",
        offset_bytes,
        entries * 4,
        file_bytes,
    )?;
    Ok(Directory::At {
        offset_bytes,
        entries,
    })
}

pub(super) fn within(
    path: &Path,
    what: &str,
    offset: u64,
    length: u64,
    file_bytes: u64,
) -> Result<()> {
    match offset.checked_add(length) {
        Some(end) if end <= file_bytes => Ok(()),
        _ => Err(corrupt(
            path,
            format!(
                "truncated: the VMDK {what} of {length} bytes at offset {offset} lies past the \
                 end at {file_bytes}"
            ),
        )),
    }
}

/// Checks the last three sectors of a file whose directory is at its end: the footer's marker, the
/// footer (a header, returned), and the end-of-stream marker.
pub(super) fn footer<'a>(tail: &'a [u8], path: &Path) -> Result<&'a [u8; HEADER_BYTES]> {
    let missing = || {
        corrupt(
            path,
            "truncated: the streamOptimized VMDK has no footer and end-of-stream marker",
        )
    };
    let (marker, rest) = tail
        .split_first_chunk::<HEADER_BYTES>()
        .ok_or_else(missing)?;
    let (footer, end) = rest
        .split_first_chunk::<HEADER_BYTES>()
        .ok_or_else(missing)?;
    let is_footer =
        field64(marker, 0) == 1 && field32(marker, 8) == 0 && field32(marker, 12) == MARKER_FOOTER;
    let is_end = end.len() == HEADER_BYTES && end.iter().all(|byte| *byte == 0);
    if is_footer && is_end {
        Ok(footer)
    } else {
        Err(missing())
    }
}

fn field<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .unwrap_or([0; N])
}

fn field16(bytes: &[u8; HEADER_BYTES], at: usize) -> u16 {
    u16::from_le_bytes(field(bytes, at))
}

fn field32(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes(field(bytes, at))
}

fn field64(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(field(bytes, at))
}
