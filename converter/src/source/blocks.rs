//! The walk over a disk of equal blocks that an allocation table (BAT) places: VHD and VHDX.
//!
//! The table is asked block by block, in order; like neighbours become one extent. Every place it
//! gives is held against the file's end here.
use std::ops::Range;

use super::flat::FlatExtents;
use crate::disk::{Extent, GuestOffset, HostOffset, Stored, Window, corrupt};
use crate::error::Result;

/// What the table says of one block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Block {
    /// Nothing is stored: the parent's, or zeros.
    Absent,
    Zero,
    /// All of it, from this offset of the file on.
    Present(u64),
    /// The sectors whose bit is set; the others are the parent's. The first sector's is the lowest
    /// bit of the first byte.
    Partial {
        offset_bytes: u64,
        bitmap: Vec<u8>,
    },
}

pub(super) trait Table {
    /// Asked in ascending order, each block once.
    fn block(&mut self, index: u64) -> Result<Block>;
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    pub capacity_bytes: u64,
    pub block_bytes: u64,
    /// What one bit of a bitmap stands for.
    pub sector_bytes: u64,
    /// No block may reach beyond this offset; what lies past the file's end reads as zeros.
    pub end_bytes: u64,
    /// Absent blocks are the parent's: then zeros of its own are never said to be holes.
    pub differencing: bool,
}

pub(super) struct BlockExtents<'a, T> {
    table: T,
    window: &'a Window,
    geometry: Geometry,
    next: u64,
    /// A block that was read and does not go on from the ones before it.
    ahead: Option<Block>,
    current: Option<Piece<'a>>,
    /// A stretch of the file that is known to have no hole.
    data: Range<u64>,
    present: u64,
    failed: bool,
}

enum Piece<'a> {
    One(Option<Extent>),
    Flat(FlatExtents<'a>),
    Sectors(Sectors),
}

impl<'a, T: Table> BlockExtents<'a, T> {
    pub(super) fn new(table: T, window: &'a Window, geometry: Geometry) -> Self {
        Self {
            table,
            window,
            geometry,
            next: 0,
            ahead: None,
            current: None,
            data: 0..0,
            present: 0,
            failed: false,
        }
    }

    /// The guest's bytes of the blocks from `first` up to `end`.
    fn span(&self, first: u64, end: u64) -> (u64, u64) {
        let Geometry {
            block_bytes,
            capacity_bytes,
            ..
        } = self.geometry;
        let start = first.saturating_mul(block_bytes);
        let end = end.saturating_mul(block_bytes).min(capacity_bytes);
        (start, end.saturating_sub(start))
    }

    /// The next block without passing it, its place checked; `None` behind the last.
    fn peek(&mut self) -> Result<Option<&Block>> {
        if self.ahead.is_none() {
            let index = self.next;
            let (start, length_bytes) = self.span(index, index.saturating_add(1));
            if start >= self.geometry.capacity_bytes {
                return Ok(None);
            }
            let block = self.table.block(index)?;
            if let Block::Present(offset_bytes) | Block::Partial { offset_bytes, .. } = block {
                self.check(index, offset_bytes, length_bytes)?;
            }
            self.ahead = Some(block);
        }
        Ok(self.ahead.as_ref())
    }

    fn check(&mut self, index: u64, offset_bytes: u64, length_bytes: u64) -> Result<()> {
        let Geometry {
            end_bytes,
            block_bytes,
            ..
        } = self.geometry;
        let end = offset_bytes.checked_add(length_bytes);
        if end.is_none_or(|end| end > end_bytes) {
            let what = format!(
                "truncated: block {index} at offset {offset_bytes} reaches past the end at \
                 {end_bytes}"
            );
            return Err(corrupt(self.window.path(), what));
        }
        // What a log is yet to append to the file is not there to be read again and again.
        let file_bytes = self.window.length_bytes();
        self.present += u64::from(offset_bytes < file_bytes);
        if self.present > file_bytes.div_ceil(block_bytes) {
            let what = format!(
                "the BAT places blocks on top of each other: by block {index} they are more than \
                 the file can hold"
            );
            return Err(corrupt(self.window.path(), what));
        }
        Ok(())
    }

    /// Takes the next block and those that go on from it.
    fn take(&mut self) -> Result<Option<Piece<'a>>> {
        if self.peek()?.is_none() {
            return Ok(None);
        }
        let Some(block) = self.ahead.take() else {
            return Ok(None);
        };
        let first = self.next;
        self.next += 1;
        if let Block::Partial {
            offset_bytes,
            bitmap,
        } = block
        {
            let (start, length_bytes) = self.span(first, self.next);
            return Ok(Some(Piece::Sectors(Sectors {
                bitmap,
                sector_bytes: self.geometry.sector_bytes,
                start,
                offset_bytes,
                length_bytes,
                done_bytes: 0,
            })));
        }
        while self.goes_on(&block, first)? {
            self.ahead = None;
            self.next += 1;
        }
        let (start, length_bytes) = self.span(first, self.next);
        let start = GuestOffset(start);
        let stored = match block {
            Block::Present(offset_bytes) => {
                let range = offset_bytes..offset_bytes.saturating_add(length_bytes);
                if !self.is_data(&range)? {
                    let flat = FlatExtents::new(self.window, 0, range, start);
                    return Ok(Some(Piece::Flat(flat)));
                }
                Stored::Plain {
                    file: 0,
                    offset: HostOffset(offset_bytes),
                }
            }
            Block::Absent => Stored::Hole,
            _ => Stored::Zero,
        };
        Ok(Some(Piece::One(Some(Extent {
            start,
            length_bytes,
            stored,
        }))))
    }

    /// Whether all of `range` is data to the file system. It is asked once for a whole stretch of
    /// the file: blocks with bitmaps between them are no neighbours, and so would each ask again.
    fn is_data(&mut self, range: &Range<u64>) -> Result<bool> {
        let holds = |data: &Range<u64>| data.start <= range.start && range.end <= data.end;
        if !holds(&self.data) {
            let end = self.window.length_bytes();
            let found = self.window.next_data(range.start, end)?;
            self.data = found.map_or(0..0, |(start, end)| start..end);
        }
        Ok(holds(&self.data))
    }

    /// Whether the next block continues the run of `block`, which is number `first`.
    fn goes_on(&mut self, block: &Block, first: u64) -> Result<bool> {
        let before = self.next.saturating_sub(first);
        let run_bytes = before.saturating_mul(self.geometry.block_bytes);
        Ok(match (block, self.peek()?) {
            (Block::Absent, Some(Block::Absent)) | (Block::Zero, Some(Block::Zero)) => true,
            (Block::Present(offset), Some(Block::Present(next))) => {
                offset.checked_add(run_bytes) == Some(*next)
            }
            _ => false,
        })
    }

    fn advance(&mut self) -> Result<Option<Extent>> {
        loop {
            let extent = match &mut self.current {
                Some(Piece::One(extent)) => extent.take(),
                Some(Piece::Flat(flat)) => {
                    let extent = flat.next().transpose()?;
                    extent.map(|extent| self.geometry.of_its_own(extent))
                }
                Some(Piece::Sectors(sectors)) => sectors.next(),
                None => None,
            };
            if extent.is_some() {
                return Ok(extent);
            }
            self.current = self.take()?;
            if self.current.is_none() {
                return Ok(None);
            }
        }
    }
}

impl Geometry {
    /// A hole of the file system in a block that is present: zeros, and not the parent's.
    fn of_its_own(&self, extent: Extent) -> Extent {
        match extent.stored {
            Stored::Hole if self.differencing => Extent {
                stored: Stored::Zero,
                ..extent
            },
            _ => extent,
        }
    }
}

impl<T: Table> Iterator for BlockExtents<'_, T> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let extent = self.advance();
        self.failed = extent.is_err();
        extent.transpose()
    }
}

/// The runs of one partly present block.
struct Sectors {
    bitmap: Vec<u8>,
    sector_bytes: u64,
    /// The guest's.
    start: u64,
    /// The file's.
    offset_bytes: u64,
    length_bytes: u64,
    done_bytes: u64,
}

impl Sectors {
    fn is_set(&self, at_bytes: u64) -> bool {
        let sector = at_bytes / self.sector_bytes;
        let byte = self.bitmap.get((sector / 8) as usize);
        byte.is_some_and(|byte| byte >> (sector % 8) & 1 == 1)
    }

    fn next(&mut self) -> Option<Extent> {
        let from = self.done_bytes;
        if from >= self.length_bytes {
            return None;
        }
        let is_set = self.is_set(from);
        let mut end = from;
        while end < self.length_bytes && self.is_set(end) == is_set {
            end = end.saturating_add(self.sector_bytes);
        }
        let end = end.min(self.length_bytes);
        self.done_bytes = end;
        Some(Extent {
            start: GuestOffset(self.start.saturating_add(from)),
            length_bytes: end - from,
            stored: if is_set {
                Stored::Plain {
                    file: 0,
                    offset: HostOffset(self.offset_bytes.saturating_add(from)),
                }
            } else {
                Stored::Hole
            },
        })
    }
}
