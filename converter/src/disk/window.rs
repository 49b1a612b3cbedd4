//! A window on a file: the whole of it, or one member of an archive, read by position only.
//!
//! Never reads outside the window, never moves with a file that grows or shrinks (but for one that
//! is declared to grow): bytes that are no longer there are `corrupt`.
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::{corrupt, reflink};
use crate::error::{Error, Result};

#[derive(Debug, Clone)]
pub struct Window {
    file: Arc<File>,
    /// What errors call it; for a member, the archive's path with the member's name after it.
    path: PathBuf,
    base_bytes: u64,
    length_bytes: u64,
    allocated_bytes: u64,
    /// The stamps of what a file without a name was made of.
    origin: Option<Arc<str>>,
}

impl Window {
    /// The whole of a regular file.
    pub fn whole(file: File, path: &Path) -> Result<Self> {
        let metadata = file
            .metadata()
            .map_err(|error| Error::io("stat", path, error))?;
        let length_bytes = metadata.len();
        Ok(Self {
            file: Arc::new(file),
            path: path.to_path_buf(),
            base_bytes: 0,
            length_bytes,
            allocated_bytes: metadata.blocks().saturating_mul(512).min(length_bytes),
            origin: None,
        })
    }

    /// A regular file that others append to: its bytes are read as far as they are known to be
    /// there, and its stamp is that of the file, not of what it holds.
    pub fn growing(file: Arc<File>, path: &Path) -> Result<Self> {
        let stat = file
            .metadata()
            .map_err(|error| Error::io("stat", path, error))?;
        let origin = format!("growing {}:{}", stat.dev(), stat.ino());
        Ok(Self {
            file,
            path: path.to_path_buf(),
            base_bytes: 0,
            length_bytes: i64::MAX as u64,
            allocated_bytes: 0,
            origin: Some(origin.into()),
        })
    }

    /// A part of this window, called `name` in errors; `None` if it is not all inside.
    pub fn part(&self, name: &str, offset_bytes: u64, length_bytes: u64) -> Option<Self> {
        let end = offset_bytes.checked_add(length_bytes)?;
        (end <= self.length_bytes).then(|| Self {
            file: Arc::clone(&self.file),
            path: PathBuf::from(format!("{}:{name}", self.path.display())),
            base_bytes: self.base_bytes.saturating_add(offset_bytes),
            length_bytes,
            allocated_bytes: length_bytes.min(self.allocated_bytes),
            origin: self.origin.clone(),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The window on a file that was made of `files` alone: it is the same as long as they are.
    pub fn made_of(mut self, files: &[Self]) -> Result<Self> {
        let stamps: Vec<String> = files.iter().map(Self::stamp).collect::<Result<_>>()?;
        self.origin = Some(stamps.join(" ").into());
        Ok(self)
    }

    /// What changes when somebody changes the file, or puts another in its place: one line.
    pub fn stamp(&self) -> Result<String> {
        if let Some(origin) = &self.origin {
            let (path, base_bytes) = (self.path.display(), self.base_bytes);
            return Ok(format!(
                "{path} {base_bytes}+{} of {origin}",
                self.length_bytes
            ));
        }
        let found = self.file.metadata();
        let stat = found.map_err(|error| Error::io("stat", &self.path, error))?;
        Ok(format!(
            "{} {}+{} {}:{} {} {}.{:09} {}.{:09}",
            self.path.display(),
            self.base_bytes,
            self.length_bytes,
            stat.dev(),
            stat.ino(),
            stat.size(),
            stat.mtime(),
            stat.mtime_nsec(),
            stat.ctime(),
            stat.ctime_nsec(),
        ))
    }

    pub fn length_bytes(&self) -> u64 {
        self.length_bytes
    }

    /// What the file system holds for it: the measure of work.
    pub fn allocated_bytes(&self) -> u64 {
        self.allocated_bytes
    }

    /// Fills `buffer` from `offset_bytes`; an end that comes too early is `corrupt`.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset_bytes: u64) -> Result<()> {
        let inside = offset_bytes
            .checked_add(buffer.len() as u64)
            .is_some_and(|end| end <= self.length_bytes);
        if !inside {
            return Err(self.ends_early(offset_bytes, buffer.len()));
        }
        self.file
            .read_exact_at(buffer, self.base_bytes.saturating_add(offset_bytes))
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof => self.ends_early(offset_bytes, buffer.len()),
                _ => Error::io("read", &self.path, error),
            })
    }

    /// The offset in the file of an offset in this window.
    pub fn place(&self, offset_bytes: u64) -> u64 {
        self.base_bytes.saturating_add(offset_bytes)
    }

    /// Shares a range with `target` at `at_bytes`, by reflink. False: it cannot be shared.
    pub fn share(
        &self,
        offset_bytes: u64,
        length_bytes: u64,
        target: &File,
        at_bytes: u64,
    ) -> Result<bool> {
        let end = offset_bytes.checked_add(length_bytes);
        if end.is_none_or(|end| end > self.length_bytes) {
            return Ok(false);
        }
        let place = self.place(offset_bytes);
        reflink::share(&self.file, place, length_bytes, target, at_bytes)
            .map_err(|error| Error::io("share blocks of", &self.path, error))
    }

    /// Reads `length_bytes`, which the caller has bounded, into fresh memory.
    pub fn read_vec(&self, offset_bytes: u64, length_bytes: usize) -> Result<Vec<u8>> {
        let end = offset_bytes.checked_add(length_bytes as u64);
        if end.is_none_or(|end| end > self.length_bytes) {
            return Err(self.ends_early(offset_bytes, length_bytes));
        }
        let mut bytes = vec![0; length_bytes];
        self.read_exact_at(&mut bytes, offset_bytes)?;
        Ok(bytes)
    }

    /// The first stretch of data at or after `offset_bytes` and before `end_bytes`, as the file
    /// system knows it: its start and end. `None`: only a hole remains.
    pub fn next_data(&self, offset_bytes: u64, end_bytes: u64) -> Result<Option<(u64, u64)>> {
        let end_bytes = end_bytes.min(self.length_bytes);
        if offset_bytes >= end_bytes {
            return Ok(None);
        }
        let start = match self.seek(offset_bytes, Whence::SeekData) {
            Ok(start) => start,
            // The end of a file that shrank looks like a hole, too.
            Err(Errno::ENXIO) => return self.check_length(end_bytes).map(|()| None),
            // A file system that cannot tell: everything is data.
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => return Ok(Some((offset_bytes, end_bytes))),
            Err(errno) => return Err(Error::io("seek in", &self.path, errno.into())),
        };
        if start >= end_bytes {
            return Ok(None);
        }
        let end = match self.seek(start, Whence::SeekHole) {
            // A file that changes under our feet must not stop the walk.
            Ok(end) => end.clamp(start + 1, end_bytes),
            Err(_) => end_bytes,
        };
        Ok(Some((start, end)))
    }

    /// An error if the file does not reach as far as `end_bytes` any more.
    fn check_length(&self, end_bytes: u64) -> Result<()> {
        let metadata = self.file.metadata();
        let metadata = metadata.map_err(|error| Error::io("stat", &self.path, error))?;
        // A device has no length that stat(2) would tell.
        if metadata.is_file() && metadata.len() < self.base_bytes.saturating_add(end_bytes) {
            return Err(corrupt(
                &self.path,
                format!("truncated while it was read: it ends at {}", metadata.len()),
            ));
        }
        Ok(())
    }

    fn seek(&self, offset_bytes: u64, whence: Whence) -> std::result::Result<u64, Errno> {
        let position = i64::try_from(self.base_bytes.saturating_add(offset_bytes))
            .map_err(|_| Errno::EOVERFLOW)?;
        let found = lseek(self.file.as_fd(), position, whence)?;
        Ok((found as u64).saturating_sub(self.base_bytes))
    }

    fn ends_early(&self, offset_bytes: u64, length_bytes: usize) -> Error {
        corrupt(
            &self.path,
            format!(
                "truncated: {length_bytes} bytes at offset {offset_bytes} are needed, \
                 but it ends at {}",
                self.length_bytes
            ),
        )
    }
}
