//! Requests: what `hyperctl` asked for, carried out or refused with the reason.
use std::path::Path;

use crate::job::record::DaemonState;
use crate::job::{Failure, JobId, JobState, Priority, Request};
use crate::spool::Hold;
use crate::spool::recover::Waiting;

use super::activity::Command;
use super::dispatch::Dispatcher;
use crate::error::{Error, Result};

/// What became of a request.
pub(super) enum Answer {
    Done,
    /// Another converter of this queue or another thread consumes it, or it is too early.
    NotMine,
}

impl Dispatcher {
    /// Carries out all requests that wait.
    pub(super) fn obey(&mut self) {
        let requests = match self.spool.requests() {
            Ok(requests) => requests,
            Err(error) => return tracing::error!("requests cannot be read: {error}"),
        };
        for (path, request) in requests {
            let answer = match &request {
                Ok(request) => self.carry_out(&path, request),
                Err(error) => Err(Error::invalid(error.to_string())),
            };
            let consumed = match answer {
                Ok(Answer::Done) => self.spool.answer(&path),
                Ok(Answer::NotMine) => Ok(()),
                Err(error) => {
                    tracing::warn!("request refused: {error}");
                    self.spool
                        .refuse(&path, request.as_ref().ok(), &Failure::from(&error))
                }
            };
            if let Err(error) = consumed {
                tracing::error!("a request cannot be consumed: {error}");
            }
        }
        if let Err(error) = self.heed_state() {
            tracing::error!("whether to pause or drain cannot be read: {error}");
        }
        self.show();
    }

    fn carry_out(&mut self, path: &Path, request: &Request) -> Result<Answer> {
        // Those are looked at until their jobs are published.
        if !matches!(request, Request::Import { .. }) {
            tracing::info!("request: {request:?}");
        }
        match request {
            Request::Pause => self.spool.save_state(DaemonState::Paused)?,
            Request::Resume => self.spool.save_state(DaemonState::Running)?,
            Request::Drain => self.spool.save_state(DaemonState::Draining)?,
            Request::Cancel { job_id } => return self.cancel(*job_id),
            Request::Retry { job_id } => return self.retry(*job_id),
            Request::RetryAllFailed => self.retry_all()?,
            Request::SetPriority { job_id, priority } => {
                return self.set_priority(*job_id, *priority);
            }
            Request::Import { job_id } => return self.import(path, *job_id),
        }
        Ok(Answer::Done)
    }

    /// Runs, pauses or drains as the administrator wants all converters of this queue to.
    fn heed_state(&mut self) -> Result<()> {
        let state = self.spool.state()?;
        if state == DaemonState::Running && self.state != state {
            // What was passed over while draining.
            self.scan_soon();
        }
        self.state = state;
        Ok(())
    }

    fn cancel(&mut self, id: JobId) -> Result<Answer> {
        if let Some(activity) = self.active.get(&id) {
            activity.tell(Command::Cancel);
            return Ok(Answer::Done);
        }
        match self.spool.hold(id)? {
            Hold::Job(job) => {
                self.backlog.remove(id);
                self.arrivals.release(id);
                let fate = job.cancel()?;
                self.count(&fate);
                Ok(Answer::Done)
            }
            Hold::Busy => Ok(Answer::NotMine),
            Hold::Over if self.is_cancelled(id)? => Ok(Answer::Done),
            Hold::Over => Err(over(id)),
        }
    }

    /// Another converter may have served the same request.
    fn is_cancelled(&self, id: JobId) -> Result<bool> {
        let record = self.spool.record(id)?;
        Ok(record.is_some_and(|record| record.state == JobState::Cancelled))
    }

    fn set_priority(&mut self, id: JobId, priority: Priority) -> Result<Answer> {
        if self.active.contains_key(&id) {
            return Err(Error::invalid(format!("{id} is running already")));
        }
        match self.spool.hold(id)? {
            Hold::Job(mut job) => {
                job.set_priority(priority)?;
                self.backlog.add(Waiting::from(&*job));
                Ok(Answer::Done)
            }
            Hold::Busy => Ok(Answer::NotMine),
            Hold::Over => Err(over(id)),
        }
    }

    fn retry(&mut self, id: JobId) -> Result<Answer> {
        match self.spool.retry(id) {
            Ok(()) => self.enlist_retried(id).map(|()| Answer::Done),
            // Another converter is making the job's directory just now, or died of it.
            Err(error) if error.os_error() == Some(nix::libc::EEXIST) => Ok(Answer::NotMine),
            Err(error) => Err(error),
        }
    }

    fn enlist_retried(&mut self, id: JobId) -> Result<()> {
        if let Hold::Job(job) = self.spool.hold(id)? {
            self.backlog.add(Waiting::from(&*job));
        }
        Ok(())
    }

    /// One that cannot be retried does not keep the others from it.
    fn retry_all(&mut self) -> Result<()> {
        let mut refused = None;
        for path in self.spool.reports()? {
            // There may be thousands of them.
            self.board.pulse.keep();
            let retried = match self.spool.retry_report(&path) {
                Ok(Some(id)) => self.enlist_retried(id),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = retried {
                tracing::warn!("{}: cannot be retried: {error}", path.display());
                refused = Some(error);
            }
        }
        refused.map_or(Ok(()), Err)
    }
}

fn over(id: JobId) -> Error {
    Error::invalid(format!("{id} neither waits nor runs"))
        .with_remedy("`hyperctl list` shows what became of it")
}
