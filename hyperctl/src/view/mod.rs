//! What the daemons' files say: heartbeats, records and drops of instances and the export service.
//!
//! Only reads. Nothing here is trusted: files are bounded, broken ones are skipped with a note.
mod drops;
mod file;
pub mod find;
pub mod heartbeat;
pub mod job;
pub mod migration;
pub mod refusal;
mod select;
pub mod systemd;

use std::path::Path;
use std::time::SystemTime;

use queue::error::{Error, Result};
use queue::instance::Directories;
use queue::job::{JobId, JobState};

pub use drops::Unclaimed;
pub use heartbeat::{Heartbeat, Life};
pub use job::Job;
pub use migration::Migration;
pub use select::{Scope, chosen, daemons, export_service};

/// What a daemon does with what is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// An instance: disks in, qcow2 out.
    Convert,
    /// The export service: requests in, job directories in an instance's queue out.
    Export,
}

/// Where one daemon keeps its files.
#[derive(Debug, Clone)]
pub struct Place {
    /// The instance's name, or the export service's.
    pub instance: String,
    pub role: Role,
    pub directories: Directories,
    /// The systemd unit; none when the directories were given by hand.
    pub service: Option<String>,
}

impl Place {
    /// Whether a daemon was ever started there.
    pub fn exists(&self) -> bool {
        self.directories.queue.exists() || self.directories.output.exists()
    }

    /// Every record without its log, with the notes of what could not be read.
    pub fn jobs(&self) -> Result<job::Jobs> {
        job::read_all(&self.directories, &self.instance)
    }

    /// The newest job that is meant, without its queue position.
    pub fn newest(&self, is_meant: impl Fn(&Job) -> bool) -> Result<Option<Job>> {
        job::newest(&self.directories, &self.instance, is_meant)
    }

    /// The newest job that came of a drop of this name, without its queue position.
    pub fn job_of_drop(&self, drop: &str) -> Result<Option<Job>> {
        self.newest(|job| job.record().drop == drop)
    }

    /// One record, with its queue position only if `numbered`: that takes reading all.
    pub fn job(&self, id: JobId, numbered: bool) -> Result<Option<Job>> {
        let mut found = job::read_one(&self.directories, &self.instance, id)?;
        if let Some(job) = found
            .as_mut()
            .filter(|job| numbered && job.is(JobState::Queued))
        {
            let all = self.jobs()?.jobs;
            job.position = all
                .iter()
                .find(|other| other.id() == id)
                .and_then(|other| other.position);
        }
        Ok(found)
    }

    pub fn heartbeat(&self) -> Result<Option<Heartbeat>> {
        Heartbeat::read(&self.directories)
    }

    /// Whether the daemon is there, by its heartbeat; a broken heartbeat is none.
    pub fn life(&self) -> Life {
        match self.heartbeat() {
            Ok(Some(heartbeat)) => heartbeat.life(SystemTime::now()),
            Ok(None) => Life::Absent,
            Err(_) => Life::Timeless,
        }
    }
}

/// One instance's records and drops.
#[derive(Debug)]
pub struct Shelf {
    pub place: Place,
    /// By id, oldest first.
    pub jobs: Vec<Job>,
    pub drops: Vec<Unclaimed>,
}

/// Reads everything in these places; the second list says what could not be read.
pub fn read(places: &[Place]) -> Result<(Vec<Shelf>, Vec<String>)> {
    let mut shelves = Vec::with_capacity(places.len());
    let mut notes = Vec::new();
    for place in places {
        let read = match place.jobs() {
            // Who may read an instance's results need not be one who may read what is exported.
            Err(error) if place.role == Role::Export => {
                notes.push(job::describe(&error));
                continue;
            }
            read => read?,
        };
        notes.extend(read.skipped);
        // The queue may be closed to those who may read results.
        let drops = place.drops().unwrap_or_else(|error| {
            notes.push(job::describe(&error));
            Vec::new()
        });
        shelves.push(Shelf {
            place: place.clone(),
            jobs: read.jobs,
            drops,
        });
    }
    Ok((shelves, notes))
}

/// The names in a directory, and whether each is a directory; none if it does not exist.
fn entries(dir: &Path) -> Result<Vec<(String, bool)>> {
    let fail = |error| Error::io("list", dir, error);
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fail(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(fail)?;
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        found.push((
            entry.file_name().to_string_lossy().into_owned(),
            is_directory,
        ));
    }
    Ok(found)
}
