//! Failure: the text, the record, `.errors/` — or back among the waiting, if time may heal it.
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::held::Job;
use super::memory::{self, Memory, Stage, Take};
use super::place::REPORT_SUFFIX;
use crate::durable::{self, EntryKind};
use crate::error::{Error, ErrorKind, Result};
use crate::job::{Failure, JobState, record};
use crate::roots::is_plain;

const MAX_DELAY_SECONDS: f64 = 7.0 * 86_400.0;

/// What became of a job that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It waits and is tried again then.
    Retried { not_before: SystemTime },
    /// It is over; pollers find the cause.
    Ended(JobState),
    /// Its result is already durable: the publishing is taken up again at the next sweep.
    Publishing,
}

/// `.errors/<name>.error.json`: why, and all that a retry needs.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ErrorReport {
    pub error: Failure,
    pub state: JobState,
    pub failed_at: String,
    /// From `.errors/` back into `source/`, the owner first.
    pub archived: Vec<Take>,
    pub job: Memory,
}

impl ErrorReport {
    /// Whether all that it names lies in `.errors/` and goes into `source/`.
    pub fn is_sound(&self) -> bool {
        let inside = |take: &Take| {
            is_plain(&take.from) && is_plain(&take.to) && take.from.starts_with(".errors/")
        };
        self.archived.iter().all(inside) && self.job.check().is_ok()
    }
}

/// The error of a job whose end somebody asked for.
pub fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "cancelled by request")
        .with_remedy("`hyperctl retry` takes it up after all")
}

impl Job {
    /// Ends an attempt that failed. The error's kind is the fate: see `ErrorKind::is_transient`.
    pub fn fail(mut self, error: &Error) -> Result<Fate> {
        if matches!(
            self.memory.stage,
            Stage::Publishing { .. } | Stage::Delivering { .. }
        ) {
            return Ok(Fate::Publishing);
        }
        let failure = Failure::from(error);
        self.abort_stream(&error.to_line())?;
        let retry = &self.spool.policy.retry;
        if error.kind.is_transient() && self.memory.retries < retry.max_retries {
            let factor = retry
                .backoff_multiplier
                .powf(f64::from(self.memory.retries));
            let delay = (retry.retry_delay as f64 * factor).min(MAX_DELAY_SECONDS);
            let delay = Duration::try_from_secs_f64(delay).unwrap_or_default();
            let not_before = SystemTime::now() + delay;
            self.memory.retries += 1;
            self.memory.last_failure = Some(failure.clone());
            self.record.error = Some(failure);
            if error.kind == ErrorKind::NoSpace {
                // What is staged may be what lacks.
                self.clear_staging()?;
            } else {
                self.keep_staging()?;
            }
            self.put_back(Some(record::timestamp(not_before)))?;
            return Ok(Fate::Retried { not_before });
        }
        let state = match error.kind {
            ErrorKind::Cancelled => JobState::Cancelled,
            _ => JobState::Failed,
        };
        self.conclude(state, failure)?;
        Ok(Fate::Ended(state))
    }

    /// Ends the job because somebody asked for it.
    pub fn cancel(self) -> Result<Fate> {
        self.fail(&cancelled())
    }

    pub(super) fn conclude(&mut self, state: JobState, failure: Failure) -> Result<()> {
        // First of all, so that a full disk has room for what follows.
        self.clear_staging()?;
        self.memory.stage = Stage::Failed { state, failure };
        self.spool.save_memory(&self.memory)?;
        self.finish_failure()
    }

    /// From the noted failure to the end, as often as it takes.
    pub(super) fn finish_failure(&mut self) -> Result<()> {
        let Stage::Failed { state, failure } = self.memory.stage.clone() else {
            return Ok(());
        };
        self.clear_staging()?;
        self.write_error_text(&failure)?;
        self.record.state = state;
        self.record.error = Some(failure.clone());
        self.record.superseded_by = self.memory.superseded_by;
        self.record.attempts = self.memory.attempts;
        self.record.queue_position = None;
        self.record.waits_for.clear();
        self.record.not_before = None;
        self.record.finished_at = Some(record::timestamp(SystemTime::now()));
        self.save_record(true)?;
        // Room that cannot be given back holds up no end.
        let _ = self.discard_aborted();
        self.archive_failed(state, failure)?;
        self.remove_job_dir()
    }

    fn write_error_text(&self, failure: &Failure) -> Result<()> {
        if self.memory.superseded_by.is_some() || self.spool.is_superseded(&self.memory)? {
            // It would be taken for the later job's; the record tells.
            return Ok(());
        }
        let place = match self.spool.ensure_place(&self.memory.place) {
            // What stands in the way of the place is the failure, or else in nobody's way.
            Err(error) if !error.kind.is_transient() => self.spool.directories.output.clone(),
            place => place?,
        };
        let path = place.join(format!("{}.error", self.memory.vm_name));
        if self
            .volume()
            .stat(&path)?
            .is_some_and(|stat| stat.kind == EntryKind::Directory)
        {
            // Somebody's directory stands there; the record still tells.
            return Ok(());
        }
        // A place is not swept, the output directory is.
        let output = &self.spool.directories.output;
        durable::replace_from(self.volume(), output, &path, failure.to_text().as_bytes())
    }

    fn archive_failed(&mut self, state: JobState, failure: Failure) -> Result<()> {
        let errors = self.spool.directories.errors();
        self.move_source_into(&errors)?;
        let archived = self.archived_takes()?;
        let named_after = match archived.first() {
            Some(take) => take.from.trim_start_matches(".errors/").to_owned(),
            None => durable::tagged(&self.memory.drop, &self.id().to_string()),
        };
        let named_after = if named_after.len() + REPORT_SUFFIX.len() <= 255 {
            named_after
        } else {
            durable::tagged(
                durable::beginning(&named_after, 128),
                &self.id().to_string(),
            )
        };
        self.record.archived = archived
            .iter()
            .map(|take| self.spool.directories.queue.join(&take.from))
            .collect();
        let report = ErrorReport {
            error: failure,
            state,
            failed_at: record::timestamp(SystemTime::now()),
            archived,
            job: self.memory.clone(),
        };
        let path = errors.join(format!("{named_after}{}", REPORT_SUFFIX));
        durable::replace(self.volume(), &path, &memory::to_json(&report)?)?;
        self.save_record(true)
    }

    /// Where the job's files lie in `.errors/`: under their own name, or under `<name>.<job>` where
    /// that was taken. Derived from what is there, so that it can be asked again after a crash.
    fn archived_takes(&self) -> Result<Vec<Take>> {
        let errors = self.spool.directories.errors();
        let mut takes: Vec<Take> = Vec::new();
        for take in &self.memory.takes {
            let Some(top) = std::path::Path::new(&take.to).iter().next() else {
                continue;
            };
            let top = top.to_string_lossy().into_owned();
            if takes.iter().any(|known| known.to == top) {
                continue;
            }
            let tagged = durable::tagged(&top, &self.id().to_string());
            let name = if self.volume().stat(&errors.join(&tagged))?.is_some() {
                tagged
            } else {
                top.clone()
            };
            if self.volume().stat(&errors.join(&name))?.is_some() {
                takes.push(Take {
                    from: format!(".errors/{name}"),
                    to: top,
                });
            }
        }
        Ok(takes)
    }
}
