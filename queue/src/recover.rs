//! Recovery: at start and at every rescan, whatever a dead process left is finished or undone.
//!
//! It holds each job that nobody holds for a moment (`Spool::hold` does the work) and tells which
//! ones wait for a worker. It never touches a job whose lock is held.
use std::time::{Duration, SystemTime};

use crate::durable::{self, ASIDE_SUFFIX, EntryKind};
use crate::error::{Error, Result};
use crate::job::{JobId, Priority, VmName};
use crate::spool::request::REFUSED_SUFFIX;
use crate::spool::{Hold, Job, Spool};

/// Files aside that are older than this were left by a dead process.
const STALE_ASIDE: Duration = Duration::from_secs(3600);

/// A claimed job that waits for a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub job_id: JobId,
    pub vm_name: VmName,
    pub priority: Priority,
    pub not_before: Option<SystemTime>,
    /// The name of a drop that is one file without an owner: an owner may still come for it.
    pub bare_disk: Option<String>,
}

impl From<&Job> for Waiting {
    fn from(job: &Job) -> Self {
        Self {
            job_id: job.id(),
            vm_name: job.memory.vm_name.clone(),
            priority: job.memory.priority,
            not_before: job.not_before(),
            bare_disk: job.is_bare_disk().then(|| job.memory.drop.clone()),
        }
    }
}

/// What a sweep found.
#[derive(Debug, Default)]
pub struct Swept {
    pub waiting: Vec<Waiting>,
    /// Jobs that a dead process had all but finished.
    pub finished: Vec<JobId>,
    /// One job's trouble never stops the others.
    pub errors: Vec<(Option<JobId>, Error)>,
}

/// Sweeps the queue. `known` jobs are passed over: the caller has them in its backlog already.
pub fn sweep(spool: &Spool, known: &dyn Fn(JobId) -> bool) -> Result<Swept> {
    let mut swept = Swept::default();
    for id in spool.jobs()? {
        if known(id) {
            continue;
        }
        match spool.hold(id) {
            Ok(Hold::Job(job)) => swept.waiting.push(Waiting::from(&*job)),
            Ok(Hold::Busy) => {}
            Ok(Hold::Over) => swept.finished.push(id),
            Err(error) => swept.errors.push((Some(id), error)),
        }
    }
    if let Err(error) = clear_orphaned_staging(spool) {
        swept.errors.push((None, error));
    }
    if let Err(error) = clear_stale_asides(spool) {
        swept.errors.push((None, error));
    }
    Ok(swept)
}

/// Removes what lies in staging for jobs that are no more.
fn clear_orphaned_staging(spool: &Spool) -> Result<()> {
    let staging = spool.directories.staging();
    // Listed before the jobs are looked up: a job exists before its staging does.
    for entry in spool.volume.read_dir(&staging)? {
        let name = entry.name.to_string_lossy().into_owned();
        let id = name.split_once('.').map_or(&*name, |(id, _)| id);
        let Ok(id) = id.parse::<JobId>() else {
            continue;
        };
        let job = spool.directories.processing().join(id.to_string());
        if spool.volume.stat(&job)?.is_none() {
            durable::remove_tree(&*spool.volume, &staging.join(&entry.name))?;
        }
    }
    Ok(())
}

/// Removes files that were written aside and never renamed, and answers nobody fetched.
fn clear_stale_asides(spool: &Spool) -> Result<()> {
    let directories = &spool.directories;
    let now = SystemTime::now();
    for dir in [
        directories.output.clone(),
        directories.daemon(),
        directories.records(),
        directories.errors(),
        directories.control(),
    ] {
        spool.volume.visit_dir(&dir, &mut |entry| {
            let name = entry.name.to_string_lossy();
            let ours = (name.starts_with('.') && name.ends_with(ASIDE_SUFFIX))
                || name.ends_with(REFUSED_SUFFIX);
            if !ours || entry.kind == EntryKind::Directory {
                return Ok(());
            }
            let path = dir.join(&entry.name);
            let stat = spool.volume.stat(&path)?;
            let age = stat.and_then(|stat| now.duration_since(stat.modified).ok());
            if age.is_some_and(|age| age > STALE_ASIDE) {
                spool.volume.remove_file(&path)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}
