//! Reads a batch: plain bytes straight into place, packed units inflated, zeros everywhere else.
use std::ops::Range;

use super::batch::{BATCH_BYTES, Batch};
use crate::disk::{
    Aligned, BLOCK_BYTES, BlockHash, Extent, HostOffset, Image, Packed, Stored, Window, hash_block,
    is_zero,
};
use crate::error::{Error, ErrorKind, Result};

/// Packed units that lie close together are read at once, up to this span.
const SPAN_BYTES: u64 = 2 * BATCH_BYTES;

/// One thread's memory; it grows to the largest unit met and no further.
pub(super) struct Buffer {
    /// The guest's bytes of the batch that was read last.
    pub guest: Aligned,
    /// The streams of the batch's blocks, for a compressed target.
    pub packed: Streams,
    /// Blocks whose stream came with the source, in order.
    pub transplants: Vec<Transplant>,
    /// For what has to be aligned to be written.
    pub spare: Option<Aligned>,
    /// Never made shorter: what it gains again would be filled with zeros first.
    stored: Vec<u8>,
    unpacked: Vec<u8>,
    keeps_streams: bool,
}

/// Streams one behind the other, from a page on. There is room for those of a whole batch, each
/// shorter than its block: memory that is not written to is none.
pub(super) struct Streams {
    bytes: Aligned,
    end: usize,
}

impl Streams {
    fn new(span_bytes: u64) -> Self {
        Self {
            bytes: Aligned::zeros(span_bytes as usize),
            end: 0,
        }
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends what `pack` writes into the next `most_bytes` and returns the length of.
    pub fn append(
        &mut self,
        most_bytes: usize,
        pack: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> Option<Range<usize>> {
        let start = self.end;
        let room = self.bytes.get_mut(start..start + most_bytes)?;
        self.end += pack(room)?;
        Some(start..self.end)
    }

    /// Zeros behind the stream that is written last, over whatever is there; returns their end.
    pub fn pad(&mut self, end: usize, more_bytes: usize) -> usize {
        let rest = self.bytes.get_mut(end..end + more_bytes);
        end + rest.map_or(0, |rest| {
            rest.fill(0);
            rest.len()
        })
    }
}

/// A block as the source's writer deflated it.
pub(super) struct Transplant {
    pub index: u64,
    pub hash: BlockHash,
    /// Where in `packed` its stream is. `None`: it does not shrink, and is among the guest's bytes.
    pub stream: Option<Range<usize>>,
}

impl Buffer {
    /// For batches of `span_bytes`. `keeps_streams`: what the source deflated block by block is
    /// wanted as it is, too.
    pub fn new(span_bytes: u64, keeps_streams: bool) -> Self {
        Self {
            guest: Aligned::zeros(span_bytes as usize),
            spare: None,
            packed: Streams::new(span_bytes),
            transplants: Vec::new(),
            stored: Vec::new(),
            unpacked: Vec::new(),
            keeps_streams,
        }
    }

    /// Reads `batch` into `guest`. Returns how many stored bytes that took.
    pub fn fill(&mut self, image: &dyn Image, batch: &Batch) -> Result<u64> {
        clear_gaps(&mut self.guest, batch);
        self.packed.end = 0;
        self.transplants.clear();
        let mut read_bytes = 0u64;
        let mut pieces = batch.pieces.as_slice();
        while let Some(first) = pieces.first() {
            let count = run_length(pieces);
            let (run, rest) = pieces.split_at_checked(count).ok_or_else(outside)?;
            read_bytes = read_bytes.saturating_add(match first.stored {
                Stored::Plain { file, offset } => {
                    self.read_plain(image, batch, run, file, offset)?
                }
                Stored::Packed { unit, .. } => self.read_packed(image, batch, run, unit.file)?,
                Stored::Hole | Stored::Zero => 0,
            });
            pieces = rest;
        }
        Ok(read_bytes)
    }

    fn read_plain(
        &mut self,
        image: &dyn Image,
        batch: &Batch,
        run: &[Extent],
        file: usize,
        offset: HostOffset,
    ) -> Result<u64> {
        let first = run.first().ok_or_else(outside)?;
        let length_bytes = run.iter().map(|piece| piece.length_bytes).sum();
        let place = place(&mut self.guest, batch, first, length_bytes)?;
        window(image, file)?.read_exact_at(place, offset.0)?;
        Ok(length_bytes)
    }

    fn read_packed(
        &mut self,
        image: &dyn Image,
        batch: &Batch,
        run: &[Extent],
        file: usize,
    ) -> Result<u64> {
        let window = window(image, file)?;
        let units = || run.iter().filter_map(packed);
        let start = units()
            .map(|unit| unit.offset.0)
            .next()
            .ok_or_else(outside)?;
        let end = units()
            .map(|unit| unit.offset.0.saturating_add(unit.limit_bytes))
            .fold(start, u64::max)
            .min(window.length_bytes());
        let stored_bytes = end.saturating_sub(start) as usize;
        if self.stored.len() < stored_bytes {
            self.stored.resize(stored_bytes, 0);
        }
        let all_stored = self.stored.get_mut(..stored_bytes).ok_or_else(outside)?;
        window.read_exact_at(all_stored, start)?;
        let mut read_bytes = 0u64;
        for piece in run {
            let Stored::Packed { unit, skip_bytes } = piece.stored else {
                return Err(outside());
            };
            let from = unit.offset.0.saturating_sub(start) as usize;
            let to = from
                .saturating_add(unit.limit_bytes as usize)
                .min(stored_bytes);
            let stored = all_stored.get(from..to).ok_or_else(outside)?;
            let target = place(&mut self.guest, batch, piece, piece.length_bytes)?;
            let whole = skip_bytes == 0 && piece.length_bytes == unit.unpacked_bytes;
            let is_block = whole
                && unit.unpacked_bytes == BLOCK_BYTES
                && unit.guest.0.is_multiple_of(BLOCK_BYTES);
            let unpacked = if whole && !(is_block && self.keeps_streams) {
                image.unpack(&unit, stored, target)?
            } else {
                // Always the same memory: a block that is carried over never leaves the core's
                // own cache.
                self.unpacked.resize(unit.unpacked_bytes as usize, 0);
                let unpacked = image.unpack(&unit, stored, &mut self.unpacked)?;
                let stream = unpacked.deflate.clone().filter(|_| is_block);
                let transplant = stream.and_then(|stream| {
                    let index = unit.guest.0 / BLOCK_BYTES;
                    transplant(index, &self.unpacked, stored.get(stream)?, &mut self.packed)
                });
                if transplant
                    .as_ref()
                    .is_none_or(|block| block.stream.is_none())
                {
                    let skip = skip_bytes as usize;
                    let part = self.unpacked.get(skip..skip + target.len());
                    target.copy_from_slice(part.ok_or_else(outside)?);
                }
                self.transplants.extend(transplant);
                unpacked
            };
            read_bytes = read_bytes.saturating_add(unpacked.stored_bytes);
        }
        Ok(read_bytes)
    }
}

/// Takes over `stream`, of which `block` was inflated.
fn transplant(index: u64, block: &[u8], stream: &[u8], packed: &mut Streams) -> Option<Transplant> {
    if is_zero(block) {
        return None;
    }
    let shrinks = stream.len() < BLOCK_BYTES as usize;
    let stream = shrinks.then(|| {
        packed.append(stream.len(), |room| {
            room.copy_from_slice(stream);
            Some(stream.len())
        })
    });
    Some(Transplant {
        index,
        hash: hash_block(block),
        stream: stream.flatten(),
    })
}

/// Zeros where nothing is stored; the rest is about to be read.
fn clear_gaps(guest: &mut [u8], batch: &Batch) {
    let mut rest = guest;
    let mut at = batch.start.0;
    for piece in &batch.pieces {
        let gap = (piece.start.0.saturating_sub(at) as usize).min(rest.len());
        let (zeros, behind) = rest.split_at_mut(gap);
        zeros.fill(0);
        let length = (piece.length_bytes as usize).min(behind.len());
        (_, rest) = behind.split_at_mut(length);
        at = piece.start.0.saturating_add(piece.length_bytes);
    }
    rest.fill(0);
}

/// How many of the first pieces can be read at once.
fn run_length(pieces: &[Extent]) -> usize {
    let Some(first) = pieces.first() else {
        return 0;
    };
    let follows = |(before, after): (&Extent, &Extent)| match (before.stored, after.stored) {
        (
            Stored::Plain { file, offset },
            Stored::Plain {
                file: next_file,
                offset: next,
            },
        ) => {
            file == next_file
                && offset.0.checked_add(before.length_bytes) == Some(next.0)
                && before.start.0 + before.length_bytes == after.start.0
        }
        (Stored::Packed { unit, .. }, Stored::Packed { unit: next, .. }) => {
            let start = packed(first).map_or(0, |unit| unit.offset.0);
            unit.file == next.file
                && unit.offset.0 <= next.offset.0
                && next.offset.0.saturating_sub(start) <= SPAN_BYTES
        }
        _ => false,
    };
    1 + pieces
        .iter()
        .zip(pieces.iter().skip(1))
        .take_while(|pair| follows(*pair))
        .count()
}

fn packed(piece: &Extent) -> Option<Packed> {
    match piece.stored {
        Stored::Packed { unit, .. } => Some(unit),
        _ => None,
    }
}

fn window(image: &dyn Image, file: usize) -> Result<&Window> {
    image.files().get(file).ok_or_else(outside)
}

/// Where the guest's bytes of `piece` and of what follows it belong.
fn place<'a>(
    guest: &'a mut [u8],
    batch: &Batch,
    piece: &Extent,
    length_bytes: u64,
) -> Result<&'a mut [u8]> {
    let from = piece.start.0.saturating_sub(batch.start.0) as usize;
    guest
        .get_mut(from..from.saturating_add(length_bytes as usize))
        .ok_or_else(outside)
}

/// A map that contradicts itself is a defect of the reader that made it.
fn outside() -> Error {
    Error::new(
        ErrorKind::Internal,
        "a piece of the map lies outside its batch",
    )
}
