//! The stream of one export: its job directory is dropped into the instance's queue when the disks
//! begin to arrive, and they are appended to there for as long as the conversion wants them.
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use queue::instance::Directories;
use queue::job::{JobId, Record};
use queue::spool::growing::Growing;

use super::follow::Conversion;
use crate::error::{Error, ErrorKind, Result};
use crate::machine::{Delivered, Exported, Stream};
use crate::transfer::download::Sink;

/// After so much, what came is made durable: that leaves little to wait for at the end.
const SYNC_BYTES: u64 = 64 << 20;
/// How often the conversion is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Who drops the job directory of a stream, and remembers it should this process die.
pub trait Outlet: Sync {
    /// Drops it, with `files` as disks that still grow, in the order of `expected`.
    fn open(&self, expected: &Exported, files: &[String]) -> Result<(JobId, Vec<Growing>)>;
    /// All disks are durable, and what they were to be: from here on the export cannot fail.
    fn close(&self, disks: &[Delivered]) -> Result<()>;
}

/// What an export that was to be streamed came to.
pub enum Brought {
    All(Exported),
    /// Only the stream failed: the disks are to be fetched anew, and to be whole first.
    Anew(Error),
    /// The conversion ended before the disks were there; its record.
    Over(Box<Record>),
}

pub struct Streaming<'a> {
    outlet: &'a dyn Outlet,
    /// Of the instance that converts.
    directories: &'a Directories,
    begun: OnceLock<Begun<'a>>,
    /// How many disks still arrive.
    open: AtomicUsize,
    /// Whether what was read would have to be taken back.
    is_broken: AtomicBool,
    over: OnceLock<Record>,
}

struct Begun<'a> {
    disks: Vec<(String, Arc<Growing>)>,
    watched: Mutex<Watched<'a>>,
}

struct Watched<'a> {
    conversion: Conversion<'a>,
    next: Instant,
}

impl<'a> Streaming<'a> {
    pub fn new(outlet: &'a dyn Outlet, directories: &'a Directories) -> Self {
        Self {
            outlet,
            directories,
            begun: OnceLock::new(),
            open: AtomicUsize::new(0),
            is_broken: AtomicBool::new(false),
            over: OnceLock::new(),
        }
    }

    /// What the export came to whose disks were to go here.
    pub fn judge(self, fetched: Result<Exported>) -> Result<Brought> {
        let error = match fetched {
            Ok(exported) => return Ok(Brought::All(exported)),
            Err(error) => error,
        };
        let Some(record) = self.over.into_inner() else {
            return match self.is_broken.into_inner() {
                true => Ok(Brought::Anew(error)),
                false => Err(error),
            };
        };
        // Half a disk is of no use to anybody, and the conversion no longer looks after it.
        let disks = self.begun.into_inner().map(|begun| begun.disks);
        for (_, growing) in disks.into_iter().flatten() {
            let _ = growing.discard("its conversion ended before it was there");
        }
        let failure = record.error.as_ref();
        Ok(match failure.filter(|it| it.kind == ErrorKind::Corrupt) {
            // Perhaps on its way: the server's own checksums tell, at the end of a download.
            Some(failure) => Brought::Anew(Error::new(failure.kind, failure.line())),
            None => Brought::Over(Box::new(record)),
        })
    }

    fn growing(&self, file: &str) -> Result<&Arc<Growing>> {
        let mut disks = self.begun.get().into_iter().flat_map(|begun| &begun.disks);
        let found = disks.find(|(name, _)| name == file);
        found
            .map(|(_, growing)| growing)
            .ok_or_else(|| Error::new(ErrorKind::Internal, format!("{file} is not streamed")))
    }
}

impl Stream for Streaming<'_> {
    fn begin(&self, expected: &Exported) -> Result<()> {
        let files: Vec<String> = expected.disks.iter().map(|it| it.file.clone()).collect();
        self.open.store(files.len(), Ordering::Relaxed);
        let (drop, growing) = self.outlet.open(expected, &files)?;
        let growing = growing.into_iter().map(Arc::new);
        // Begun once: there is nothing in it.
        let _ = self.begun.set(Begun {
            disks: files.into_iter().zip(growing).collect(),
            watched: Mutex::new(Watched {
                conversion: Conversion::new(self.directories, &drop.to_string()),
                next: Instant::now(),
            }),
        });
        Ok(())
    }

    fn is_over(&self) -> bool {
        let Some(begun) = self.begun.get() else {
            return false;
        };
        // Whoever finds it taken leaves the look to its holder.
        if let Ok(mut watched) = begun.watched.try_lock()
            && self.over.get().is_none()
            && Instant::now() >= watched.next
        {
            watched.next = Instant::now() + LOOK;
            // Those that wait until others are there.
            for (_, growing) in &begun.disks {
                growing.keep_waiting();
            }
            // A record that cannot be read tells nothing.
            let record = watched.conversion.record().ok().flatten();
            if let Some(record) = record.filter(|record| record.state.is_final()) {
                let _ = self.over.set(record);
            }
        }
        self.over.get().is_some()
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
        self.outlet.close(disks)?;
        for disk in disks {
            self.growing(&disk.file)?
                .declare_end(Some(&disk.checksum))?;
        }
        Ok(())
    }

    fn fail(&self, why: &str) -> Error {
        self.is_broken.store(true, Ordering::Relaxed);
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
