//! Keeps the journal of one disk's conversion: what is placed, what of it is written, and from time
//! to time, in a thread of its own, what of it is durable.
//!
//! A checkpoint is written only after the target is durable up to it. A journal that cannot be
//! written ends the journal, not the conversion; a target that cannot be made durable ends both.
use std::collections::VecDeque;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::DiskReport;
use super::journal::{Checkpoint, Kind, Writer};
use super::resume::{self, Resume};
use crate::disk::Observer;
use crate::error::{Error, Result};

/// A slow conversion has a checkpoint this often, however little it did.
const PERIOD: Duration = Duration::from_secs(10);
/// Records that wait for a slow disk in memory: those of 20 GiB.
const MOST_PENDING_BYTES: usize = 16 << 20;

pub(super) struct Keeper<'a> {
    resume: &'a Resume<'a>,
    observer: &'a dyn Observer,
    journal: PathBuf,
    image: PathBuf,
    /// The journal's first words, from the image's inode on.
    identity: String,
    /// `None`: there is no journal yet.
    writer: Mutex<Option<Writer>>,
    book: Mutex<Book>,
    woken: Condvar,
}

/// What was done since the last checkpoint.
#[derive(Default)]
struct Book {
    /// The number of the first batch in flight.
    first: u64,
    /// Batches that are placed, from the first one that is not yet written.
    in_flight: VecDeque<Flight>,
    /// Records of batches that are written.
    pending: Vec<u8>,
    /// Behind `pending`.
    done: Checkpoint,
    since_bytes: u64,
    is_off: bool,
    is_over: bool,
}

/// One batch on its way.
pub(super) struct Flight {
    pub records: Vec<u8>,
    /// Where in the guest it ends.
    pub end_bytes: u64,
    /// What was read of the source for it.
    pub read_bytes: u64,
    /// Guest bytes that are stored in the source.
    pub work_bytes: u64,
    pub is_written: bool,
}

impl Book {
    fn land(&mut self) {
        while self
            .in_flight
            .front()
            .is_some_and(|flight| flight.is_written)
        {
            let Some(flight) = self.in_flight.pop_front() else {
                return;
            };
            self.first += 1;
            self.pending.extend(flight.records);
            self.done.guest_bytes = flight.end_bytes;
            self.done.read_bytes = self.done.read_bytes.saturating_add(flight.read_bytes);
            self.since_bytes = self.since_bytes.saturating_add(flight.work_bytes);
        }
    }

    fn take(&mut self) -> (Vec<u8>, Checkpoint) {
        self.since_bytes = 0;
        (std::mem::take(&mut self.pending), self.done)
    }
}

impl<'a> Keeper<'a> {
    /// `done` and `writer`: what an earlier attempt left.
    pub fn new(
        resume: &'a Resume<'a>,
        observer: &'a dyn Observer,
        image: &Path,
        identity: String,
        earlier: Option<(Checkpoint, Writer)>,
    ) -> Self {
        let (done, writer) = earlier.unzip();
        let done = done.unwrap_or_default();
        Self {
            resume,
            observer,
            journal: resume.journal_of(image),
            image: image.to_path_buf(),
            identity,
            writer: Mutex::new(writer),
            book: Mutex::new(Book {
                done,
                ..Book::default()
            }),
            woken: Condvar::new(),
        }
    }

    /// The next batch in order was placed.
    pub fn placed(&self, flight: Flight) {
        let mut book = lock(&self.book);
        if !book.is_off {
            book.in_flight.push_back(flight);
        }
    }

    /// A batch was written.
    pub fn written(&self, index: u64) {
        let mut book = lock(&self.book);
        let place = index.saturating_sub(book.first) as usize;
        if let Some(flight) = book.in_flight.get_mut(place) {
            flight.is_written = true;
        }
        book.land();
        if book.since_bytes >= self.resume.every_bytes {
            self.woken.notify_all();
        }
        let is_full = |book: &mut Book| {
            book.pending.len() > MOST_PENDING_BYTES && !book.is_off && !book.is_over
        };
        let waited = self.woken.wait_while(book, is_full);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// The source's checksums are right.
    pub fn verified(&self) {
        lock(&self.book).done.is_verified = true;
    }

    /// Writes checkpoints until the work is over.
    pub fn run(&self) -> Result<()> {
        loop {
            let is_idle = |book: &mut Book| {
                !book.is_over && !book.is_off && book.since_bytes < self.resume.every_bytes
            };
            let waited = self
                .woken
                .wait_timeout_while(lock(&self.book), PERIOD, is_idle);
            let (mut book, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if book.is_over || book.is_off {
                return Ok(());
            }
            if book.since_bytes == 0 {
                continue;
            }
            let (records, checkpoint) = book.take();
            drop(book);
            self.woken.notify_all();
            self.save(&records, checkpoint)?;
        }
    }

    /// The work is over: `run` returns.
    pub fn end(&self) {
        lock(&self.book).is_over = true;
        self.woken.notify_all();
    }

    /// The work ended before its time: what was done is kept.
    pub fn pause(&self) -> Result<()> {
        let mut book = lock(&self.book);
        if book.is_off || book.since_bytes == 0 {
            return Ok(());
        }
        let (records, checkpoint) = book.take();
        drop(book);
        self.save(&records, checkpoint)
    }

    /// The disk is finished. Alone and small, it needs no journal.
    pub fn conclude(&self, report: &DiskReport) -> Result<()> {
        let is_wanted = self.resume.has_more || lock(&self.writer).is_some();
        if !is_wanted || lock(&self.book).is_off {
            return Ok(());
        }
        self.sync_image()?;
        let text = resume::finished(&self.image, report)?;
        self.note(|writer| writer.append(Kind::Done, text.as_bytes()));
        Ok(())
    }

    fn save(&self, records: &[u8], checkpoint: Checkpoint) -> Result<()> {
        self.sync_image()?;
        self.note(|writer| writer.checkpoint(records, checkpoint));
        Ok(())
    }

    fn sync_image(&self) -> Result<()> {
        (self.resume.sync)(&self.image)
    }

    /// Writes to the journal and makes it durable; what fails there ends the journal alone.
    fn note(&self, write: impl FnOnce(&mut Writer) -> std::io::Result<()>) {
        if let Err(error) = self.try_note(write) {
            lock(&self.book).is_off = true;
            self.woken.notify_all();
            *lock(&self.writer) = None;
            // Half of it is as good as none; the room may be needed.
            let _ = fs::remove_file(&self.journal);
            let chain = error.to_line();
            self.observer
                .tell(&format!("goes on without checkpoints: {chain}"));
        }
    }

    fn try_note(&self, write: impl FnOnce(&mut Writer) -> std::io::Result<()>) -> Result<()> {
        let failed = |error| Error::io("write", &self.journal, error);
        let mut writer = lock(&self.writer);
        let directory = &self.resume.directory;
        let above = directory.parent().unwrap_or(directory);
        let is_new = writer.is_none();
        if is_new {
            // The image's own name, before anything speaks of it.
            for directory in self.image.parent().into_iter().chain([above]) {
                (self.resume.sync)(directory)?;
            }
            *writer = Some(self.begin()?);
        }
        if let Some(writer) = writer.as_mut() {
            write(writer).map_err(failed)?;
        }
        (self.resume.sync)(&self.journal)?;
        if is_new {
            (self.resume.sync)(directory)?;
            (self.resume.sync)(above)?;
        }
        Ok(())
    }

    fn begin(&self) -> Result<Writer> {
        let directory = &self.resume.directory;
        if !directory.is_dir() {
            fs::create_dir(directory)
                .map_err(|error| Error::io("create directory", directory, error))?;
        }
        let created = OpenOptions::new()
            .write(true)
            .create_new(true)
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_CLOEXEC)
            .open(&self.journal);
        created
            .and_then(|file| Writer::begin(file, &self.identity))
            .map_err(|error| Error::io("create", &self.journal, error))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
