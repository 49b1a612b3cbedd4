//! The headers of the sparse extents that ESXi makes for snapshots: VMFS sparse (COWD) and SE
//! sparse.
//!
//! Takes bytes and checks every number against the file's length. The journal of an SE sparse
//! extent is never replayed: one that would have to be is refused.
use std::path::Path;

use super::header::{Directory, Header, Pointers, within};
use crate::disk::{SECTOR_BYTES, Window, check_capacity, corrupt, unsupported};
use crate::error::Result;

pub(crate) const COWD_MAGIC: [u8; 4] = *b"COWD";
pub(crate) const SE_MAGIC: [u8; 8] = 0xcafe_babe_u64.to_le_bytes();
const SE_VOLATILE_MAGIC: u64 = 0xcafe_cafe;
const SE_VERSION: u64 = 0x2_0000_0001;

/// Both have grain tables of this many entries.
const TABLE_ENTRIES: u64 = 4096;
const COWD_VERSION: u64 = 1;
const COWD_GRAIN_SECTORS: std::ops::RangeInclusive<u64> = 1..=4096;
const SE_GRAIN_SECTORS: u64 = 8;
const SE_TABLE_SECTORS: u64 = TABLE_ENTRIES * 8 / SECTOR_BYTES;

const COWD_BYTES: usize = 32;
const SE_BYTES: usize = 208;
const SE_VOLATILE_BYTES: usize = 32;

/// Reads the header of a VMFS sparse extent.
pub(super) fn cowd(window: &Window) -> Result<Header> {
    let path = window.path();
    let bytes = window.read_vec(0, COWD_BYTES)?;
    let field = |at: usize| number(&bytes, at, 4);
    let version = field(4);
    if version != COWD_VERSION {
        return Err(unsupported(path, format!("VMFS sparse version {version}")));
    }
    let grain_sectors = field(16);
    if !grain_sectors.is_power_of_two() || !COWD_GRAIN_SECTORS.contains(&grain_sectors) {
        let what = format!("the COWD header claims grains of {grain_sectors} sectors");
        return Err(corrupt(path, what));
    }
    let layout = Layout {
        kind: "vmfsSparse",
        capacity_sectors: field(12),
        grain_sectors,
        directory_sector: field(20),
        directory_bytes: field(24) * 4,
        pointers: Pointers::Sectors,
    };
    layout.header(path, window.length_bytes())
}

/// Reads the headers of an SE sparse extent.
pub(super) fn se_sparse(window: &Window) -> Result<Header> {
    let path = window.path();
    let bytes = window.read_vec(0, SE_BYTES)?;
    let field = |at: usize| number(&bytes, at, 8);
    for (what, found, known) in [
        ("version", field(8), SE_VERSION),
        ("grain size in sectors", field(24), SE_GRAIN_SECTORS),
        ("grain table size in sectors", field(32), SE_TABLE_SECTORS),
        ("flags", field(40), 0),
    ] {
        if found != known {
            return Err(unsupported(
                path,
                format!("an SE sparse VMDK with {what} {found:#x}"),
            ));
        }
    }
    let volatile_bytes = offset(path, field(80))?;
    let bytes = window.read_vec(volatile_bytes, SE_VOLATILE_BYTES)?;
    if number(&bytes, 0, 8) != SE_VOLATILE_MAGIC {
        let what = format!("the SE sparse volatile header at {volatile_bytes} is none");
        return Err(corrupt(path, what));
    }
    if number(&bytes, 24, 8) != 0 {
        let what = "an SE sparse VMDK whose journal is to be replayed (it was not closed)";
        return Err(unsupported(path, what).with_remedy(
            "shut the VM down cleanly, or consolidate its snapshots, and export again",
        ));
    }
    let layout = Layout {
        kind: "seSparse",
        capacity_sectors: field(16),
        grain_sectors: SE_GRAIN_SECTORS,
        directory_sector: field(128),
        directory_bytes: field(136).saturating_mul(SECTOR_BYTES),
        pointers: Pointers::Typed {
            tables_bytes: offset(path, field(144))?,
            grains_bytes: offset(path, field(192))?,
        },
    };
    layout.header(path, window.length_bytes())
}

/// What either header says, unchecked.
struct Layout {
    kind: &'static str,
    capacity_sectors: u64,
    grain_sectors: u64,
    directory_sector: u64,
    directory_bytes: u64,
    pointers: Pointers,
}

impl Layout {
    fn header(&self, path: &Path, file_bytes: u64) -> Result<Header> {
        let capacity_bytes = check_capacity(path, self.capacity_sectors)?;
        let grain_bytes = self.grain_sectors * SECTOR_BYTES;
        let entries = capacity_bytes.div_ceil(grain_bytes * TABLE_ENTRIES);
        let offset_bytes = offset(path, self.directory_sector)?;
        let header = Header {
            kind: self.kind,
            version: 1,
            unclean: false,
            capacity_bytes,
            grain_bytes,
            descriptor: None,
            directory: Directory::At {
                offset_bytes,
                entries,
            },
            zero_grains: false,
            compressed: false,
            table_entries: TABLE_ENTRIES,
            pointers: self.pointers,
        };
        let needed_bytes = entries * header.entry_bytes();
        if capacity_bytes == 0 || offset_bytes == 0 || needed_bytes > self.directory_bytes {
            let what = format!(
                "a grain directory of {} bytes at offset {offset_bytes} does not hold the \
                 {needed_bytes} that {capacity_bytes} bytes of disk need",
                self.directory_bytes
            );
            return Err(corrupt(path, what));
        }
        within(
            path,
            "grain directory",
            offset_bytes,
            needed_bytes,
            file_bytes,
        )?;
        Ok(header)
    }
}

fn offset(path: &Path, sector: u64) -> Result<u64> {
    sector.checked_mul(SECTOR_BYTES).ok_or_else(|| {
        corrupt(
            path,
            format!("the header points to sector {sector}, past any end"),
        )
    })
}

/// The little-endian number of `width` bytes.
fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    let field = bytes.get(at..at + width).unwrap_or_default();
    let field = field.iter().rev();
    field.fold(0, |value, byte| (value << 8) | u64::from(*byte))
}
