//! The jobs that wait for this converter, in the order in which they are to start.
use std::collections::{BTreeSet, HashMap};
use std::time::SystemTime;

use queue::job::{JobId, Priority};
use queue::recover::Waiting;

/// Priority, then arrival: job ids rise with time.
type Rank = (Priority, JobId);

#[derive(Default)]
pub struct Backlog {
    ready: BTreeSet<Rank>,
    later: BTreeSet<(SystemTime, Rank)>,
    known: HashMap<JobId, Waiting>,
}

impl Backlog {
    pub fn len(&self) -> usize {
        self.known.len()
    }

    pub fn contains(&self, id: JobId) -> bool {
        self.known.contains_key(&id)
    }

    /// Adds a job, or gives the known one its new priority and time.
    pub fn add(&mut self, waiting: Waiting) {
        self.remove(waiting.job_id);
        let rank = (waiting.priority, waiting.job_id);
        match waiting.not_before {
            Some(time) => self.later.insert((time, rank)),
            None => self.ready.insert(rank),
        };
        self.known.insert(waiting.job_id, waiting);
    }

    /// Adds a job that is not to be tried again before `time`.
    pub fn postpone(&mut self, mut waiting: Waiting, time: SystemTime) {
        waiting.not_before = Some(waiting.not_before.map_or(time, |known| known.max(time)));
        self.add(waiting);
    }

    pub fn remove(&mut self, id: JobId) -> Option<Waiting> {
        let waiting = self.known.remove(&id)?;
        let rank = (waiting.priority, id);
        if let Some(time) = waiting.not_before {
            self.later.remove(&(time, rank));
        }
        self.ready.remove(&rank);
        Some(waiting)
    }

    /// Takes the next job that may start at `now`.
    pub fn next(&mut self, now: SystemTime) -> Option<Waiting> {
        while let Some((time, rank)) = self.later.first().copied() {
            if time > now {
                break;
            }
            self.later.pop_first();
            self.ready.insert(rank);
        }
        let (_, id) = self.ready.pop_first()?;
        self.known.remove(&id)
    }

    /// The first jobs that may start, in order.
    pub fn first(&self, count: usize) -> Vec<JobId> {
        self.ready.iter().take(count).map(|(_, id)| *id).collect()
    }

    /// When the next postponed job may start.
    pub fn next_due(&self) -> Option<SystemTime> {
        self.later.first().map(|(time, _)| *time)
    }

    /// Finds the bare disk that was dropped under this name.
    pub fn bare_disk(&self, name: &str) -> Option<JobId> {
        let mut entries = self.known.values();
        let found = entries.find(|waiting| waiting.bare_disk.as_deref() == Some(name));
        found.map(|waiting| waiting.job_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use queue::job::VmName;
    use std::time::Duration;

    fn waiting(priority: Priority) -> Waiting {
        Waiting {
            job_id: JobId::new(),
            vm_name: VmName::new("x").unwrap(),
            priority,
            not_before: None,
            bare_disk: None,
        }
    }

    #[test]
    fn priority_then_arrival_then_time() {
        let now = SystemTime::now();
        let mut backlog = Backlog::default();
        let [low, first, second, high] = [
            Priority::Low,
            Priority::Normal,
            Priority::Normal,
            Priority::High,
        ]
        .map(waiting);
        for job in [&low, &second, &first, &high] {
            backlog.add(job.clone());
        }
        backlog.postpone(first.clone(), now + Duration::from_secs(5));
        assert_eq!(backlog.len(), 4);
        let mut order = Vec::new();
        while let Some(job) = backlog.next(now) {
            order.push(job.job_id);
        }
        assert_eq!(order, [high.job_id, second.job_id, low.job_id]);
        assert_eq!(backlog.next_due(), Some(now + Duration::from_secs(5)));
        let later = now + Duration::from_secs(6);
        assert_eq!(
            backlog.next(later).map(|job| job.job_id),
            Some(first.job_id)
        );
        assert_eq!(backlog.len(), 0);
    }
}
