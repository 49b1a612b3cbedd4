//! Follows a submitted job by polling files until it ends, or until it has taken too long.
//!
//! The record that names our drop is the truth. A daemon that writes no records is believed by its
//! `<vm>.qcow2` and `<vm>.error`, but only by such as were not there before the submission.
use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use queue::durable::{HostVolume, Volume};
use queue::instance::{Directories, Instance};
use queue::job::{JobId, JobState, Record, VmName};

use crate::error::Result;
use crate::transfer::Monitor;

const MAX_RECORD_BYTES: u64 = 4 * 1024 * 1024;
/// How often a waiting user's interrupt is looked for.
const TICK: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    Completed {
        outputs: Vec<PathBuf>,
    },
    /// The error's text: the cause in the first line, then what to do.
    Failed(String),
    TimedOut,
    /// The user stopped waiting.
    Interrupted,
}

#[derive(Debug, Clone, Copy)]
pub struct Patience {
    pub interval: Duration,
    pub timeout: Duration,
}

/// Device, inode, and time of change of what stands under a name.
type Mark = Option<(u64, u64, i64, i64)>;

/// What tells the end of a job without a record, as it was before the submission.
pub struct Marks {
    result: (PathBuf, Mark),
    error: (PathBuf, Mark),
}

impl Marks {
    pub fn take(instance: &Instance, vm: &VmName) -> Self {
        let format = instance.config.out_format.as_str();
        let marked = |path: PathBuf| {
            let mark = mark(&path);
            (path, mark)
        };
        Self {
            result: marked(instance.directories.result_link(vm, format)),
            error: marked(instance.directories.error_text(vm)),
        }
    }

    fn ending(&self) -> Option<Ending> {
        let is_new = |(path, before): &(PathBuf, Mark)| {
            let now = mark(path);
            now.is_some() && now != *before
        };
        if is_new(&self.error) {
            let text = std::fs::read_to_string(&self.error.0).ok()?;
            return Some(Ending::Failed(text));
        }
        is_new(&self.result).then(|| Ending::Completed {
            outputs: vec![self.result.0.clone()],
        })
    }
}

fn mark(path: &Path) -> Mark {
    let stat = std::fs::symlink_metadata(path).ok()?;
    Some((stat.dev(), stat.ino(), stat.ctime(), stat.ctime_nsec()))
}

/// A job that was dropped under a known name.
pub struct Follow<'a> {
    conversion: Conversion<'a>,
    marks: Marks,
}

/// What becomes of a drop: the converter's job, found by its record.
pub struct Conversion<'a> {
    directories: &'a Directories,
    drop: String,
    found: Option<JobId>,
    /// Records of other drops: a record's drop never changes.
    others: HashSet<String>,
}

impl<'a> Follow<'a> {
    pub fn new(directories: &'a Directories, drop: &str, marks: Marks) -> Self {
        Self {
            conversion: Conversion::new(directories, drop),
            marks,
        }
    }

    /// The converter's own id of the job, once it is known.
    pub fn job(&self) -> Option<JobId> {
        self.conversion.found
    }

    pub fn run(&mut self, patience: Patience, monitor: &dyn Monitor) -> Result<Ending> {
        let started = Instant::now();
        monitor.begin("waiting for the converter", 0);
        loop {
            if let Some(ending) = self.poll(monitor)? {
                return Ok(ending);
            }
            let next = Instant::now() + patience.interval;
            while Instant::now() < next {
                if monitor.is_cancelled() {
                    return Ok(Ending::Interrupted);
                }
                if started.elapsed() >= patience.timeout {
                    return Ok(self.poll(monitor)?.unwrap_or(Ending::TimedOut));
                }
                std::thread::sleep(TICK.min(patience.interval));
            }
        }
    }

    fn poll(&mut self, monitor: &dyn Monitor) -> Result<Option<Ending>> {
        let conversion = &mut self.conversion;
        if let Some(record) = conversion.record()? {
            self.show(&record, monitor);
            return Ok(ending(record));
        }
        // Before its claim, what stands in the output directory is of earlier jobs.
        let waits = HostVolume
            .stat(&conversion.directories.queue.join(&conversion.drop))?
            .is_some();
        Ok(if waits { None } else { self.marks.ending() })
    }

    fn show(&self, record: &Record, monitor: &dyn Monitor) {
        let progress = &record.progress;
        monitor.stand(progress.bytes_done, progress.bytes_total);
        let waiting = || match (&record.not_before, record.queue_position) {
            (Some(time), _) => format!("failed once, next try at {time}"),
            (None, Some(place)) => format!("queued, number {place}"),
            (None, None) => "queued".to_owned(),
        };
        match record.state {
            JobState::Queued => monitor.message(&waiting()),
            _ => monitor.message(record.phase.as_str()),
        }
    }
}

impl<'a> Conversion<'a> {
    pub fn new(directories: &'a Directories, drop: &str) -> Self {
        Self {
            directories,
            drop: drop.to_owned(),
            found: None,
            others: HashSet::new(),
        }
    }

    /// `None` before its claim.
    pub fn record(&mut self) -> Result<Option<Record>> {
        if let Some(job) = self.found {
            return read(&self.directories.record(job));
        }
        let entries = match std::fs::read_dir(self.directories.records()) {
            Ok(entries) => entries,
            // Not there yet, or a daemon that writes none.
            Err(_) => return Ok(None),
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(id) = name.strip_suffix(".json").and_then(|id| id.parse().ok()) else {
                continue;
            };
            if self.others.contains(&name) {
                continue;
            }
            let Some(record) = read(&self.directories.record(id))? else {
                continue;
            };
            if record.drop == self.drop {
                self.found = Some(record.job_id);
                return Ok(Some(record));
            }
            self.others.insert(name);
        }
        Ok(None)
    }
}

/// A record that cannot be read now is no news: it is replaced in one step, so the next is whole.
pub(super) fn read(path: &Path) -> Result<Option<Record>> {
    let bytes = HostVolume.read(path, MAX_RECORD_BYTES)?;
    Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

fn ending(record: Record) -> Option<Ending> {
    match record.state {
        JobState::Queued | JobState::Processing => None,
        JobState::Completed => Some(Ending::Completed {
            outputs: record.outputs,
        }),
        JobState::Failed => Some(Ending::Failed(match record.error {
            Some(failure) => failure.to_text(),
            None => "the conversion failed without saying why\n".to_owned(),
        })),
        JobState::Cancelled => Some(Ending::Failed("the job was cancelled\n".to_owned())),
    }
}
