//! What the daemons' files say: heartbeats, records and drops of one or several instances.
//!
//! Only reads. Nothing here is trusted: files are bounded, broken ones are skipped with a note.
mod file;
pub mod find;
pub mod heartbeat;
pub mod job;
pub mod refusal;
mod select;
pub mod systemd;

use std::path::Path;
use std::time::SystemTime;

use queue::arrival::candidate::{self, Class};
use queue::arrival::pieces::{self, Scope};
use queue::arrival::whole;
use queue::error::{Error, Result};
use queue::instance::Directories;
use queue::job::{JobId, JobState};

pub use heartbeat::{Heartbeat, Life};
pub use job::Job;
pub use select::{chosen, every};

/// Where one daemon keeps its files.
#[derive(Debug, Clone)]
pub struct Place {
    pub instance: String,
    pub directories: Directories,
    /// The systemd unit; none when the directories were given by hand.
    pub service: Option<String>,
}

impl Place {
    /// Every record without its log, with the notes of what could not be read.
    pub fn jobs(&self) -> Result<job::Jobs> {
        job::read_all(&self.directories, &self.instance)
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

    /// What was dropped and is not claimed yet, sorted by name.
    pub fn drops(&self) -> Result<Vec<Unclaimed>> {
        let mut drops = Vec::new();
        let life = self.life();
        for (name, is_directory) in entries(&self.directories.queue)? {
            // Without a look inside: a name that says it is an extent belongs to another drop.
            let is_candidate = candidate::classify(&name).is_some();
            let is_drop = is_directory || is_candidate && !candidate::is_extent(&name, &[]);
            if is_drop && !candidate::is_ignored(&name) {
                let reason = self.reason(&name, life);
                drops.push(Unclaimed { name, reason });
            }
        }
        drops.sort();
        Ok(drops)
    }

    /// Why a drop is not claimed yet: a silent daemon, or a file that it names and that is missing.
    fn reason(&self, name: &str, life: Life) -> String {
        if life != Life::Responding {
            return "waits: the daemon is not running".to_owned();
        }
        let queue = &self.directories.queue;
        let path = queue.join(name);
        if name.contains(char::REPLACEMENT_CHARACTER) {
            return "has a name that is not UTF-8: rename it".to_owned();
        }
        if candidate::classify(name) == Some(Class::Manifest) && !whole::is_complete_json(&path) {
            return "is not complete JSON".to_owned();
        }
        if path.is_dir() && !path.join("manifest.json").exists() {
            return "is a directory without a manifest.json".to_owned();
        }
        if !path.is_dir() && whole::is_complete(&path).is_ok_and(|complete| !complete) {
            return "is not complete yet".to_owned();
        }
        let scope = Scope {
            base: queue,
            queue,
            output: &self.directories.output,
        };
        let pieces = scope.pieces(name).unwrap_or_default().names;
        let is_missing = |piece: &&String| std::fs::symlink_metadata(queue.join(piece)).is_err();
        let head = pieces::head(&path, candidate::HEAD_BYTES).unwrap_or_default();
        pieces.iter().find(is_missing).map_or_else(
            || match candidate::is_companion(name, &head) {
                true => "waits a while for a file that names it".to_owned(),
                false => "is not claimed yet".to_owned(),
            },
            |missing| format!("names {missing:?}, which is not there"),
        )
    }
}

/// A drop that is not claimed yet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unclaimed {
    pub name: String,
    /// What it waits for, as a sentence without its subject.
    pub reason: String,
}

impl Unclaimed {
    /// The drop and what it waits for, as one sentence.
    pub fn told(&self) -> String {
        format!("{} {}", self.name, self.reason)
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
pub fn read(places: Vec<Place>) -> Result<(Vec<Shelf>, Vec<String>)> {
    let mut shelves = Vec::with_capacity(places.len());
    let mut notes = Vec::new();
    for place in places {
        let read = place.jobs()?;
        notes.extend(read.skipped);
        // The queue may be closed to those who may read results.
        let drops = place.drops().unwrap_or_else(|error| {
            notes.push(job::describe(&error));
            Vec::new()
        });
        shelves.push(Shelf {
            place,
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
