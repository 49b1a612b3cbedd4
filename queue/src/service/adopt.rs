//! Adoption: a disk that came before its owner and was taken for a VM of its own.
//!
//! A disk that still waits is taken out of its own job, which is then forgotten. One that was
//! converted lately is taken out of the archive; the result of its own job stays.
use std::time::Duration;

use crate::arrival::candidate::{self, Class};
use crate::arrival::{ADOPTION_GRACE, Gathered};
use crate::job::record::parse_timestamp;
use crate::job::{JobId, JobState, Record, VmName};
use crate::spool::{Hold, Job};

use super::dispatch::Dispatcher;
use super::log::say;
use crate::error::Result;

/// How long a bare disk that was converted may turn out to belong to an owner that came later.
const ADOPTION_WINDOW: Duration = Duration::from_secs(3600);

impl Dispatcher {
    /// Brings a held job's files together: from the queue, from waiting jobs, from the archive.
    pub(super) fn gather(&mut self, job: &mut Job) -> Result<Gathered> {
        let Gathered::Missing { names, overdue } = self.arrivals.gather(job)? else {
            return Ok(Gathered::Whole);
        };
        let mut missing = Vec::new();
        for name in names {
            // One that is in the queue is a new one: it only is not whole yet.
            if self.arrivals.is_there(&name) || !self.adopt(job, &name, overdue)? {
                missing.push(name);
            }
        }
        if missing.is_empty() {
            // A disk that was adopted may have pieces of its own.
            return self.arrivals.gather(job);
        }
        let overdue = overdue && !missing.iter().any(|name| self.is_being_converted(name));
        Ok(Gathered::Missing {
            names: missing,
            overdue,
        })
    }

    /// Whether a running job was dropped under this name: its disk can be had when it is done.
    fn is_being_converted(&self, name: &str) -> bool {
        let drop_of = |id: &JobId| Some(self.spool.record(*id).ok()??.drop);
        self.active
            .keys()
            .any(|id| drop_of(id).as_deref() == Some(name))
    }

    fn adopt(&mut self, job: &mut Job, name: &str, overdue: bool) -> Result<bool> {
        if let Some(other) = self.backlog.bare_disk(name) {
            let Hold::Job(other) = self.spool.hold(other)? else {
                return Ok(false);
            };
            self.backlog.remove(other.id());
            say(
                job,
                &format!("{name} belongs to this VM; {} is dropped", other.id()),
            );
            return job.take_over(*other, name);
        }
        // Whoever delivers a new disk under an old one's name begins with it meanwhile.
        if job.age() < ADOPTION_GRACE && !overdue {
            return Ok(false);
        }
        let Some(other) = self.converted_lately(name)? else {
            return Ok(false);
        };
        if !job.take_archived(name, other)? {
            return Ok(false);
        }
        say(
            job,
            &format!("{name} belongs to this VM; {other} had converted it on its own"),
        );
        Ok(true)
    }

    /// The job that lately converted the bare disk of this name. Its result tells, not this
    /// process: another one may have made it.
    fn converted_lately(&self, name: &str) -> Result<Option<JobId>> {
        if candidate::classify(name) != Some(Class::Disk) {
            return Ok(None);
        }
        let vm_name = VmName::of_file(candidate::stem(name));
        let Some(id) = self.spool.result_of("", &vm_name)? else {
            return Ok(None);
        };
        let is_it = |record: &Record| {
            let ended = record.finished_at.as_deref().and_then(parse_timestamp);
            let age = ended.and_then(|time| time.elapsed().ok());
            record.drop == name
                && record.state == JobState::Completed
                && age.is_some_and(|age| age < ADOPTION_WINDOW)
        };
        Ok(self.spool.record(id)?.filter(is_it).map(|_| id))
    }
}
