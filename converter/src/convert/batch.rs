//! Cuts a disk's map into batches: aligned guest ranges with something to read in them.
use crate::disk::{BLOCK_BYTES, Extent, Extents, GuestOffset, HostOffset, Stored};
use crate::error::Result;
use crate::qcow2::PACKED_SPAN_BYTES;

/// The unit of work of one thread, and with the number of threads the bound of memory.
pub(super) const BATCH_BYTES: u64 = 16 * BLOCK_BYTES;
/// For a compressed target: what is left of a batch is still worth writing past the page cache.
pub(super) const PACKED_BATCH_BYTES: u64 = PACKED_SPAN_BYTES;
/// Of what is shared unread: fewer calls that each share more.
pub(super) const SHARED_BATCH_BYTES: u64 = 16 * BATCH_BYTES;

/// What is stored within `span_bytes` from `start`, in guest order. Gaps are zeros.
#[derive(Debug)]
pub(super) struct Batch {
    /// Counts the batches, without gaps: the order in which blocks are placed.
    pub index: u64,
    /// A multiple of `span_bytes`.
    pub start: GuestOffset,
    pub span_bytes: u64,
    pub pieces: Vec<Extent>,
}

impl Batch {
    /// Everything of the guest before it is in this batch or in an earlier one.
    pub fn end(&self) -> GuestOffset {
        GuestOffset(self.start.0.saturating_add(self.span_bytes))
    }

    /// Guest bytes that are stored.
    pub fn stored_bytes(&self) -> u64 {
        let lengths = self.pieces.iter().map(|piece| piece.length_bytes);
        lengths.fold(0, u64::saturating_add)
    }
}

pub(super) struct Batches<'a> {
    extents: Extents<'a>,
    /// What lies before was done earlier: the end of a batch, or 0.
    from: GuestOffset,
    span_bytes: u64,
    /// What the last batch left of an extent that reaches beyond it.
    rest: Option<Extent>,
    next_index: u64,
    /// Bytes that the map says are zeros, so far.
    pub hole_bytes: u64,
}

impl<'a> Batches<'a> {
    /// `span_bytes`: of each batch, a multiple of `BATCH_BYTES`.
    pub fn new(extents: Extents<'a>, from: GuestOffset, span_bytes: u64) -> Self {
        Self {
            extents,
            from,
            span_bytes,
            rest: None,
            next_index: 0,
            hole_bytes: 0,
        }
    }

    fn next_extent(&mut self) -> Result<Option<Extent>> {
        match self.rest.take() {
            Some(rest) => Ok(Some(rest)),
            None => self.extents.next().transpose(),
        }
    }

    /// The part of `extent` that is still to be done.
    fn not_done(&self, extent: Extent) -> Option<Extent> {
        if extent.start >= self.from {
            return Some(extent);
        }
        split(extent, self.from.0).1
    }

    pub fn next(&mut self) -> Result<Option<Batch>> {
        let mut batch: Option<Batch> = None;
        while let Some(extent) = self.next_extent()? {
            if matches!(extent.stored, Stored::Hole | Stored::Zero) {
                self.hole_bytes = self.hole_bytes.saturating_add(extent.length_bytes);
                continue;
            }
            let Some(extent) = self.not_done(extent) else {
                continue;
            };
            let start = extent.start.0 - extent.start.0 % self.span_bytes;
            let open = batch.get_or_insert_with(|| Batch {
                index: self.next_index,
                start: GuestOffset(start),
                span_bytes: self.span_bytes,
                pieces: Vec::new(),
            });
            if open.start.0 != start {
                self.rest = Some(extent);
                break;
            }
            let (piece, rest) = split(extent, start.saturating_add(self.span_bytes));
            open.pieces.push(piece);
            self.rest = rest;
            if self.rest.is_some() {
                break;
            }
        }
        self.next_index += u64::from(batch.is_some());
        Ok(batch)
    }
}

/// The part of `extent` before the guest offset `at`, and the part from there on.
fn split(extent: Extent, at: u64) -> (Extent, Option<Extent>) {
    let head_bytes = at.saturating_sub(extent.start.0).min(extent.length_bytes);
    let tail_bytes = extent.length_bytes - head_bytes;
    let head = Extent {
        length_bytes: head_bytes,
        ..extent
    };
    if tail_bytes == 0 {
        return (head, None);
    }
    let stored = match extent.stored {
        Stored::Plain { file, offset } => Stored::Plain {
            file,
            offset: HostOffset(offset.0.saturating_add(head_bytes)),
        },
        Stored::Packed { unit, skip_bytes } => Stored::Packed {
            unit,
            skip_bytes: skip_bytes.saturating_add(head_bytes),
        },
        zeros @ (Stored::Hole | Stored::Zero) => zeros,
    };
    let tail = Extent {
        start: GuestOffset(extent.start.0.saturating_add(head_bytes)),
        length_bytes: tail_bytes,
        stored,
    };
    (head, Some(tail))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(start: u64, length_bytes: u64, stored: Stored) -> Result<Extent> {
        Ok(Extent {
            start: GuestOffset(start),
            length_bytes,
            stored,
        })
    }

    fn plain(offset: u64) -> Stored {
        Stored::Plain {
            file: 0,
            offset: HostOffset(offset),
        }
    }

    #[test]
    fn cuts_at_batch_borders_and_skips_zeros() {
        let extents = vec![
            extent(0, 512, Stored::Hole),
            extent(512, 2 * BATCH_BYTES, plain(7)),
            extent(2 * BATCH_BYTES + 512, 1 << 40, Stored::Zero),
            extent((1 << 40) + 2 * BATCH_BYTES + 512, 512, plain(0)),
        ];
        let mut batches = Batches::new(Box::new(extents.into_iter()), GuestOffset(0), BATCH_BYTES);
        let mut seen = Vec::new();
        while let Some(batch) = batches.next().unwrap() {
            assert_eq!(batch.index as usize, seen.len());
            for piece in batch.pieces {
                assert!(piece.start.0 >= batch.start.0);
                assert!(piece.start.0 + piece.length_bytes <= batch.start.0 + BATCH_BYTES);
                seen.push((piece.start.0, piece.length_bytes, piece.stored));
            }
        }
        let far = (1 << 40) + 2 * BATCH_BYTES + 512;
        assert_eq!(
            seen,
            [
                (512, BATCH_BYTES - 512, plain(7)),
                (BATCH_BYTES, BATCH_BYTES, plain(7 + BATCH_BYTES - 512)),
                (2 * BATCH_BYTES, 512, plain(7 + 2 * BATCH_BYTES - 512)),
                (far, 512, plain(0)),
            ]
        );
        assert_eq!(batches.hole_bytes, 512 + (1 << 40));
    }

    #[test]
    fn goes_on_at_the_end_of_any_batch() {
        let extents = || {
            let extents = vec![
                extent(0, 512, Stored::Hole),
                extent(512, 3 * BATCH_BYTES, plain(7)),
                extent(3 * BATCH_BYTES + 512, BATCH_BYTES, Stored::Zero),
                extent(4 * BATCH_BYTES + 512, 512, plain(0)),
            ];
            Box::new(extents.into_iter())
        };
        let all = |from| {
            let mut batches = Batches::new(extents(), from, BATCH_BYTES);
            let mut seen = Vec::new();
            while let Some(batch) = batches.next().unwrap() {
                assert_eq!(batch.index as usize, seen.len());
                seen.push((batch.start, batch.end(), batch.pieces));
            }
            (seen, batches.hole_bytes)
        };
        let (whole, hole_bytes) = all(GuestOffset(0));
        assert_eq!(whole.len(), 5);
        for (index, (_, end, _)) in whole.iter().enumerate() {
            let (rest, holes) = all(*end);
            assert_eq!(rest, whole[index + 1..]);
            assert_eq!(holes, hole_bytes);
        }
    }
}
