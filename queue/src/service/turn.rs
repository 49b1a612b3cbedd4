//! The ends that every daemon's turns share, and the times that their phases took.
use std::time::Instant;

use super::activity::{Activity, Command};
use super::log;
use super::work::Outcome;
use crate::error::{Error, ErrorKind};
use crate::job::{JobId, Phase};
use crate::spool::Job;

/// A later job has published the VM already: this one ends and says so.
pub fn supersede(mut job: Box<Job>, later: JobId) -> Outcome {
    log::say(
        &mut job,
        &format!("superseded: {later} came later and is published"),
    );
    match job.supersede(later) {
        Ok(fate) => Outcome::Failed(fate),
        Err(error) => Outcome::Trouble(error),
    }
}

/// An attempt ended with an error: stopped, cancelled, failed, or failed to fail.
pub fn end_badly(mut job: Box<Job>, error: Error, activity: &Activity) -> Outcome {
    let error = match activity.command() {
        Command::Stop if error.kind == ErrorKind::Cancelled => {
            return match job.release() {
                Ok(()) => Outcome::Stopped,
                Err(error) => Outcome::Trouble(error),
            };
        }
        Command::Cancel if error.kind == ErrorKind::Cancelled => crate::spool::cancelled(),
        _ => in_drop_terms(error, &job),
    };
    log::fail(&mut job, &error);
    match job.fail(&error) {
        Ok(fate) => Outcome::Failed(fate),
        Err(error) => Outcome::Trouble(error),
    }
}

/// Names the job's files as they were dropped, not by where they lie while they are worked on.
fn in_drop_terms(mut error: Error, job: &Job) -> Error {
    let source = format!("{}/", job.source_dir().display());
    error.context = error.context.replace(&source, "");
    error
}

/// Notes in the record how long a phase took.
pub fn note_time(job: &mut Job, phase: Phase, started: Instant) {
    note_seconds(job, phase, started.elapsed().as_secs_f64());
}

pub(super) fn note_seconds(job: &mut Job, phase: Phase, seconds: f64) {
    let seconds = (seconds * 1000.0).round() / 1000.0;
    job.record
        .timings
        .insert(phase.as_str().to_owned(), seconds);
}
