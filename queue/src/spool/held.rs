//! A job whose lock this process holds: from the waiting job to the one that is being worked on.
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::memory::{DropKind, Memory, Stage, Take};
use super::{OWN_MODE, SHARED_MODE, Spool};
use crate::durable::{self, Lock};
use crate::error::Result;
use crate::job::{JobId, JobState, Phase, Priority, Record, VmName, record};

/// How many of the files that a job lacks its record names.
const MISSING_TOLD: usize = 16;
/// The extension of a job's journals in the staging directory.
pub(crate) const JOURNAL: &str = "journal";

/// Whether a job has its VM's name to work under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Begun {
    Yes,
    /// Another running job has it: try again soon.
    NameTaken,
    /// A later job's result stands there: see `Job::supersede`.
    Superseded(JobId),
}

/// A claimed job, locked by this process until it is dropped.
pub struct Job {
    pub(super) spool: Spool,
    pub memory: Memory,
    /// What pollers read; written by `save_record` and with every change of state.
    pub record: Record,
    name_lock: Option<(PathBuf, Lock)>,
    _lock: Lock,
}

impl Job {
    pub(super) fn locked(spool: Spool, memory: Memory, record: Record, lock: Lock) -> Self {
        Self {
            spool,
            memory,
            record,
            name_lock: None,
            _lock: lock,
        }
    }

    pub fn id(&self) -> JobId {
        self.memory.job_id
    }

    /// What was dropped.
    pub fn source_dir(&self) -> PathBuf {
        self.spool.source_dir(self.id())
    }

    /// The disk, appliance, OVF or manifest that says what to convert.
    pub fn owner_path(&self) -> PathBuf {
        self.source_dir().join(&self.memory.owner)
    }

    /// Where the result is made: on its final file system, seen by nobody.
    pub fn staging_dir(&self) -> PathBuf {
        match &self.memory.target {
            Some(target) => self.incoming_of(target),
            None => self.spool.staging_dir(self.id()),
        }
    }

    /// Where a worker notes how far it is, beside the staging directory: as long as this is there,
    /// what is staged is kept for the next attempt. Never part of a result.
    pub fn journal_dir(&self) -> PathBuf {
        self.staging_dir().with_extension(JOURNAL)
    }

    /// The directory of the result once it is published.
    pub fn result_dir(&self) -> PathBuf {
        self.spool
            .place_of(&self.memory)
            .join(self.memory.vm_name.as_str())
    }

    /// Time since the claim.
    pub fn age(&self) -> std::time::Duration {
        let claimed = record::parse_timestamp(&self.memory.created_at);
        claimed
            .and_then(|time| SystemTime::now().duration_since(time).ok())
            .unwrap_or_default()
    }

    /// When the job may start, if not at once.
    pub fn not_before(&self) -> Option<SystemTime> {
        match &self.memory.stage {
            Stage::Claimed {
                not_before: Some(time),
            } => record::parse_timestamp(time),
            _ => None,
        }
    }

    /// Takes one more file that belongs to the job out of the queue directory; `false` if it is
    /// not there. `name` is relative to the queue directory, without `..`.
    pub fn take(&mut self, name: &str) -> Result<bool> {
        let take = Take {
            from: name.to_owned(),
            to: name.to_owned(),
        };
        self.take_from(take)
    }

    /// Takes a disk that was dropped before its owner and converted by `other` on its own; the
    /// result of that is withdrawn when this job's is published.
    pub fn take_archived(&mut self, name: &str, other: JobId) -> Result<bool> {
        if !self.memory.adopted.contains(&other) {
            self.memory.adopted.push(other);
        }
        for from in [
            format!(".processed/{}", durable::tagged(name, &other.to_string())),
            format!(".processed/{name}"),
        ] {
            if self.take_from(Take {
                from,
                to: name.to_owned(),
            })? {
                return Ok(true);
            }
        }
        self.memory.adopted.retain(|known| *known != other);
        Ok(false)
    }

    /// Takes a disk out of the job that claimed it before its owner came; that job is forgotten.
    pub fn take_over(&mut self, other: Job, name: &str) -> Result<bool> {
        let from = format!(".processing/{}/source/{name}", other.id());
        let taken = self.take_from(Take {
            from,
            to: name.to_owned(),
        })?;
        if taken {
            other.spool.forget(other.id())?;
        }
        Ok(taken)
    }

    /// Whether the drop is one file that owns nothing.
    pub fn is_bare_disk(&self) -> bool {
        self.memory.kind == DropKind::Disk && self.memory.takes.len() == 1
    }

    fn take_from(&mut self, take: Take) -> Result<bool> {
        if !self.memory.takes.contains(&take) {
            let from = self.spool.directories.queue.join(&take.from);
            if self.spool.volume.stat(&from)?.is_none() {
                return Ok(false);
            }
            self.memory.takes.push(take.clone());
            self.spool.save_memory(&self.memory)?;
        }
        self.spool.take(self.id(), &take)
    }

    /// Gives a begun job the name that its source turned out to bear. If another running job has
    /// that name, this one keeps its own.
    pub fn rename_vm(&mut self, vm_name: VmName) -> Result<Begun> {
        let Some(lock) = self.spool.lock_name(&self.memory.place, &vm_name)? else {
            return Ok(Begun::NameTaken);
        };
        self.release_name();
        self.name_lock = Some(lock);
        self.spool.forget_latest(&self.memory)?;
        self.record.vm_name = vm_name.to_string();
        self.memory.vm_name = vm_name;
        self.memory.found = None;
        self.spool.save_memory(&self.memory)?;
        if let Some(later) = self.spool.later_result(&self.memory)? {
            return Ok(Begun::Superseded(later));
        }
        if !self.spool.is_superseded(&self.memory)? {
            self.spool.note_latest(&self.memory)?;
        }
        self.spool.retire(&self.memory)?;
        self.save_record(false)?;
        Ok(Begun::Yes)
    }

    fn release_name(&mut self) {
        if let Some((path, _lock)) = self.name_lock.take() {
            // A lock file that stays is taken over by the next job of that name.
            let _ = self.spool.volume.remove_file(&path);
        }
    }

    pub fn set_priority(&mut self, priority: Priority) -> Result<()> {
        self.memory.priority = priority;
        self.record.priority = priority;
        self.spool.save_memory(&self.memory)?;
        self.save_record(true)
    }

    /// Begins the work: takes the VM's name, counts the attempt, retires the earlier result's link
    /// and makes the staging directory, a fresh one unless an earlier attempt kept a journal.
    pub fn begin(&mut self) -> Result<Begun> {
        let (place, vm_name) = (&self.memory.place, &self.memory.vm_name);
        let Some(lock) = self.spool.lock_name(place, vm_name)? else {
            return Ok(Begun::NameTaken);
        };
        self.name_lock = Some(lock);
        if let Some(later) = self.spool.later_result(&self.memory)? {
            return Ok(Begun::Superseded(later));
        }
        self.memory.attempts += 1;
        self.memory.stage = Stage::Running;
        self.spool.save_memory(&self.memory)?;
        self.spool.retire(&self.memory)?;
        if !self.keep_staging()? {
            self.start_over()?;
        }
        let now = record::timestamp(SystemTime::now());
        self.record.state = JobState::Processing;
        self.record.attempts = self.memory.attempts;
        self.record.queue_position = None;
        self.record.waits_for.clear();
        self.record.not_before = None;
        self.record.started_at = Some(now);
        self.save_record(false)?;
        Ok(Begun::Yes)
    }

    /// Tells pollers which files a waiting job lacks.
    pub fn tell_missing(&mut self, names: &[String]) -> Result<()> {
        let first = names.get(..MISSING_TOLD).unwrap_or(names);
        if self.record.waits_for == first {
            return Ok(());
        }
        self.record.waits_for = first.to_vec();
        self.save_record(false)
    }

    /// Writes the record; what must survive a crash, durably.
    pub fn save_record(&mut self, durably: bool) -> Result<()> {
        self.spool.save_record(&mut self.record, durably)
    }

    /// Puts a running job back unharmed, because the daemon stops: nobody's fault, not an attempt.
    pub fn release(mut self) -> Result<()> {
        if self.memory.stage == Stage::Running {
            self.abort_stream("the export service was stopped; it exports the machine again")?;
            self.memory.attempts = self.memory.attempts.saturating_sub(1);
            self.keep_staging()?;
            self.put_back(None)?;
        }
        Ok(())
    }

    /// Back among the waiting jobs.
    pub(super) fn put_back(&mut self, not_before: Option<String>) -> Result<()> {
        self.memory.stage = Stage::Claimed {
            not_before: not_before.clone(),
        };
        self.spool.save_memory(&self.memory)?;
        self.record.state = JobState::Queued;
        self.record.phase = Phase::Settle;
        self.record.not_before = not_before;
        self.record.attempts = self.memory.attempts;
        self.record.progress = Default::default();
        self.save_record(true)
    }

    /// Gives up what an earlier attempt left of a begun job.
    pub fn start_over(&self) -> Result<()> {
        self.clear_staging()?;
        let mode = match self.memory.target {
            // Another daemon is to move it: rename(2) of a directory needs that.
            Some(_) => SHARED_MODE,
            None => OWN_MODE,
        };
        self.volume().create_dir(&self.staging_dir(), mode)
    }

    /// Keeps what is staged if there is a journal of it; clears it otherwise, and says false.
    pub(super) fn keep_staging(&self) -> Result<bool> {
        let staging = self.staging_dir();
        for dir in [&staging, &self.journal_dir()] {
            if self.volume().stat(dir)?.is_none() {
                self.clear_staging()?;
                return Ok(false);
            }
        }
        self.retract_product(&staging)?;
        Ok(true)
    }

    /// How much the journals say: they grow with what is durably done, and are bounded with it.
    pub(super) fn journal_bytes(&self) -> Result<u64> {
        let dir = self.journal_dir();
        let mut total_bytes = 0_u64;
        if self.volume().stat(&dir)?.is_some() {
            for entry in self.volume().read_dir(&dir)? {
                let stat = self.volume().stat(&dir.join(entry.name))?;
                total_bytes = total_bytes.saturating_add(stat.map_or(0, |stat| stat.size_bytes));
            }
        }
        Ok(total_bytes)
    }

    /// What says that a staged result is whole goes first: half of it must never be published.
    fn retract_product(&self, dir: &Path) -> Result<()> {
        let metadata = dir.join(super::place::METADATA);
        if self.volume().stat(&metadata)?.is_some() {
            self.volume().remove_file(&metadata)?;
            self.volume().sync(dir)?;
        }
        Ok(())
    }

    /// The journal goes first and durably: it must not outlive what it speaks of.
    pub(super) fn clear_staging(&self) -> Result<()> {
        let staging = self.staging_dir();
        let previous = staging.with_extension("previous");
        for dir in [self.journal_dir(), previous, staging] {
            if self.spool.volume.stat(&dir)?.is_some() {
                self.retract_product(&dir)?;
                durable::remove_tree(&*self.spool.volume, &dir)?;
                self.spool.volume.sync(durable::parent(&dir))?;
            }
        }
        Ok(())
    }

    pub(super) fn volume(&self) -> &dyn crate::durable::Volume {
        &*self.spool.volume
    }

    /// The job is over: nothing of it stays in `.processing`.
    pub(super) fn remove_job_dir(&self) -> Result<()> {
        self.spool.forget_latest(&self.memory)?;
        self.spool.abandon(self.id())
    }
}

impl std::ops::Drop for Job {
    fn drop(&mut self) {
        self.release_name();
    }
}
