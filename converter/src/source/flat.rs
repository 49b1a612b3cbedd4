//! Walks bytes that are stored as they are: what is data and what a hole, as the file system knows.
use std::ops::Range;

use crate::disk::{Extent, GuestOffset, HostOffset, Stored, Window};
use crate::error::Result;

/// The extents of `range` (in bytes) of a window, which is file number `file`, from `start` on.
pub(super) struct FlatExtents<'a> {
    window: &'a Window,
    file: usize,
    start: GuestOffset,
    range: Range<u64>,
    /// The data stretch that was found ahead of the hole before it.
    found: Option<Range<u64>>,
}

impl<'a> FlatExtents<'a> {
    pub(super) fn new(
        window: &'a Window,
        file: usize,
        range: Range<u64>,
        start: GuestOffset,
    ) -> Self {
        Self {
            window,
            file,
            start,
            range,
            found: None,
        }
    }

    /// The next `end - range.start` bytes as one extent.
    fn take(&mut self, end: u64, stored: Stored) -> Extent {
        let length_bytes = end.saturating_sub(self.range.start);
        let extent = Extent {
            start: self.start,
            length_bytes,
            stored,
        };
        self.range.start = end;
        self.start = GuestOffset(self.start.0.saturating_add(length_bytes));
        extent
    }

    fn advance(&mut self) -> Result<Extent> {
        let data = match self.found.take() {
            Some(data) => data,
            None => match self.window.next_data(self.range.start, self.range.end)? {
                Some((start, end)) => start..end,
                None => return Ok(self.take(self.range.end, Stored::Hole)),
            },
        };
        if data.start > self.range.start {
            let extent = self.take(data.start, Stored::Hole);
            self.found = Some(data);
            return Ok(extent);
        }
        let stored = Stored::Plain {
            file: self.file,
            offset: HostOffset(self.range.start),
        };
        Ok(self.take(data.end, stored))
    }
}

impl Iterator for FlatExtents<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.range.is_empty() {
            return None;
        }
        let extent = self.advance();
        if extent.is_err() {
            self.range.start = self.range.end;
        }
        Some(extent)
    }
}
