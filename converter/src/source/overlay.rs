//! A differencing disk over its parent: what the upper image leaves open is the lower one's.
//!
//! The upper image says `Hole` for what is the parent's and `Zero` for zeros of its own. Both maps
//! are walked once, side by side; nothing is kept of them.
use std::ops::Range;

use crate::disk::{
    Extent, Extents, GuestOffset, HostOffset, Image, Layer, Packed, Stored, Unpacked, Window,
    corrupt,
};
use crate::error::Result;

pub(super) struct Overlay {
    upper: Box<dyn Image>,
    lower: Box<dyn Image>,
    /// The upper image's, then the lower one's.
    files: Vec<Window>,
}

impl Overlay {
    /// A chain of disks as one image: `children` over `base`, the topmost first.
    pub(super) fn stack<I: Image + 'static>(
        base: impl Image + 'static,
        children: Vec<I>,
    ) -> Box<dyn Image> {
        Self::stack_over(Box::new(base), children)
    }

    /// The same over an image of any kind.
    pub(super) fn stack_over<I: Image + 'static>(
        base: Box<dyn Image>,
        children: Vec<I>,
    ) -> Box<dyn Image> {
        let mut image = base;
        for child in children.into_iter().rev() {
            image = Box::new(Self::new(Box::new(child), image));
        }
        image
    }

    pub(super) fn new(upper: Box<dyn Image>, lower: Box<dyn Image>) -> Self {
        let files = upper.files().iter().chain(lower.files()).cloned().collect();
        Self {
            upper,
            lower,
            files,
        }
    }
}

impl Image for Overlay {
    fn capacity_bytes(&self) -> u64 {
        self.upper.capacity_bytes()
    }

    fn files(&self) -> &[Window] {
        &self.files
    }

    fn extents(&self) -> Extents<'_> {
        Box::new(Merge {
            upper: self.upper.extents(),
            lower: self.lower.extents(),
            first_file: self.upper.files().len(),
            open: 0..0,
            below: None,
            failed: false,
        })
    }

    fn layers(&self) -> Vec<Layer> {
        let layers = self.upper.layers().into_iter();
        layers.chain(self.lower.layers()).collect()
    }

    fn sector_bytes(&self) -> u64 {
        self.upper.sector_bytes()
    }

    fn unpack(&self, unit: &Packed, stored: &[u8], out: &mut [u8]) -> Result<Unpacked> {
        let file = unit.file.checked_sub(self.upper.files().len());
        match file {
            Some(file) => self.lower.unpack(&Packed { file, ..*unit }, stored, out),
            None => self.upper.unpack(unit, stored, out),
        }
    }
}

struct Merge<'a> {
    upper: Extents<'a>,
    lower: Extents<'a>,
    /// What the lower image's first file is called here.
    first_file: usize,
    /// The guest's bytes that the upper image left open and that are still to be told.
    open: Range<u64>,
    /// The lower image's extent that was read last.
    below: Option<Extent>,
    failed: bool,
}

impl Merge<'_> {
    fn advance(&mut self) -> Result<Option<Extent>> {
        if self.open.is_empty() {
            match self.upper.next().transpose()? {
                Some(extent) if extent.stored == Stored::Hole => {
                    let start = extent.start.0;
                    self.open = start..start.saturating_add(extent.length_bytes);
                }
                extent => return Ok(extent),
            }
        }
        let Range { start, end } = self.open;
        let piece = match self.below_at(start)? {
            Some(below) => self.part(&below, start..end),
            // A parent may be smaller; what it does not have is zeros.
            None => Extent {
                start: GuestOffset(start),
                length_bytes: end.saturating_sub(start),
                stored: Stored::Hole,
            },
        };
        self.open.start = start.saturating_add(piece.length_bytes);
        Ok(Some(piece))
    }

    /// The lower image's extent that holds the guest's byte `at`.
    fn below_at(&mut self, at: u64) -> Result<Option<Extent>> {
        loop {
            match self.below {
                Some(below) if below.start.0.saturating_add(below.length_bytes) > at => {
                    return Ok(Some(below));
                }
                _ => self.below = self.lower.next().transpose()?,
            }
            if self.below.is_none() {
                return Ok(None);
            }
        }
    }

    /// What of `below` lies in `range`, which begins in it.
    fn part(&self, below: &Extent, range: Range<u64>) -> Extent {
        let skipped = range.start.saturating_sub(below.start.0);
        let end = below.start.0.saturating_add(below.length_bytes);
        let file = |file: usize| file.saturating_add(self.first_file);
        let stored = match below.stored {
            Stored::Plain {
                file: lower,
                offset,
            } => Stored::Plain {
                file: file(lower),
                offset: HostOffset(offset.0.saturating_add(skipped)),
            },
            Stored::Packed { unit, skip_bytes } => Stored::Packed {
                unit: Packed {
                    file: file(unit.file),
                    ..unit
                },
                skip_bytes: skip_bytes.saturating_add(skipped),
            },
            zeros @ (Stored::Hole | Stored::Zero) => zeros,
        };
        Extent {
            start: GuestOffset(range.start),
            length_bytes: range.end.min(end).saturating_sub(range.start),
            stored,
        }
    }
}

impl Iterator for Merge<'_> {
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

/// What an image without compression answers to `Image::unpack`.
pub(super) fn nothing_packed(window: &Window, unit: &Packed) -> Result<Unpacked> {
    let what = format!("a packed unit at offset {} of an image", unit.offset.0);
    Err(corrupt(window.path(), what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    struct Listed(Vec<(u64, Stored)>, [Window; 1]);

    impl Image for Listed {
        fn capacity_bytes(&self) -> u64 {
            self.0.iter().map(|(length_bytes, _)| length_bytes).sum()
        }

        fn files(&self) -> &[Window] {
            &self.1
        }

        fn extents(&self) -> Extents<'_> {
            let mut start = 0;
            Box::new(self.0.iter().map(move |(length_bytes, stored)| {
                let extent = Extent {
                    start: GuestOffset(start),
                    length_bytes: *length_bytes,
                    stored: *stored,
                };
                start += length_bytes;
                Ok(extent)
            }))
        }

        fn unpack(&self, unit: &Packed, _: &[u8], _: &mut [u8]) -> Result<Unpacked> {
            nothing_packed(&self.1[0], unit)
        }
    }

    fn listed(extents: Vec<(u64, Stored)>) -> Box<dyn Image> {
        let window = Window::whole(tempfile::tempfile().unwrap(), Path::new("x")).unwrap();
        Box::new(Listed(extents, [window]))
    }

    fn plain(file: usize, offset: u64) -> Stored {
        Stored::Plain {
            file,
            offset: HostOffset(offset),
        }
    }

    #[test]
    fn the_parent_shows_where_the_child_is_open() {
        let child = vec![
            (100, Stored::Hole),
            (50, plain(0, 1000)),
            (50, Stored::Zero),
            (300, Stored::Hole),
        ];
        let parent = vec![
            (120, plain(0, 0)),
            (200, plain(0, 5000)),
            (80, Stored::Zero),
        ];
        let overlay = Overlay::new(listed(child), listed(parent));
        let seen: Vec<_> = overlay
            .extents()
            .map(|extent| extent.unwrap())
            .map(|extent| (extent.start.0, extent.length_bytes, extent.stored))
            .collect();
        assert_eq!(
            seen,
            [
                (0, 100, plain(1, 0)),
                (100, 50, plain(0, 1000)),
                (150, 50, Stored::Zero),
                (200, 120, plain(1, 5080)),
                (320, 80, Stored::Zero),
                (400, 100, Stored::Hole),
            ]
        );
        assert_eq!((overlay.capacity_bytes(), overlay.files().len()), (500, 2));
    }
}
