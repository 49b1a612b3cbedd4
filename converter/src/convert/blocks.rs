//! Finds the blocks of a batch that are not all zeros, hashes them, and deflates them if asked.
use std::ops::Range;

use libdeflater::{CompressionLvl, Compressor};

use super::batch::Batch;
use super::fill::Buffer;
use crate::disk::{BLOCK_BYTES, BlockHash, hash_block, is_zero};

/// A block that is not all zeros.
pub(super) struct Block {
    pub index: u64,
    pub hash: BlockHash,
    /// Where in the buffer's `packed` its deflate stream is; `None`: it goes as it is.
    pub packed: Option<Range<usize>>,
}

/// One thread's deflate.
pub(super) struct Packer {
    compressor: Compressor,
}

impl Packer {
    /// `level` is libdeflate's; one it does not have is its default.
    pub fn new(level: u32) -> Self {
        let level = i32::try_from(level).ok();
        let level = level.and_then(|level| CompressionLvl::new(level).ok());
        Self {
            compressor: Compressor::new(level.unwrap_or_default()),
        }
    }

    /// Appends the stream of `block` to `packed`; `None` if it is no shorter than the block.
    fn pack(&mut self, block: &[u8], packed: &mut Vec<u8>) -> Option<Range<usize>> {
        let start = packed.len();
        packed.resize(start + block.len() - 1, 0);
        let room = packed.get_mut(start..)?;
        let length = self.compressor.deflate_compress(block, room).unwrap_or(0);
        packed.truncate(start + length);
        (length > 0).then_some(start..start + length)
    }
}

/// Fills `blocks` with the batch's non-zero blocks, in order.
pub(super) fn find(
    buffer: &mut Buffer,
    batch: &Batch,
    mut packer: Option<&mut Packer>,
    blocks: &mut Vec<Block>,
) {
    blocks.clear();
    let first = batch.start.0 / BLOCK_BYTES;
    let chunks = buffer.guest.chunks_exact(BLOCK_BYTES as usize);
    for (index, bytes) in (first..).zip(chunks) {
        if is_zero(bytes) {
            continue;
        }
        let transplant = buffer.transplants.iter().find(|(block, _)| *block == index);
        let packed = match (transplant, packer.as_mut()) {
            (Some((_, range)), Some(_)) => Some(range.clone()),
            (None, Some(packer)) => packer.pack(bytes, &mut buffer.packed),
            (_, None) => None,
        };
        blocks.push(Block {
            index,
            hash: hash_block(bytes),
            packed,
        });
    }
}
