//! What a job says: in the journal with its fields, and in the tail that its record keeps.
use std::time::SystemTime;

use crate::job::record;
use crate::spool::Job;

use crate::error::Error;

/// Lines of its log that a record keeps.
const LOG_LINES: usize = 50;

/// A job's failure in the journal and in its record.
pub fn fail(job: &mut Job, error: &Error) {
    let line = error.to_line();
    remember(job, "error", &line);
    let (job_id, vm_name) = (job.id(), job.memory.vm_name.as_str());
    let (phase, kind) = (job.record.phase.as_str(), error.kind.as_str());
    tracing::error!(%job_id, vm_name, phase, kind, "{vm_name}: {line}");
}

/// A line of a job's log, in the journal and in its record.
pub fn say(job: &mut Job, line: &str) {
    remember(job, "info", line);
    let (job_id, vm_name) = (job.id(), job.memory.vm_name.as_str());
    tracing::info!(%job_id, vm_name, phase = job.record.phase.as_str(), "{vm_name}: {line}");
}

fn remember(job: &mut Job, level: &str, line: &str) {
    let time = record::timestamp(SystemTime::now());
    let log = &mut job.record.log;
    log.push(format!("{time} {level} {line}"));
    if log.len() > LOG_LINES {
        log.drain(..log.len() - LOG_LINES);
    }
}
