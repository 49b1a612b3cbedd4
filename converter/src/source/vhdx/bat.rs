//! The BAT ([MS-VHDX] 2.5), read piece by piece, with the sector bitmaps of differencing disks.
use std::ops::Range;

use super::header::{MIB, field64};
use super::log::Replayed;
use super::metadata::Metadata;
use super::region::Regions;
use crate::disk::{corrupt, unsupported};
use crate::error::{Error, Result};
use crate::source::blocks::{Block, Table};

const ENTRY_BYTES: u64 = 8;
/// Entries that are read at once.
const STEP: u64 = 2048;
const STATE: u64 = 0x7;
/// The bits of an entry that, as they stand, are an offset in bytes.
const OFFSET: u64 = !(MIB - 1);
const BITMAP_BLOCK_BYTES: u64 = MIB;
const SECTORS_PER_CHUNK: u64 = 1 << 23;

/// Payload block states; a sector bitmap block is `FULLY_PRESENT` or not there.
const NOT_PRESENT: u64 = 0;
const UNDEFINED: u64 = 1;
const ZERO: u64 = 2;
const UNMAPPED: u64 = 3;
const FULLY_PRESENT: u64 = 6;
const PARTIALLY_PRESENT: u64 = 7;

pub(super) struct Bat<'a> {
    file: &'a Replayed,
    regions: &'a Regions,
    metadata: &'a Metadata,
    /// Entries from `first` on.
    entries: Vec<u8>,
    first: u64,
    /// The chunk whose bitmap block was asked for last, and where that is.
    bitmap: Option<(u64, u64)>,
}

/// Payload blocks that share a bitmap block, which follows their entries.
fn chunk_ratio(metadata: &Metadata) -> u64 {
    SECTORS_PER_CHUNK * metadata.sector_bytes / metadata.block_bytes
}

/// The entries that the capacity needs.
fn entries_needed(metadata: &Metadata) -> u64 {
    let blocks = metadata.capacity_bytes.div_ceil(metadata.block_bytes);
    let ratio = chunk_ratio(metadata);
    match metadata.parent {
        Some(_) => blocks.div_ceil(ratio) * (ratio + 1),
        None => blocks + blocks.saturating_sub(1) / ratio,
    }
}

/// An error if the region is too small for the capacity.
pub(super) fn check(file: &Replayed, regions: &Regions, metadata: &Metadata) -> Result<()> {
    let needed = entries_needed(metadata);
    let Range { start, end } = regions.bat;
    if needed * ENTRY_BYTES <= end - start {
        return Ok(());
    }
    let what = format!(
        "the BAT of {} bytes is too small for {needed} entries",
        end - start
    );
    Err(corrupt(file.window.path(), what))
}

impl<'a> Bat<'a> {
    pub(super) fn new(file: &'a Replayed, regions: &'a Regions, metadata: &'a Metadata) -> Self {
        Self {
            file,
            regions,
            metadata,
            entries: Vec::new(),
            first: 0,
            bitmap: None,
        }
    }

    fn entry(&mut self, index: u64) -> Result<u64> {
        let read = self.first + self.entries.len() as u64 / ENTRY_BYTES;
        if index < self.first || index >= read {
            let count = STEP.min(entries_needed(self.metadata).saturating_sub(index));
            let at = self.regions.bat.start.saturating_add(index * ENTRY_BYTES);
            self.entries = self.file.read_vec(at, (count * ENTRY_BYTES) as usize)?;
            self.first = index;
        }
        let at = ((index - self.first) * ENTRY_BYTES) as usize;
        Ok(field64(&self.entries, at))
    }

    /// Checks that `length_bytes` at the place an entry gives are free for `what`.
    fn check(&self, what: &str, index: u64, entry: u64, length_bytes: u64) -> Result<u64> {
        let start = entry & OFFSET;
        let end = start.saturating_add(length_bytes);
        if self.regions.overlaps(start, end) {
            return Err(self.corrupt(format!(
                "{what} {index} at offset {start} lies in the header, the log or a region"
            )));
        }
        Ok(start)
    }

    /// Where the sector bitmap of `chunk` is.
    fn bitmap_at(&mut self, chunk: u64) -> Result<u64> {
        if let Some((known, at)) = self.bitmap
            && known == chunk
        {
            return Ok(at);
        }
        let ratio = chunk_ratio(self.metadata);
        let index = chunk * (ratio + 1) + ratio;
        let at = self.regions.bat.start.saturating_add(index * ENTRY_BYTES);
        let entry = field64(&self.file.read_vec(at, ENTRY_BYTES as usize)?, 0);
        if entry & STATE != FULLY_PRESENT {
            return Err(self.corrupt(format!(
                "the sector bitmap of chunk {chunk} is missing, but a block needs it"
            )));
        }
        let start = self.check("sector bitmap block", chunk, entry, BITMAP_BLOCK_BYTES)?;
        self.bitmap = Some((chunk, start));
        Ok(start)
    }

    fn corrupt(&self, what: String) -> Error {
        corrupt(self.file.window.path(), what)
    }
}

impl Table for Bat<'_> {
    fn block(&mut self, index: u64) -> Result<Block> {
        let ratio = chunk_ratio(self.metadata);
        let entry = self.entry(index + index / ratio)?;
        let state = entry & STATE;
        match state {
            NOT_PRESENT => return Ok(Block::Absent),
            // What is undefined may be anything: zeros tell nothing of what was there before.
            UNDEFINED | ZERO | UNMAPPED => return Ok(Block::Zero),
            FULLY_PRESENT => {}
            PARTIALLY_PRESENT if self.metadata.parent.is_some() => {}
            _ => {
                let what = format!("block {index} has the state {state} in the BAT");
                return Err(self.corrupt(what));
            }
        }
        let block_bytes = self.metadata.block_bytes;
        let offset_bytes = self.check("block", index, entry, block_bytes)?;
        let end = offset_bytes.saturating_add(block_bytes);
        if self.file.touches(offset_bytes, end) {
            let what = format!("a log that writes to block {index}");
            return Err(unsupported(self.file.window.path(), what));
        }
        if state == FULLY_PRESENT {
            return Ok(Block::Present(offset_bytes));
        }
        let bitmap_bytes = block_bytes / self.metadata.sector_bytes / 8;
        let skipped = (index % ratio) * bitmap_bytes;
        let at = self.bitmap_at(index / ratio)?.saturating_add(skipped);
        Ok(Block::Partial {
            offset_bytes,
            bitmap: self.file.read_vec(at, bitmap_bytes as usize)?,
        })
    }
}
