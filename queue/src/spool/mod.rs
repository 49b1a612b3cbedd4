//! The spool: claims drops, holds jobs, publishes results, tells failures. queue.md's contract.
//!
//! Every state is a file, every move a rename; a job is in exactly one place. What is on disk
//! before each step is enough for anyone to finish or undo the step: see `recover`.
mod claim;
mod deliver;
mod fail;
pub mod growing;
mod held;
mod hold;
mod import;
mod latest;
mod memory;
mod place;
mod publish;
pub mod recover;
pub mod request;
pub mod retry;
mod stream;
pub mod submit;
mod supersede;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

pub use fail::{Fate, cancelled};
pub use held::{Begun, Job};
pub use hold::Hold;
pub use import::Importable;
pub use memory::{Drop, DropKind, Memory, Stage, Take, Target};
pub use publish::Product;

use crate::durable::{self, EntryKind, Volume};
use crate::error::Result;
use crate::instance::config::Retry;
use crate::instance::{Archive, Directories, Instance, OnConflict};
use crate::job::record::{self, DaemonState};
use crate::job::{JobId, JobState, Record};

/// What an instance's configuration says about the queue.
#[derive(Debug, Clone)]
pub struct Policy {
    pub instance: String,
    pub on_conflict: OnConflict,
    pub archive: Archive,
    pub max_attempts: u32,
    pub retry: Retry,
}

impl Policy {
    pub fn of(instance: &Instance) -> Self {
        Self {
            instance: instance.name.clone(),
            on_conflict: instance.config.on_conflict,
            archive: instance.config.archive,
            max_attempts: instance.config.max_attempts,
            retry: instance.config.retry.clone(),
        }
    }
}

/// One instance's queue on one volume. Cheap to clone.
#[derive(Clone)]
pub struct Spool {
    pub(crate) volume: Arc<dyn Volume>,
    pub directories: Arc<Directories>,
    pub policy: Arc<Policy>,
    host: Arc<str>,
}

/// Directories into which producers write: set-group-ID, so that what they drop stays readable.
const SHARED_MODE: u32 = 0o2770;
const OWN_MODE: u32 = 0o2750;
const MAX_STATE_BYTES: u64 = 64;

impl Spool {
    /// Opens the queue, creating what is missing of its directories.
    pub fn open(
        volume: Arc<dyn Volume>,
        directories: Directories,
        policy: Policy,
        host: &str,
    ) -> Result<Self> {
        for (dir, mode) in [
            (directories.queue.clone(), SHARED_MODE),
            (directories.incoming(), SHARED_MODE),
            (directories.control(), SHARED_MODE),
            (directories.processing(), OWN_MODE),
            (directories.processed(), OWN_MODE),
            (directories.errors(), OWN_MODE),
            (directories.output.clone(), OWN_MODE),
            (directories.staging(), OWN_MODE),
            (directories.daemon(), OWN_MODE),
            (directories.records(), OWN_MODE),
            (directories.names(), OWN_MODE),
            (directories.work.clone(), OWN_MODE),
        ] {
            durable::ensure_dir(&*volume, &dir, mode)?;
        }
        Ok(Self {
            volume,
            directories: Arc::new(directories),
            policy: Arc::new(policy),
            host: host.into(),
        })
    }

    pub(crate) fn job_dir(&self, job: JobId) -> PathBuf {
        self.directories.processing().join(job.to_string())
    }

    pub(crate) fn source_dir(&self, job: JobId) -> PathBuf {
        self.job_dir(job).join("source")
    }

    pub(crate) fn staging_dir(&self, job: JobId) -> PathBuf {
        self.directories.staging().join(job.to_string())
    }

    /// Every job in `.processing`, whoever holds it, oldest first.
    pub fn jobs(&self) -> Result<Vec<JobId>> {
        let entries = self.volume.read_dir(&self.directories.processing())?;
        let mut jobs: Vec<JobId> = entries
            .iter()
            .filter(|entry| entry.kind == EntryKind::Directory)
            .filter_map(|entry| entry.name.to_str()?.parse().ok())
            .collect();
        jobs.sort_unstable();
        Ok(jobs)
    }

    pub(crate) fn save_memory(&self, memory: &Memory) -> Result<()> {
        let path = self.job_dir(memory.job_id).join("job.json");
        durable::replace(&*self.volume, &path, &memory.to_bytes()?)
    }

    /// The record of a job as pollers see it; `None` if there is none that can be read.
    pub fn record(&self, job: JobId) -> Result<Option<Record>> {
        let path = self.directories.record(job);
        let bytes = self.volume.read(&path, record::MAX_BYTES)?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    pub(crate) fn save_record(&self, record: &mut Record, durably: bool) -> Result<()> {
        record.updated_at = record::timestamp(SystemTime::now());
        record.host = self.host.to_string();
        record.pid = std::process::id();
        let path = self.directories.record(record.job_id);
        let bytes = memory::to_json(record)?;
        if durably {
            durable::replace(&*self.volume, &path, &bytes)
        } else {
            durable::replace_volatile(&*self.volume, &path, &bytes)
        }
    }

    /// Tells pollers how many jobs are before a waiting one; a job that is held is left alone.
    pub fn tell_position(&self, id: JobId, position: u64) -> Result<()> {
        let path = self.job_dir(id).join("lock");
        let Some(_lock) = self.volume.lock(&path, false)? else {
            return Ok(());
        };
        let Some(mut record) = self.record(id)? else {
            return Ok(());
        };
        if record.state == JobState::Queued && record.queue_position != Some(position) {
            record.queue_position = Some(position);
            return self.save_record(&mut record, false);
        }
        Ok(())
    }

    /// Keeps what the administrator wants of the daemons of this queue: to run, pause or drain.
    pub fn save_state(&self, state: DaemonState) -> Result<()> {
        let path = self.directories.state();
        durable::replace(&*self.volume, &path, &memory::to_json(&state)?)
    }

    /// What the administrator wants; to run, where nobody said anything that can be read.
    pub fn state(&self) -> Result<DaemonState> {
        let bytes = self
            .volume
            .read(&self.directories.state(), MAX_STATE_BYTES)?;
        let wanted = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Ok(wanted.unwrap_or_default())
    }

    /// Replaces the daemon's heartbeat.
    pub fn save_status(&self, status: &crate::job::Status) -> Result<()> {
        let bytes = memory::to_json(status)?;
        durable::replace_volatile(&*self.volume, &self.directories.status(), &bytes)
    }

    /// Replaces the metrics for node_exporter's textfile collector.
    pub fn save_metrics(&self, text: &str) -> Result<()> {
        let path = self.directories.metrics();
        durable::replace_volatile(&*self.volume, &path, text.as_bytes())
    }
}
