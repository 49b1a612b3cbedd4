//! Retry by request: a failed job's files come back out of `.errors/` under the same job id.
use crate::durable::EntryKind;
use crate::error::{Error, Result};
use crate::job::{JobId, JobState};

use super::Spool;
use super::fail::ErrorReport;
use super::memory::{Memory, Stage};

const MAX_REPORT_BYTES: u64 = 8 * 1024 * 1024;

impl Spool {
    /// Puts a failed or cancelled job back among the waiting.
    pub fn retry(&self, id: JobId) -> Result<()> {
        let record = self.record(id)?;
        if !record
            .as_ref()
            .is_some_and(|record| matches!(record.state, JobState::Failed | JobState::Cancelled))
        {
            return Err(Error::invalid(format!("{id} has not failed"))
                .with_remedy("`hyperctl list --status failed` shows what can be retried"));
        }
        let Some((path, report)) = self.find_report(id)? else {
            return Err(gone(id));
        };
        let memory = Memory {
            takes: report.archived,
            attempts: report.job.attempts,
            crashes: 0,
            retries: 0,
            last_failure: None,
            stage: Stage::Claimed { not_before: None },
            ..report.job
        };
        let _lock = self.make_job(&memory)?;
        if !self.take_owner(&memory)? {
            self.abandon(id)?;
            return Err(gone(id));
        }
        self.take_owned(&memory)?;
        self.retire(&memory)?;
        let mut record = self.fresh_record(&memory);
        self.save_record(&mut record, true)?;
        self.volume.remove_file(&path)?;
        self.volume.sync(&self.directories.errors())
    }

    /// The ids of all jobs whose report lies in `.errors/`.
    pub fn failed(&self) -> Result<Vec<JobId>> {
        let mut ids = Vec::new();
        for path in self.reports()? {
            if let Some(report) = self.read_report(&path)? {
                ids.push(report.job.job_id);
            }
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    fn reports(&self) -> Result<Vec<std::path::PathBuf>> {
        let errors = self.directories.errors();
        let mut paths: Vec<_> = self
            .volume
            .read_dir(&errors)?
            .into_iter()
            .filter(|entry| entry.kind == EntryKind::File)
            .filter(|entry| entry.name.to_string_lossy().ends_with(".error.json"))
            .map(|entry| errors.join(entry.name))
            .collect();
        paths.sort_unstable();
        Ok(paths)
    }

    fn read_report(&self, path: &std::path::Path) -> Result<Option<ErrorReport>> {
        let bytes = self.volume.read(path, MAX_REPORT_BYTES)?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    fn find_report(&self, id: JobId) -> Result<Option<(std::path::PathBuf, ErrorReport)>> {
        for path in self.reports()? {
            if let Some(report) = self.read_report(&path)?
                && report.job.job_id == id
            {
                return Ok(Some((path, report)));
            }
        }
        Ok(None)
    }
}

fn gone(id: JobId) -> Error {
    Error::invalid(format!("the source of {id} is no longer in .errors"))
        .with_remedy("drop the source into the queue again")
}
