//! Adoption: a disk that came before its owner and was taken for a VM of its own.
//!
//! A disk that still waits is taken out of its own job, which is then forgotten. One that was
//! converted lately is taken out of the archive; the result of its own job stays.
use std::time::Instant;

use queue::arrival::{ADOPTION_GRACE, Gathered};
use queue::job::JobId;
use queue::spool::{Hold, Job};

use super::dispatch::{ADOPTION_ENTRIES, ADOPTION_WINDOW, Dispatcher};
use super::log::say;
use crate::error::Result;

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
        self.bare_disks
            .retain(|(time, _, _)| time.elapsed() < ADOPTION_WINDOW);
        // Whoever delivers a new disk under an old one's name begins with it meanwhile.
        if job.age() < ADOPTION_GRACE && !overdue {
            return Ok(false);
        }
        let lately = self
            .bare_disks
            .iter()
            .rev()
            .find(|(_, known, _)| known == name);
        let Some((_, _, other)) = lately else {
            return Ok(false);
        };
        let other = *other;
        if !job.take_archived(name, other)? {
            return Ok(false);
        }
        say(
            job,
            &format!("{name} belongs to this VM; {other} had converted it on its own"),
        );
        self.bare_disks.retain(|(_, _, known)| *known != other);
        Ok(true)
    }

    pub(super) fn remember_bare_disk(&mut self, id: JobId) {
        let Ok(Some(record)) = self.spool.record(id) else {
            return;
        };
        let named = queue::arrival::candidate::classify(&record.drop);
        if named == Some(queue::arrival::candidate::Class::Disk) {
            self.bare_disks.push_back((Instant::now(), record.drop, id));
            if self.bare_disks.len() > ADOPTION_ENTRIES {
                self.bare_disks.pop_front();
            }
        }
    }
}
