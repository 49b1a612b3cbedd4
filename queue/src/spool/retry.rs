//! Retry by request: a failed job's files come back out of `.errors/` under the same job id.
use std::path::{Path, PathBuf};

use crate::durable::EntryKind;
use crate::error::{Error, Result};
use crate::job::{JobId, JobState};

use super::Spool;
use super::fail::ErrorReport;
use super::memory::{Memory, Stage};
use super::place::REPORT_SUFFIX;

const MAX_REPORT_BYTES: u64 = 8 * 1024 * 1024;

impl Spool {
    /// Puts a failed or cancelled job back among the waiting; what a later job of its name has
    /// published is then replaced. Another converter may have done so a moment ago: that is it.
    pub fn retry(&self, id: JobId) -> Result<()> {
        if self.is_retried(id)? {
            return Ok(());
        }
        match self.find_report(id)? {
            Some((path, report)) => self.put_back_failed(&path, report, true),
            None => Err(gone(id)),
        }
    }

    /// The same of the failed job whose report lies at `path`; `None` if it is no such report. Who
    /// cancelled a job wants it back only by its name.
    pub fn retry_report(&self, path: &Path) -> Result<Option<JobId>> {
        let Some(report) = self.read_report(path)? else {
            return Ok(None);
        };
        let id = report.job.job_id;
        let record = self.record(id)?;
        if record.is_some_and(|record| record.state == JobState::Cancelled) {
            return Ok(None);
        }
        if self.is_retried(id)? {
            return Ok(None);
        }
        self.put_back_failed(path, report, false)?;
        Ok(Some(id))
    }

    /// Whether a job that failed is under way again; an error if it never failed.
    fn is_retried(&self, id: JobId) -> Result<bool> {
        match self.record(id)?.map(|record| record.state) {
            Some(JobState::Failed | JobState::Cancelled) => return Ok(false),
            Some(JobState::Queued | JobState::Processing) => return Ok(true),
            Some(JobState::Completed) | None => {}
        }
        Err(Error::invalid(format!("{id} has not failed"))
            .with_remedy("`hyperctl list --status failed` shows what can be retried"))
    }

    fn put_back_failed(&self, path: &Path, report: ErrorReport, is_asked_for: bool) -> Result<()> {
        let id = report.job.job_id;
        let memory = Memory {
            takes: report.archived,
            target: None,
            streamed: None,
            attempts: report.job.attempts,
            crashes: 0,
            journal_bytes: 0,
            retries: 0,
            last_failure: None,
            is_asked_for,
            superseded_by: None,
            stage: Stage::Claimed { not_before: None },
            ..report.job
        };
        let _lock = self.make_job(&memory)?;
        if !self.take_owner(&memory)? {
            self.abandon(id)?;
            return Err(gone(id));
        }
        self.take_owned(&memory)?;
        self.note_latest(&memory)?;
        self.retire(&memory)?;
        let mut record = self.fresh_record(&memory);
        self.save_record(&mut record, true)?;
        self.volume.remove_file(path)?;
        self.volume.sync(&self.directories.errors())
    }

    /// Where the reports of all failed jobs lie.
    pub fn reports(&self) -> Result<Vec<PathBuf>> {
        let errors = self.directories.errors();
        let mut paths: Vec<_> = self
            .volume
            .read_dir(&errors)?
            .into_iter()
            .filter(|entry| entry.kind == EntryKind::File)
            .filter(|entry| entry.name.to_string_lossy().ends_with(REPORT_SUFFIX))
            .map(|entry| errors.join(entry.name))
            .collect();
        paths.sort_unstable();
        Ok(paths)
    }

    fn read_report(&self, path: &Path) -> Result<Option<ErrorReport>> {
        let bytes = self.volume.read(path, MAX_REPORT_BYTES)?;
        let report: Option<ErrorReport> =
            bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        // Its paths were ours, but nothing keeps an administrator from editing it.
        Ok(report.filter(|report| report.is_sound()))
    }

    fn find_report(&self, id: JobId) -> Result<Option<(PathBuf, ErrorReport)>> {
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
