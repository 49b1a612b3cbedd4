//! Growing disks, as their producer sees them: published with their job before they are whole,
//! appended to, and ended by a declaration, wherever the job has been moved meanwhile.
//!
//! A growing file is only ever appended to. Whoever has to begin it anew declares it aborted and
//! submits another job.
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::submit::Submission;
use crate::durable::{Directory, EntryKind, HostVolume, Volume, sync_file};
use crate::error::{Error, Result};
use crate::instance::PROCESSING;
use crate::job::JobId;
use crate::job::end::{self, End};

/// One disk that grows, held open with its directory.
#[derive(Debug)]
pub struct Growing {
    directory: Directory,
    file: File,
    name: String,
    /// Where it was when it was opened, for errors.
    path: PathBuf,
}

impl Submission {
    /// Creates the disk `name`, which the manifest beside it calls `growing`, to be appended to.
    pub fn grow(&self, name: &str) -> Result<Growing> {
        Growing::create(self.directory(), name)
    }
}

impl Growing {
    /// Creates the disk `name` in a directory that nobody sees yet.
    pub(super) fn create(staging: &Path, name: &str) -> Result<Self> {
        let directory = Directory::open(staging)?;
        let file = directory.create(name)?;
        Ok(Self {
            directory,
            file,
            name: name.to_owned(),
            path: staging.join(name),
        })
    }

    /// The disk's file, opened for appending; its length is what the converter takes for arrived.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Makes what was appended so far durable. Called now and then, from any thread, it leaves
    /// little to wait for at the end.
    pub fn sync(&self) -> Result<()> {
        sync_file(&self.file, &self.path)
    }

    /// A disk of which nothing has come yet: its time of modification says that its producer lives.
    /// Best effort; a converter is patient for a while.
    pub fn keep_waiting(&self) {
        if self.file.metadata().is_ok_and(|stat| stat.len() == 0) {
            let _ = self.file.set_modified(SystemTime::now());
        }
    }

    /// The disk is whole: what it holds is made durable, then that is said. `checksum` is of the
    /// file, `blake3:<hex>` (verified while it is read) or `sha256:<hex>`.
    pub fn declare_end(&self, checksum: Option<&str>) -> Result<()> {
        self.sync()?;
        let stat = self.file.metadata();
        let bytes = stat
            .map_err(|error| Error::io("stat", &self.path, error))?
            .len();
        self.declare(&End::Whole {
            bytes,
            checksum: checksum.map(str::to_owned),
        })
    }

    /// The disk will never be whole: its job ends as cancelled, for this reason.
    pub fn declare_aborted(&self, reason: &str) -> Result<()> {
        self.declare(&End::Aborted {
            aborted: reason.to_owned(),
        })
    }

    /// The same, of a disk whose job is over already, and gives back its room.
    pub fn discard(&self, reason: &str) -> Result<()> {
        self.declare_aborted(reason)?;
        let emptied = self.file.set_len(0);
        emptied.map_err(|error| Error::io("empty", &self.path, error))
    }

    /// Whether its end is declared, whatever it is.
    pub fn has_end(&self) -> Result<bool> {
        let end = self.directory.append(&end::name_of(&self.name))?;
        Ok(end.is_some())
    }

    fn declare(&self, end: &End) -> Result<()> {
        self.directory
            .replace(&end::name_of(&self.name), &end.to_bytes()?)
    }

    /// For the recovery of a producer that died: the disk `name` of a job that it had published
    /// into the queue directory `queue` and that is not over. It may be appended to further, or
    /// declared aborted.
    pub fn find(queue: &Path, job: JobId, name: &str) -> Result<Option<Self>> {
        let submitted = job.to_string();
        // A claim moves it once, from the first of these places to the second.
        let found = Self::open(queue.join(&submitted), name)?;
        if found.is_some() {
            return Ok(found);
        }
        for place in claimed(queue, &submitted)? {
            let found = Self::open(place, name)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn open(place: PathBuf, name: &str) -> Result<Option<Self>> {
        let directory = match Directory::open(&place) {
            Err(error) if error.os_error() == Some(nix::libc::ENOENT) => return Ok(None),
            directory => directory?,
        };
        let file = directory.append(name)?;
        Ok(file.map(|file| Self {
            directory,
            file,
            name: name.to_owned(),
            path: place.join(name),
        }))
    }
}

/// Where a submitted directory lies once it is claimed.
fn claimed(queue: &Path, submitted: &str) -> Result<Vec<PathBuf>> {
    let processing = queue.join(PROCESSING);
    let entries = HostVolume.read_dir(&processing)?;
    let jobs = entries
        .into_iter()
        .filter(|entry| entry.kind == EntryKind::Directory);
    let source = |name: &Path| processing.join(name).join("source").join(submitted);
    Ok(jobs.map(|job| source(Path::new(&job.name))).collect())
}
