//! The block allocation table (Virtual Hard Disk Image Format 1.0, "Block Allocation Table and Data
//! Blocks"), read piece by piece; nothing is sized by what the file claims.
use super::header::Header;
use crate::disk::{SECTOR_BYTES, Window, corrupt};
use crate::error::Result;
use crate::source::blocks::{Block, Table};

/// Entries that are read at once.
const STEP: u64 = 4096;
const UNUSED: u32 = u32::MAX;

pub(super) struct Bat<'a> {
    window: &'a Window,
    header: &'a Header,
    differencing: bool,
    /// Entries from `first` on.
    entries: Vec<u8>,
    first: u64,
}

impl<'a> Bat<'a> {
    pub(super) fn new(window: &'a Window, header: &'a Header, differencing: bool) -> Self {
        Self {
            window,
            header,
            differencing,
            entries: Vec::new(),
            first: 0,
        }
    }

    fn entry(&mut self, index: u64) -> Result<u32> {
        let read = self.first + self.entries.len() as u64 / 4;
        if index < self.first || index >= read {
            let count = STEP.min(self.header.entries.saturating_sub(index));
            let at = self.header.table_bytes.saturating_add(index * 4);
            self.entries = self.window.read_vec(at, (count * 4) as usize)?;
            self.first = index;
        }
        let at = (index - self.first) as usize * 4;
        let entry = self.entries.get(at..).and_then(|rest| rest.first_chunk());
        entry
            .map(|bytes| u32::from_be_bytes(*bytes))
            .ok_or_else(|| corrupt(self.window.path(), format!("the BAT has no block {index}")))
    }
}

impl Table for Bat<'_> {
    fn block(&mut self, index: u64) -> Result<Block> {
        let entry = self.entry(index)?;
        if entry == UNUSED {
            return Ok(Block::Absent);
        }
        let block_at = u64::from(entry) * SECTOR_BYTES;
        let bitmap_bytes = self.header.bitmap_bytes();
        if self
            .header
            .overlaps_structure(block_at, bitmap_bytes + self.header.block_bytes)
        {
            let what = format!("block {index} at offset {block_at} lies in the header or the BAT");
            return Err(corrupt(self.window.path(), what));
        }
        let offset_bytes = block_at + bitmap_bytes;
        // Of a dynamic disk's bitmap nothing is asked: a sector that was never written is zeros in
        // the block, and writers are known that leave all bits clear.
        if !self.differencing {
            return Ok(Block::Present(offset_bytes));
        }
        let mut bitmap = self.window.read_vec(block_at, bitmap_bytes as usize)?;
        // The first sector's is the highest bit here.
        for byte in &mut bitmap {
            *byte = byte.reverse_bits();
        }
        Ok(Block::Partial {
            offset_bytes,
            bitmap,
        })
    }
}
