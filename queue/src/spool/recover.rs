//! Recovery: at start and at every rescan, whatever a dead process left is finished or undone.
//!
//! It holds each job that nobody holds for a moment (`Spool::hold` does the work) and tells which
//! ones wait for a worker. It never touches a job whose lock is held.
use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::request::REFUSED_SUFFIX;
use super::{Hold, Job, Spool};
use crate::durable::{self, ASIDE_SUFFIX, EntryKind};
use crate::error::{Error, Result};
use crate::job::record::parse_timestamp;
use crate::job::{JobId, Priority, VmName};

const DAY: Duration = Duration::from_secs(86_400);
/// Files aside that are older than this were left by a dead process.
const STALE_ASIDE: Duration = Duration::from_secs(3600);
/// So long after its last change a submission's producer is dead.
const STALE_SUBMISSION: Duration = DAY.saturating_mul(7);
/// A note or lock of a VM's name that is as old and nobody's was left by a dead process.
const STALE_NAME: Duration = DAY;
/// How long pollers find the record of a job that is over.
const RECORD_KEPT: Duration = DAY.saturating_mul(90);

/// A claimed job that waits for a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub job_id: JobId,
    pub vm_name: VmName,
    /// See `Drop::lane`.
    pub lane: String,
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
            lane: job.memory.lane.clone(),
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
    let clears: [fn(&Spool) -> Result<()>; 5] = [
        clear_orphaned_staging,
        clear_stale_asides,
        clear_stale_submissions,
        clear_stale_names,
        prune_records,
    ];
    for clear in clears {
        if let Err(error) = clear(spool) {
            swept.errors.push((None, error));
        }
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
            if is_older(spool, &path, STALE_ASIDE)? {
                spool.volume.remove_file(&path)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Whether what is at `path` was last changed so long ago; what is gone was not.
fn is_older(spool: &Spool, path: &Path, limit: Duration) -> Result<bool> {
    let stat = spool.volume.stat(path)?;
    Ok(stat.is_some_and(|stat| is_past(stat.modified, limit)))
}

fn is_past(time: SystemTime, limit: Duration) -> bool {
    let age = SystemTime::now().duration_since(time);
    age.is_ok_and(|age| age > limit)
}

/// Removes submissions whose producers died long ago: nothing in them was changed since.
fn clear_stale_submissions(spool: &Spool) -> Result<()> {
    fn is_stale(spool: &Spool, path: &Path, kind: EntryKind) -> Result<bool> {
        if !is_older(spool, path, STALE_SUBMISSION)? {
            return Ok(false);
        }
        if kind == EntryKind::Directory {
            for entry in spool.volume.read_dir(path)? {
                if !is_stale(spool, &path.join(&entry.name), entry.kind)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
    let incoming = spool.directories.incoming();
    for entry in spool.volume.read_dir(&incoming)? {
        let path = incoming.join(&entry.name);
        // Only what our own producers make.
        if job_of(&entry.name).is_some() && is_stale(spool, &path, entry.kind)? {
            durable::remove_tree(&*spool.volume, &path)?;
        }
    }
    Ok(())
}

fn job_of(name: &OsStr) -> Option<JobId> {
    name.to_str()?.parse().ok()
}

/// Removes notes of names whose jobs are no more, and locks that nobody holds.
fn clear_stale_names(spool: &Spool) -> Result<()> {
    let names = spool.directories.names();
    spool.volume.visit_dir(&names, &mut |entry| {
        let path = names.join(&entry.name);
        if entry.kind != EntryKind::File || !is_older(spool, &path, STALE_NAME)? {
            return Ok(());
        }
        match path.extension().and_then(OsStr::to_str) {
            Some("lock") => {
                if let Some(_held) = spool.volume.lock(&path, false)? {
                    spool.volume.remove_file(&path)?;
                }
            }
            Some("latest") if !spool.has_latest(&path)? => spool.volume.remove_file(&path)?,
            _ => {}
        }
        Ok(())
    })
}

/// Removes the records of jobs that were over long ago, except those that can be retried.
fn prune_records(spool: &Spool) -> Result<()> {
    let records = spool.directories.records();
    spool.volume.visit_dir(&records, &mut |entry| {
        let id = Path::new(&entry.name).file_stem().and_then(job_of);
        let Some(id) = id.filter(|id| is_past(id.made_at(), RECORD_KEPT)) else {
            return Ok(());
        };
        let Some(record) = spool.record(id)? else {
            return Ok(());
        };
        let ended = record.finished_at.as_deref().and_then(parse_timestamp);
        let is_over = record.state.is_final() && ended.is_some_and(|at| is_past(at, RECORD_KEPT));
        for path in &record.archived {
            if spool.volume.stat(path)?.is_some() {
                return Ok(());
            }
        }
        if is_over && spool.volume.stat(&spool.job_dir(id))?.is_none() {
            spool.volume.remove_file(&spool.directories.record(id))?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;
    use crate::durable::HostVolume;
    use crate::instance::{Config, Directories, Instance};
    use crate::job::record::timestamp;
    use crate::job::{JobState, Record};
    use crate::spool::{Policy, submit};

    struct Site {
        _top: tempfile::TempDir,
        spool: Spool,
    }

    impl Site {
        fn new() -> Self {
            let top = tempfile::tempdir().unwrap();
            let [queue, output, work] =
                ["queue", "output", "work"].map(|name| top.path().join(name));
            let directories = Directories {
                queue,
                output,
                work,
            };
            let policy = Policy::of(&Instance::with_config("default", Config::default()));
            let spool = Spool::open(Arc::new(HostVolume), directories, policy, "host").unwrap();
            Self { _top: top, spool }
        }

        fn sweep(&self) {
            let swept = sweep(&self.spool, &|_| false).unwrap();
            assert!(swept.errors.is_empty(), "{:?}", swept.errors);
        }
    }

    fn age(path: &Path, days: u32) {
        let then = SystemTime::now() - DAY * days;
        File::open(path).unwrap().set_modified(then).unwrap();
    }

    #[test]
    fn a_dead_submission_goes_after_a_week_without_a_change() {
        let site = Site::new();
        let dead = submit::stage(&site.spool.directories).unwrap();
        let disk = dead.directory().join("a.vmdk");
        fs::write(&disk, "half").unwrap();
        let foreign = site.spool.directories.incoming().join("mine");
        fs::create_dir(&foreign).unwrap();
        age(&foreign, 99);
        for (file, directory, stays) in [(6, 8, true), (8, 6, true), (8, 8, false)] {
            age(&disk, file);
            age(dead.directory(), directory);
            site.sweep();
            assert_eq!(dead.directory().exists(), stays, "{file} {directory}");
        }
        assert!(foreign.exists());
    }

    #[test]
    fn what_dead_processes_noted_of_names_goes_after_a_day() {
        let site = Site::new();
        let names = site.spool.directories.names();
        let note = |name: &str, text: &str, days: u32| -> PathBuf {
            let path = names.join(name);
            fs::write(&path, text).unwrap();
            age(&path, days);
            path
        };
        let id = JobId::new();
        let gone = [
            note("a.lock", "", 2),
            note("a.latest", &JobId::new().to_string(), 2),
            note("b.latest", "?", 2),
        ];
        let stay = [
            note("c.lock", "", 0),
            note("d.lock", "", 2),
            note("d.latest", &id.to_string(), 2),
        ];
        let job = site.spool.directories.processing().join(id.to_string());
        fs::create_dir(&job).unwrap();
        fs::write(job.join("lock"), "").unwrap();
        let held = [job.join("lock"), stay[1].clone()];
        let locks = held.map(|path| site.spool.volume.lock(&path, false).unwrap().unwrap());
        site.sweep();
        assert!(gone.iter().all(|path| !path.exists()), "{gone:?}");
        assert!(stay.iter().all(|path| path.exists()), "{stay:?}");
        drop(locks);
    }

    #[test]
    fn records_of_what_ended_long_ago_go_unless_it_can_be_retried() {
        let site = Site::new();
        let source = site.spool.directories.errors().join("a.vmdk");
        fs::write(&source, "bad").unwrap();
        let young = JobId::new();
        let old = |number: u32| format!("job-0000000000{number:016}").parse().unwrap();
        let cases = [
            (old(1), JobState::Completed, 91, None, false),
            (old(2), JobState::Completed, 89, None, true),
            (old(3), JobState::Queued, 91, None, true),
            (old(4), JobState::Failed, 91, Some(source), true),
            (old(5), JobState::Failed, 91, Some("/nowhere".into()), false),
            (young, JobState::Completed, 91, None, true),
        ];
        for (id, state, days, archived, _) in &cases {
            let mut record = Record::new(*id, "vm", "default", "vm.vmdk");
            record.state = *state;
            record.finished_at = Some(timestamp(SystemTime::now() - DAY * *days));
            record.archived.extend(archived.clone());
            site.spool.save_record(&mut record, false).unwrap();
        }
        site.sweep();
        for (id, state, days, _, stays) in &cases {
            let there = site.spool.directories.record(*id).exists();
            assert_eq!(there, *stays, "{id} {state:?} {days}");
        }
    }
}
