//! What comes of blocks in their order: their places, the content digest, how many of each kind.
//!
//! The same for blocks that are converted now and for those that a journal tells of.
use super::journal::Record;
use crate::disk::{BLOCK_BYTES, BlockHash, ContentDigest, HostOffset, Layout};
use crate::error::Result;

/// Blocks that are not all zeros.
#[derive(Default, Clone, Copy)]
pub(super) struct Tally {
    pub all: u64,
    /// Of these: with the source's stream, and with one that was made here.
    pub transplanted: u64,
    pub encoded: u64,
}

pub(super) struct Account {
    digest: ContentDigest,
    /// A block was shared without reading it: its hash is left out.
    is_unread: bool,
    pub blocks: Tally,
}

impl Record {
    /// What it takes in the target.
    pub fn stored_bytes(&self) -> u64 {
        match self.packed_bytes {
            0 => BLOCK_BYTES,
            packed_bytes => u64::from(packed_bytes),
        }
    }
}

impl Account {
    pub fn new(capacity_bytes: u64) -> Self {
        Self {
            digest: ContentDigest::new(capacity_bytes),
            is_unread: false,
            blocks: Tally::default(),
        }
    }

    /// Of all blocks; `None` if one was not read.
    pub fn digest(&self) -> Option<String> {
        (!self.is_unread).then(|| self.digest.finish())
    }

    /// Enters a block and gives it its place; `None` without a target.
    pub fn place(
        &mut self,
        record: &Record,
        layout: Option<&mut (dyn Layout + '_)>,
    ) -> Result<Option<HostOffset>> {
        let is_packed = record.packed_bytes > 0;
        self.is_unread |= record.hash == BlockHash::default();
        self.digest.add(record.index, &record.hash);
        self.blocks.all += 1;
        self.blocks.transplanted += u64::from(record.is_transplant);
        self.blocks.encoded += u64::from(is_packed && !record.is_transplant);
        let Some(layout) = layout else {
            return Ok(None);
        };
        let place = if is_packed {
            layout.place_packed(record.index, u64::from(record.packed_bytes))
        } else {
            layout.place(record.index)
        };
        place.map(Some)
    }
}
