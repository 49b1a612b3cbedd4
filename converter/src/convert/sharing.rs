//! What goes over by reflink: plain data whose place in source and target is at a block of the
//! file system that both share.
//!
//! Data that is shared is not read, unless a content digest of it is asked for: then what the file
//! system calls data becomes clusters, and zeros among it stay what they are.
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::statvfs::fstatvfs;

use super::batch::{BATCH_BYTES, Batch, SHARED_BATCH_BYTES};
use crate::disk::{BLOCK_BYTES, Extent, HostOffset, Image, Stored, is_reflink_known};
use crate::error::{Error, Result};

pub(super) struct Sharing {
    align_bytes: u64,
    /// Everything is read all the same.
    reads: bool,
    shared_bytes: AtomicU64,
}

impl Sharing {
    /// `None`: the target's file system does not share with the source's, or the less part of what
    /// is stored could be: a digest is worth more than that.
    pub fn find(
        image: &dyn Image,
        target: &File,
        path: &Path,
        reads: bool,
    ) -> Result<Option<Self>> {
        if !is_reflink_known(target) {
            return Ok(None);
        }
        let found = fstatvfs(target).map_err(|errno| Error::io("stat", path, errno.into()))?;
        let align_bytes = found.block_size();
        if align_bytes == 0 || !BLOCK_BYTES.is_multiple_of(align_bytes) {
            return Ok(None);
        }
        let sharing = Self {
            align_bytes,
            reads,
            shared_bytes: AtomicU64::new(0),
        };
        let (mut stored_bytes, mut fitting_bytes) = (0u64, 0u64);
        for extent in image.extents() {
            let extent = extent?;
            if matches!(extent.stored, Stored::Hole | Stored::Zero) {
                continue;
            }
            stored_bytes = stored_bytes.saturating_add(extent.length_bytes);
            if sharing.fits(image, &extent) {
                if fitting_bytes == 0 && !sharing.try_out(image, &extent, target, path)? {
                    return Ok(None);
                }
                fitting_bytes = fitting_bytes.saturating_add(extent.length_bytes);
            }
        }
        Ok((fitting_bytes > stored_bytes / 2).then_some(sharing))
    }

    /// Shares one block behind the target's end, and takes it away again.
    fn try_out(
        &self,
        image: &dyn Image,
        extent: &Extent,
        target: &File,
        path: &Path,
    ) -> Result<bool> {
        let Stored::Plain { file, offset } = extent.stored else {
            return Ok(false);
        };
        let Some(window) = image.files().get(file) else {
            return Ok(false);
        };
        let stat = |error| Error::io("stat", path, error);
        let end_bytes = target.metadata().map_err(stat)?.len();
        let at = end_bytes.next_multiple_of(self.align_bytes);
        let is_shared = window.share(offset.0, self.align_bytes, target, at)?;
        target
            .set_len(end_bytes)
            .map_err(|error| Error::io("set the length of", path, error))?;
        Ok(is_shared)
    }

    fn fits(&self, image: &dyn Image, piece: &Extent) -> bool {
        let Stored::Plain { file, offset } = piece.stored else {
            return false;
        };
        let place = image.files().get(file).map(|window| window.place(offset.0));
        let is_aligned = |bytes: u64| bytes.is_multiple_of(self.align_bytes);
        place.is_some_and(is_aligned) && is_aligned(piece.start.0) && is_aligned(piece.length_bytes)
    }

    /// Whether `batch` can go over as it is.
    pub fn takes(&self, image: &dyn Image, batch: &Batch) -> bool {
        batch.pieces.iter().all(|piece| self.fits(image, piece))
    }

    /// Whether what is shared is left unread: then there is no digest of the whole.
    pub fn leaves_unread(&self) -> bool {
        !self.reads
    }

    /// Of the batches: larger if most of them go over unread.
    pub fn span_bytes(&self) -> u64 {
        if self.reads {
            BATCH_BYTES
        } else {
            SHARED_BATCH_BYTES
        }
    }

    pub fn shared_bytes(&self) -> u64 {
        self.shared_bytes.load(Ordering::Relaxed)
    }

    /// Shares what `batch` stores of the guest's `range` with the target, where it begins at
    /// `place`. False: some of it was refused.
    pub fn share(
        &self,
        image: &dyn Image,
        batch: &Batch,
        range: Range<u64>,
        target: &File,
        place: HostOffset,
    ) -> Result<bool> {
        let mut pieces = batch.pieces.iter().filter_map(|piece| part(piece, &range));
        let mut next = pieces.next();
        while let Some((file, start, offset_bytes, mut length_bytes)) = next {
            next = pieces.next();
            while let Some((_, _, _, more_bytes)) = next.filter(|next| {
                next.0 == file
                    && next.1 == start + length_bytes
                    && next.2 == offset_bytes + length_bytes
            }) {
                length_bytes += more_bytes;
                next = pieces.next();
            }
            let Some(window) = image.files().get(file) else {
                return Ok(false);
            };
            let at_bytes = place.0 + (start - range.start);
            if !window.share(offset_bytes, length_bytes, target, at_bytes)? {
                return Ok(false);
            }
            self.shared_bytes.fetch_add(length_bytes, Ordering::Relaxed);
        }
        Ok(true)
    }
}

/// What of a plain piece lies in the guest's `range`: file, guest offset, offset, length.
fn part(piece: &Extent, range: &Range<u64>) -> Option<(usize, u64, u64, u64)> {
    let Stored::Plain { file, offset } = piece.stored else {
        return None;
    };
    let start = piece.start.0.max(range.start);
    let end = (piece.start.0 + piece.length_bytes).min(range.end);
    (start < end).then(|| (file, start, offset.0 + (start - piece.start.0), end - start))
}
