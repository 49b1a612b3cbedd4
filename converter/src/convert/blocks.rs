//! Finds the blocks of a batch that are not all zeros, hashes them, and packs them if asked.
use std::ops::Range;

use flate2::{FlushCompress, Status};
use libdeflater::CompressionLvl;

use super::batch::Batch;
use super::fill::Buffer;
use super::journal::Record;
use super::target::Packing;
use crate::disk::{BLOCK_BYTES, BlockHash, hash_block, is_zero};
use crate::error::{Error, ErrorKind, Result};
use crate::qcow2::Compression;

/// The window that the qcow2 specification allows a deflate stream: 4 KiB.
const WINDOW_BITS: u8 = 12;
/// The highest level of zlib.
const MAX_STRICT_LEVEL: u32 = 9;

/// A block that is not all zeros.
pub(super) struct Block {
    pub index: u64,
    pub hash: BlockHash,
    /// Where in the buffer's `packed` its stream is; `None`: it goes as it is.
    pub packed: Option<Range<usize>>,
    /// The stream came with the source.
    pub is_transplant: bool,
}

impl Block {
    pub fn record(&self) -> Record {
        Record {
            index: self.index,
            // Shorter than a block.
            packed_bytes: self.packed.as_ref().map_or(0, |range| range.len() as u32),
            is_transplant: self.is_transplant,
            hash: self.hash,
        }
    }
}

/// One thread's compressor.
pub(super) enum Packer {
    Zlib(libdeflater::Compressor),
    /// libdeflate knows only the window of 32 KiB.
    Strict(flate2::Compress),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Packer {
    /// A level that the library does not have is its default.
    pub fn new(packing: Packing) -> Result<Self> {
        let level = i32::try_from(packing.level).unwrap_or_default();
        Ok(match packing.compression {
            Compression::Zlib if packing.strict_window => {
                let level = flate2::Compression::new(packing.level.min(MAX_STRICT_LEVEL));
                let has_frame = false;
                Self::Strict(flate2::Compress::new_with_window_bits(
                    level,
                    has_frame,
                    WINDOW_BITS,
                ))
            }
            Compression::Zlib => {
                let level = CompressionLvl::new(level).unwrap_or_default();
                Self::Zlib(libdeflater::Compressor::new(level))
            }
            Compression::Zstd => {
                Self::Zstd(zstd::bulk::Compressor::new(level).map_err(|error| {
                    Error::new(ErrorKind::Internal, "prepare zstd").with_source(error)
                })?)
            }
        })
    }

    /// Writes the stream of `block` and returns its length; `None` if there is no room for it.
    fn pack(&mut self, block: &[u8], room: &mut [u8]) -> Option<usize> {
        let length = match self {
            Self::Strict(deflater) => {
                deflater.reset();
                let status = deflater.compress(block, room, FlushCompress::Finish);
                let is_whole = matches!(status, Ok(Status::StreamEnd));
                if is_whole {
                    deflater.total_out() as usize
                } else {
                    0
                }
            }
            Self::Zlib(deflater) => deflater.deflate_compress(block, room).unwrap_or(0),
            Self::Zstd(compressor) => compressor.compress_to_buffer(block, room).unwrap_or(0),
        };
        (length > 0).then_some(length)
    }
}

/// Fills `blocks` with those that the batch stores something of: unread, hashes left out.
pub(super) fn touch(batch: &Batch, blocks: &mut Vec<Block>) {
    blocks.clear();
    let mut next = 0;
    for piece in &batch.pieces {
        let first = (piece.start.0 / BLOCK_BYTES).max(next);
        let end = piece.start.0.saturating_add(piece.length_bytes);
        next = end.div_ceil(BLOCK_BYTES).max(next);
        blocks.extend((first..next).map(|index| Block {
            index,
            hash: BlockHash::default(),
            packed: None,
            is_transplant: false,
        }));
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
    let mut transplants = buffer.transplants.iter().peekable();
    let chunks = buffer.guest.chunks_exact(BLOCK_BYTES as usize);
    for (index, bytes) in (first..).zip(chunks) {
        if let Some(block) = transplants.next_if(|block| block.index == index) {
            blocks.push(Block {
                index,
                hash: block.hash,
                packed: block.stream.clone(),
                is_transplant: block.stream.is_some(),
            });
        } else if !is_zero(bytes) {
            let mut pack = |packer: &mut Packer| {
                // What is not shorter than the block is of no use.
                let most_bytes = bytes.len() - 1;
                let packed = &mut buffer.packed;
                packed.append(most_bytes, |room| packer.pack(bytes, room))
            };
            blocks.push(Block {
                index,
                hash: hash_block(bytes),
                packed: packer.as_deref_mut().and_then(&mut pack),
                is_transplant: false,
            });
        }
    }
}
