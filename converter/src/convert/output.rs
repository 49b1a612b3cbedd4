//! Writes the target's bytes: past the page cache where that is known to be faster.
//!
//! What is written is not read again here, and a cache that it has to pass costs more than the
//! disk. Room is asked for ahead, so that writing never waits for the file to grow.
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statfs::{EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, fstatfs};

use crate::disk::{Aligned, PAGE_BYTES};
use crate::error::{Error, Result};

/// Room is asked for as much again as there is, within these bounds.
const LEAST_ROOM_BYTES: u64 = 1 << 20;
const MOST_ROOM_BYTES: u64 = 128 << 20;
/// Less than this goes through the cache, which gathers it.
const LEAST_DIRECT_BYTES: usize = 64 << 10;
/// What is written at once from memory that has to be aligned first.
const PART_BYTES: usize = 1 << 20;

pub(super) struct Output<'a> {
    pub file: &'a File,
    pub path: &'a Path,
    /// The same file, opened with O_DIRECT.
    direct: Option<File>,
    /// Up to where there is room; `u64::MAX`: none is asked for.
    room_bytes: AtomicU64,
}

impl<'a> Output<'a> {
    /// `is_dense`: all of the file will be written, from front to back.
    pub fn new(file: &'a File, path: &'a Path, is_dense: bool) -> Self {
        let direct = open_direct(file);
        let asks = is_dense && direct.is_some();
        Self {
            file,
            path,
            direct,
            room_bytes: AtomicU64::new(if asks { 0 } else { u64::MAX }),
        }
    }

    /// Whether a thread that writes waits for the disk.
    pub fn waits(&self) -> bool {
        self.direct.is_some()
    }

    /// Writes `bytes` at `offset_bytes`; `spare` is memory for those that are not aligned.
    pub fn write(
        &self,
        bytes: &[u8],
        offset_bytes: u64,
        spare: &mut Option<Aligned>,
    ) -> Result<()> {
        self.make_room(offset_bytes.saturating_add(bytes.len() as u64));
        let Some(direct) = &self.direct else {
            return self.write_cached(bytes, offset_bytes);
        };
        let head = offset_bytes.next_multiple_of(PAGE_BYTES) - offset_bytes;
        let whole = (bytes.len() as u64).saturating_sub(head) / PAGE_BYTES * PAGE_BYTES;
        let split = bytes.split_at_checked(head as usize);
        let split =
            split.and_then(|(head, rest)| Some((head, rest.split_at_checked(whole as usize)?)));
        let Some((first, (pages, last))) = split.filter(|_| whole as usize >= LEAST_DIRECT_BYTES)
        else {
            return self.write_cached(bytes, offset_bytes);
        };
        self.write_cached(first, offset_bytes)?;
        let offset_bytes = offset_bytes + head;
        self.write_pages(direct, pages, offset_bytes, spare)?;
        self.write_cached(last, offset_bytes + whole)
    }

    /// No page is written both ways: those at the ends, which others write to as well, are cached.
    fn write_pages(
        &self,
        direct: &File,
        pages: &[u8],
        offset_bytes: u64,
        spare: &mut Option<Aligned>,
    ) -> Result<()> {
        if pages.as_ptr().addr().is_multiple_of(PAGE_BYTES as usize) {
            return self.write_direct(direct, pages, offset_bytes);
        }
        let spare = spare.get_or_insert_with(|| Aligned::zeros(PART_BYTES));
        for (part, at) in pages
            .chunks(PART_BYTES)
            .zip((offset_bytes..).step_by(PART_BYTES))
        {
            let Some(aligned) = spare.get_mut(..part.len()) else {
                return self.write_cached(part, at);
            };
            aligned.copy_from_slice(part);
            self.write_direct(direct, aligned, at)?;
        }
        Ok(())
    }

    fn write_direct(&self, direct: &File, bytes: &[u8], offset_bytes: u64) -> Result<()> {
        match direct.write_all_at(bytes, offset_bytes) {
            // A disk with larger blocks than there are: it takes what comes through the cache.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
                self.write_cached(bytes, offset_bytes)
            }
            written => written.map_err(|error| Error::io("write", self.path, error)),
        }
    }

    fn write_cached(&self, bytes: &[u8], offset_bytes: u64) -> Result<()> {
        self.file
            .write_all_at(bytes, offset_bytes)
            .map_err(|error| Error::io("write", self.path, error))
    }

    /// Asks for room up to `end_bytes` and beyond; what is not needed is cut off at the end.
    fn make_room(&self, end_bytes: u64) {
        let room_bytes = self.room_bytes.load(Ordering::Relaxed);
        if end_bytes <= room_bytes {
            return;
        }
        let more_bytes = end_bytes.clamp(LEAST_ROOM_BYTES, MOST_ROOM_BYTES);
        let wanted = end_bytes.saturating_add(more_bytes);
        let (claimed, relaxed) = (Ordering::AcqRel, Ordering::Relaxed);
        let room = &self.room_bytes;
        // Whoever comes second writes on: the file grows under it as it would without room.
        if room
            .compare_exchange(room_bytes, wanted, claimed, relaxed)
            .is_err()
        {
            return;
        }
        let flags = FallocateFlags::empty();
        let length_bytes = wanted - room_bytes;
        let made = i64::try_from(room_bytes)
            .ok()
            .zip(i64::try_from(length_bytes).ok())
            .is_some_and(|(from, length)| fallocate(self.file, flags, from, length).is_ok());
        if !made {
            // No space for what may not be needed, or no such thing: writing will tell.
            room.store(u64::MAX, Ordering::Relaxed);
        }
    }
}

/// On the file systems where it was measured; elsewhere, or if it is refused, `None`.
fn open_direct(file: &File) -> Option<File> {
    let kind = fstatfs(file).ok()?.filesystem_type();
    if kind != EXT4_SUPER_MAGIC && kind != XFS_SUPER_MAGIC {
        return None;
    }
    OpenOptions::new()
        .write(true)
        .custom_flags(nix::libc::O_DIRECT | nix::libc::O_CLOEXEC)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .ok()
}
