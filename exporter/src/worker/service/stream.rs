//! The stream of one export: its job directory is dropped into the instance's queue when the disks
//! begin to arrive, and they are appended to there.
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use queue::job::ExportRequest;
use queue::service::Reporter;
use queue::spool::growing::Growing;

use super::turn::wish;
use crate::error::{Error, ErrorKind, Result};
use crate::export::{self, Export};
use crate::machine::{Delivered, Exported, Stream};
use crate::transfer::download::Sink;

/// After so much, what came is made durable: that leaves little to wait for at the end.
const SYNC_BYTES: u64 = 64 << 20;

pub struct Streaming<'a, 'job> {
    export: &'a Export,
    request: &'a ExportRequest,
    staging: &'a Path,
    reporter: &'a Reporter<'job>,
    disks: OnceLock<Vec<(String, Arc<Growing>)>>,
    /// How many of them still arrive.
    open: AtomicUsize,
    /// Set if the export failed only because it was streamed.
    has_failed: &'a AtomicBool,
}

impl<'a, 'job> Streaming<'a, 'job> {
    pub fn new(
        export: &'a Export,
        request: &'a ExportRequest,
        staging: &'a Path,
        reporter: &'a Reporter<'job>,
        has_failed: &'a AtomicBool,
    ) -> Self {
        Self {
            export,
            request,
            staging,
            reporter,
            disks: OnceLock::new(),
            open: AtomicUsize::new(0),
            has_failed,
        }
    }

    fn growing(&self, file: &str) -> Result<&Arc<Growing>> {
        let mut disks = self.disks.get().into_iter().flatten();
        let found = disks.find(|(name, _)| name == file);
        found
            .map(|(_, growing)| growing)
            .ok_or_else(|| Error::new(ErrorKind::Internal, format!("{file} is not streamed")))
    }
}

impl Stream for Streaming<'_, '_> {
    fn begin(&self, expected: &Exported) -> Result<()> {
        let files: Vec<String> = expected.disks.iter().map(|it| it.file.clone()).collect();
        self.open.store(files.len(), Ordering::Relaxed);
        let growing = self.reporter.with_job(|job| {
            let mut manifest = self.export.manifest(expected, job.id(), true);
            wish(&mut manifest, self.request);
            export::write(self.staging, &manifest)?;
            job.stream(&files)
        })?;
        let growing = growing.into_iter().map(Arc::new);
        // Begun once: there is nothing in it.
        let _ = self.disks.set(files.into_iter().zip(growing).collect());
        self.reporter.tell("converted while it arrives");
        Ok(())
    }

    fn sink(&self, file: &str) -> Result<Box<dyn Sink + '_>> {
        let growing = self.growing(file)?;
        Ok(Box::new(Appended {
            stream: self,
            file: file.to_owned(),
            growing: Arc::clone(growing),
            length_bytes: 0,
            synced_bytes: 0,
            syncing: None,
        }))
    }

    /// The last one's end is the whole export's: until then the others can still be taken back.
    fn end(&self, disk: &Delivered) -> Result<()> {
        let growing = self.growing(&disk.file)?;
        match self.open.fetch_sub(1, Ordering::Relaxed) {
            1 => growing.sync(),
            _ => growing.declare_end(Some(&disk.checksum)),
        }
    }

    fn finish(&self, disks: &[Delivered]) -> Result<()> {
        let checksums = disks.iter().map(|disk| disk.checksum.clone());
        self.reporter.with_job(|job| job.end_stream(checksums))?;
        for disk in disks {
            self.growing(&disk.file)?
                .declare_end(Some(&disk.checksum))?;
        }
        Ok(())
    }

    fn fail(&self, why: &str) -> Error {
        self.has_failed.store(true, Ordering::Relaxed);
        // No reason to try again what cannot be gone on with.
        Error::new(
            ErrorKind::Unsupported,
            format!("{why}: it has to be fetched anew"),
        )
    }
}

/// A disk that somebody reads: what is appended stays.
struct Appended<'a> {
    stream: &'a dyn Stream,
    file: String,
    growing: Arc<Growing>,
    length_bytes: u64,
    synced_bytes: u64,
    /// One at a time, while more is appended.
    syncing: Option<JoinHandle<queue::error::Result<()>>>,
}

impl Appended<'_> {
    fn sync(&mut self) -> Result<()> {
        self.wait()?;
        self.synced_bytes = self.length_bytes;
        let growing = Arc::clone(&self.growing);
        self.syncing = Some(std::thread::spawn(move || growing.sync()));
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        let synced = self.syncing.take().map(JoinHandle::join);
        synced.unwrap_or(Ok(Ok(()))).unwrap_or_else(|_| {
            let what = format!("the thread that syncs {} failed", self.file);
            Err(Error::new(ErrorKind::Internal, what))
        })
    }
}

impl Sink for Appended<'_> {
    fn cut(&mut self, length_bytes: u64) -> Result<()> {
        let stat = self.growing.file().metadata();
        let there = stat.map_err(|error| Error::io("stat", Path::new(&self.file), error))?;
        match there.len() == length_bytes {
            true => Ok(()),
            false => {
                let (file, there) = (&self.file, there.len());
                let why = format!("{file} cannot be gone on with at byte {there}");
                Err(self.stream.fail(&why))
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let mut file = self.growing.file();
        file.write_all(bytes)
            .map_err(|error| Error::io("write", Path::new(&self.file), error))?;
        self.length_bytes += bytes.len() as u64;
        if self.length_bytes - self.synced_bytes >= SYNC_BYTES {
            self.sync()?;
        }
        Ok(())
    }

    /// An error of a sync is told once.
    fn finish(&mut self) -> Result<()> {
        self.wait()
    }
}
