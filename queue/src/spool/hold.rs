//! Taking hold of a job: first whatever a dead worker left half done is finished or undone.
use std::time::SystemTime;

use super::Spool;
use super::held::Job;
use super::memory::{self, DropKind, Memory, Stage, Take};
use crate::error::{Error, ErrorKind, Result};
use crate::job::{Failure, JobId, JobState, Priority, VmName, record};

/// What taking hold of a job came to.
pub enum Hold {
    Job(Box<Job>),
    /// Somebody else holds it.
    Busy,
    /// It is over: it was finished before, or just now by this call.
    Over,
}

impl Spool {
    /// Takes hold of a job in `.processing`, first finishing what a dead worker left half done.
    pub fn hold(&self, id: JobId) -> Result<Hold> {
        let dir = self.job_dir(id);
        let Some(lock) = self.volume.lock(&dir.join("lock"), false)? else {
            return self.hold_unlocked(id);
        };
        let Some(memory) = self.recall(id)? else {
            self.forget(id)?;
            return Ok(Hold::Over);
        };
        let mut record = self
            .record(id)?
            .unwrap_or_else(|| self.fresh_record(&memory));
        // The record may be from before a name or priority that was remembered but not told.
        record.vm_name = memory.vm_name.to_string();
        record.priority = memory.priority;
        let mut job = Job::locked(self.clone(), memory, record, lock);
        match job.memory.stage.clone() {
            Stage::Claimed { .. } => job.resume_claim(),
            Stage::Running => job.count_crash(),
            Stage::Delivering { .. } => job.finish_delivery().map(|()| Hold::Over),
            Stage::Publishing { .. } if job.has_product()? => job.resume_publish(),
            // A later job of its name has replaced its result meanwhile.
            Stage::Publishing { .. } if job.record.state == JobState::Completed => {
                job.finish_archive().map(|()| Hold::Over)
            }
            Stage::Publishing { .. } => job.count_crash(),
            Stage::Failed { .. } => job.finish_failure().map(|()| Hold::Over),
        }
    }

    /// A job directory without a lock file, or with one that is held.
    fn hold_unlocked(&self, id: JobId) -> Result<Hold> {
        let dir = self.job_dir(id);
        if self.volume.stat(&dir)?.is_none() {
            return Ok(Hold::Over);
        }
        if self.volume.stat(&dir.join("lock"))?.is_none() {
            // Its maker died, or is about to create the lock; without one nothing was taken yet.
            // Removing an empty directory only makes a living maker start again.
            if self.volume.read_dir(&dir)?.is_empty() {
                self.volume.remove_dir(&dir)?;
                return Ok(Hold::Over);
            }
            return self.relock(id);
        }
        Ok(Hold::Busy)
    }

    /// A lock file was lost, but not what it guards: make it again.
    fn relock(&self, id: JobId) -> Result<Hold> {
        let path = self.job_dir(id).join("lock");
        match self.volume.lock(&path, true)? {
            Some(lock) => {
                drop(lock);
                self.hold(id)
            }
            None => Ok(Hold::Busy),
        }
    }

    /// The memory of a job, whoever holds it; `None` if there is none that can be read.
    pub(crate) fn peek(&self, id: JobId) -> Result<Option<Memory>> {
        let path = self.job_dir(id).join("job.json");
        let bytes = match self.volume.read(&path, memory::MAX_BYTES) {
            // Too large, or no file at all: as good as lost.
            Err(error) if error.kind == ErrorKind::Invalid => None,
            bytes => bytes?,
        };
        let read = bytes.and_then(|bytes| Memory::parse(&bytes).ok());
        Ok(read.filter(|memory| memory.job_id == id))
    }

    /// The memory of a job; rebuilt from what lies in `source/` if job.json cannot be read.
    /// `None` if nothing was taken.
    fn recall(&self, id: JobId) -> Result<Option<Memory>> {
        if let Some(memory) = self.peek(id)? {
            return Ok(Some(memory));
        }
        let source = self.source_dir(id);
        if self.volume.stat(&source)?.is_none() {
            return Ok(None);
        }
        let mut names: Vec<String> = self
            .volume
            .read_dir(&source)?
            .into_iter()
            .filter_map(|entry| entry.name.into_string().ok())
            .collect();
        names.sort_unstable();
        let Some(first) = names.first().cloned() else {
            return Ok(None);
        };
        let failure = Failure {
            kind: ErrorKind::Internal,
            message: "the job's memory (job.json) was lost or damaged".to_owned(),
            remedy: Some("drop the source again".to_owned()),
            chain: Vec::new(),
        };
        Ok(Some(Memory {
            job_id: id,
            vm_name: VmName::new(&first)?,
            drop: first.clone(),
            kind: DropKind::Disk,
            owner: first,
            takes: names
                .iter()
                .map(|n| Take {
                    from: n.clone(),
                    to: n.clone(),
                })
                .collect(),
            place: String::new(),
            lane: String::new(),
            target: None,
            streamed: None,
            priority: Priority::Normal,
            created_at: record::timestamp(SystemTime::now()),
            attempts: 0,
            crashes: 0,
            journal_bytes: 0,
            retries: 0,
            last_failure: None,
            found: None,
            is_asked_for: false,
            adopted: Vec::new(),
            superseded_by: None,
            stage: Stage::Failed {
                state: JobState::Failed,
                failure,
            },
        }))
    }
}
impl Job {
    /// An orphaned claim: finish its moves if its owner was taken, forget it otherwise.
    fn resume_claim(self) -> Result<Hold> {
        let owner = self
            .memory
            .takes
            .first()
            .map(|take| self.source_dir().join(&take.to));
        let taken = match owner {
            Some(path) => self.spool.volume.stat(&path)?.is_some(),
            None => false,
        };
        if !taken {
            self.spool.forget(self.id())?;
            return Ok(Hold::Over);
        }
        let mut job = self;
        let told = job.spool.record(job.id())?.map(|record| record.state);
        if told != Some(JobState::Queued) {
            // Whoever claimed it or put it back died before telling anyone.
            for take in &job.memory.takes {
                job.spool.take(job.id(), take)?;
            }
            if !job.spool.is_superseded(&job.memory)? {
                job.spool.note_latest(&job.memory)?;
            }
            job.spool.retire(&job.memory)?;
            job.record = job.spool.fresh_record(&job.memory);
            job.save_record(true)?;
        }
        Ok(Hold::Job(Box::new(job)))
    }

    /// A result that is staged and whole. What came into its way for good ends the job; all else is
    /// tried again.
    fn resume_publish(mut self) -> Result<Hold> {
        match self.finish_publish() {
            Ok(()) => Ok(Hold::Over),
            Err(error) if !error.kind.is_transient() && !self.is_in_place()? => {
                self.conclude(JobState::Failed, (&error).into())?;
                Ok(Hold::Over)
            }
            Err(error) => Err(error),
        }
    }

    /// A worker died on this job: go on with what it noted durably, but not for ever.
    fn count_crash(mut self) -> Result<Hold> {
        self.abort_stream("the export service died; it exports the machine again")?;
        // It may have died between taking its name and retiring what stood under it.
        self.spool.retire(&self.memory)?;
        let journal_bytes = self.journal_bytes()?;
        if journal_bytes > self.memory.journal_bytes {
            // It got further than any before: somebody stops workers, the job does not.
            self.memory.journal_bytes = journal_bytes;
            self.memory.crashes = 0;
        }
        self.memory.crashes += 1;
        let limit = self.spool.policy.max_attempts;
        if self.memory.crashes < limit {
            self.keep_staging()?;
            self.put_back(None)?;
            return Ok(Hold::Job(Box::new(self)));
        }
        let error = Error::new(
            ErrorKind::Internal,
            format!(
                "the daemon died {} times at this job without getting further",
                self.memory.crashes
            ),
        )
        .with_remedy("look into the journal for the cause, then `hyperctl retry`");
        self.conclude(JobState::Failed, (&error).into())?;
        Ok(Hold::Over)
    }
}
