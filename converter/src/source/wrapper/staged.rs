//! The file that something is unpacked into: no name, zeros as holes, an end to its growth.
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Unpacker;
use crate::disk::{BLOCK_BYTES, MAX_CAPACITY_BYTES, Observer, Window, is_zero, unsupported};
use crate::error::{Error, ErrorKind, Result};

const BUFFER_BYTES: usize = 16 * BLOCK_BYTES as usize;
/// Of data between two looks at the free space.
const STEP_BYTES: u64 = 16 << 20;
/// What is left to others on the file system.
const RESERVE_BYTES: u64 = 32 << 20;

pub(super) struct Staged<'a> {
    unpacker: Unpacker<'a>,
    file: File,
    /// What errors call it.
    path: PathBuf,
    buffer: Vec<u8>,
    filled: usize,
    /// What is before the buffer.
    length_bytes: u64,
    /// Of it, what is no hole.
    data_bytes: u64,
    unchecked_bytes: u64,
}

impl<'a> Staged<'a> {
    pub(super) fn create(unpacker: &Unpacker<'a>, path: PathBuf) -> Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!(".unpacked-{}-{number}", std::process::id());
        let place = unpacker.directory.join(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&place)
            .map_err(|error| Error::io("create", &place, error))?;
        std::fs::remove_file(&place).map_err(|error| Error::io("remove", &place, error))?;
        Ok(Self {
            unpacker: *unpacker,
            file,
            path,
            buffer: vec![0; BUFFER_BYTES],
            filled: 0,
            length_bytes: 0,
            data_bytes: 0,
            unchecked_bytes: 0,
        })
    }

    /// Fails with `no_space` unless there is room for `more_bytes`.
    pub(super) fn check_room(&self, more_bytes: u64) -> Result<()> {
        let directory = self.unpacker.directory;
        let free_bytes = queue::instance::free_bytes(directory)?;
        if more_bytes.saturating_add(RESERVE_BYTES) <= free_bytes {
            return Ok(());
        }
        let what = format!(
            "{} does not fit in {}: {free_bytes} bytes are free after {} bytes of it were \
             unpacked, {} of them data",
            self.path.display(),
            directory.display(),
            self.length_bytes,
            self.data_bytes
        );
        Err(Error::new(ErrorKind::NoSpace, what)
            .with_remedy("free space there, or give the source uncompressed"))
    }

    /// Appends all that `from` has.
    pub(super) fn append(&mut self, from: &mut dyn Read) -> io::Result<()> {
        loop {
            let room = self.buffer.get_mut(self.filled..).unwrap_or_default();
            let count = match from.read(room) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.filled = self.filled.saturating_add(count);
            if self.filled >= self.buffer.len() {
                self.flush().map_err(io::Error::other)?;
            }
        }
    }

    /// Leaves a hole up to `at`, which is not behind what was appended.
    pub(super) fn skip_to(&mut self, at: u64) -> Result<()> {
        self.flush()?;
        self.grow(at.saturating_sub(self.length_bytes))
    }

    fn grow(&mut self, bytes: u64) -> Result<()> {
        self.length_bytes = self.length_bytes.saturating_add(bytes);
        if self.length_bytes > MAX_CAPACITY_BYTES {
            let what = "a compressed file that unpacks to more than 64 TiB";
            return Err(unsupported(&self.path, what).with_remedy("no disk is as large"));
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        go_on(self.unpacker.observer)?;
        let filled = self.buffer.get(..self.filled).unwrap_or_default();
        let mut at = self.length_bytes;
        for block in filled.chunks(BLOCK_BYTES as usize) {
            if !is_zero(block) {
                self.file
                    .write_all_at(block, at)
                    .map_err(|error| Error::io("unpack", &self.path, error))?;
                self.data_bytes = self.data_bytes.saturating_add(block.len() as u64);
                self.unchecked_bytes = self.unchecked_bytes.saturating_add(block.len() as u64);
            }
            at = at.saturating_add(block.len() as u64);
        }
        let bytes = self.filled as u64;
        self.filled = 0;
        self.grow(bytes)?;
        if self.unchecked_bytes >= STEP_BYTES {
            self.unchecked_bytes = 0;
            self.check_room(0)?;
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Window> {
        self.flush()?;
        self.file
            .set_len(self.length_bytes)
            .map_err(|error| Error::io("set the length of", &self.path, error))?;
        Window::whole(self.file, &self.path)
    }
}

/// A sign of life, and `cancelled` if the work is to end.
pub(super) fn go_on(observer: &dyn Observer) -> Result<()> {
    observer.advance(0);
    if observer.is_cancelled() {
        return Err(Error::new(
            ErrorKind::Cancelled,
            "the unpacking was cancelled",
        ));
    }
    Ok(())
}
