//! The jobs that wait for this converter, in the order in which they are to start.
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant, SystemTime};

use crate::job::{JobId, Priority};
use crate::spool::recover::Waiting;

/// Priority, then arrival: job ids rise with time.
type Rank = (Priority, JobId);

#[derive(Default)]
pub struct Backlog {
    ready: BTreeSet<Rank>,
    /// By the clock that nobody sets: a jump of the other one keeps no job waiting.
    later: BTreeSet<(Instant, Rank)>,
    known: HashMap<JobId, (Waiting, Option<Instant>)>,
}

impl Backlog {
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// How many of them may start now.
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    pub fn contains(&self, id: JobId) -> bool {
        self.known.contains_key(&id)
    }

    /// Adds a job, or gives the known one its new priority and time.
    pub fn add(&mut self, waiting: Waiting) {
        let now = SystemTime::now();
        let left = waiting
            .not_before
            .map(|time| time.duration_since(now).unwrap_or_default());
        self.insert(waiting, left);
    }

    /// Adds a job that is not to be tried again before `delay` is over.
    pub fn postpone(&mut self, waiting: Waiting, delay: Duration) {
        let now = SystemTime::now();
        let left = waiting
            .not_before
            .and_then(|time| time.duration_since(now).ok());
        let left = left.unwrap_or_default().max(delay);
        self.insert(waiting, Some(left));
    }

    fn insert(&mut self, waiting: Waiting, left: Option<Duration>) {
        self.remove(waiting.job_id);
        let rank = (waiting.priority, waiting.job_id);
        let due = left.and_then(|left| Instant::now().checked_add(left));
        match due {
            Some(time) => self.later.insert((time, rank)),
            None => self.ready.insert(rank),
        };
        self.known.insert(waiting.job_id, (waiting, due));
    }

    pub fn remove(&mut self, id: JobId) -> Option<Waiting> {
        let (waiting, due) = self.known.remove(&id)?;
        let rank = (waiting.priority, id);
        if let Some(time) = due {
            self.later.remove(&(time, rank));
        }
        self.ready.remove(&rank);
        Some(waiting)
    }

    /// Takes the next job that may start at `now` and whose lane is free.
    pub fn next(&mut self, now: Instant, is_free: &dyn Fn(&str) -> bool) -> Option<Waiting> {
        while let Some((time, rank)) = self.later.first().copied() {
            if time > now {
                break;
            }
            self.later.pop_first();
            self.ready.insert(rank);
        }
        let may_start = |rank: &&Rank| {
            let known = self.known.get(&rank.1);
            known.is_some_and(|(waiting, _)| is_free(&waiting.lane))
        };
        let (_, id) = self.ready.iter().find(may_start).copied()?;
        self.remove(id)
    }

    /// The first jobs that may start, in order.
    pub fn first(&self, count: usize) -> Vec<JobId> {
        self.ready.iter().take(count).map(|(_, id)| *id).collect()
    }

    /// When the next postponed job may start.
    pub fn next_due(&self) -> Option<Instant> {
        self.later.first().map(|(time, _)| *time)
    }

    /// Finds the bare disk that was dropped under this name.
    pub fn bare_disk(&self, name: &str) -> Option<JobId> {
        let mut entries = self.known.values();
        entries
            .find(|(waiting, _)| waiting.bare_disk.as_deref() == Some(name))
            .map(|e| e.0.job_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::VmName;

    fn waiting(priority: Priority) -> Waiting {
        Waiting {
            job_id: JobId::new(),
            vm_name: VmName::new("x").unwrap(),
            lane: String::new(),
            priority,
            not_before: None,
            bare_disk: None,
        }
    }

    #[test]
    fn priority_then_arrival_then_time() {
        let now = Instant::now();
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
        backlog.postpone(first.clone(), Duration::from_secs(5));
        assert_eq!(backlog.len(), 4);
        let mut order = Vec::new();
        while let Some(job) = backlog.next(now, &|_| true) {
            order.push(job.job_id);
        }
        assert_eq!(order, [high.job_id, second.job_id, low.job_id]);
        assert!(backlog.next_due().unwrap() >= now + Duration::from_secs(5));
        let later = now + Duration::from_secs(6);
        assert_eq!(
            backlog.next(later, &|_| true).map(|job| job.job_id),
            Some(first.job_id)
        );
        assert_eq!(backlog.len(), 0);
    }

    #[test]
    fn a_full_lane_holds_up_nobody_else() {
        let mut backlog = Backlog::default();
        let in_lane = |lane: &str| Waiting {
            lane: lane.to_owned(),
            ..waiting(Priority::Normal)
        };
        let [full, free] = ["full", "free"].map(in_lane);
        backlog.add(full.clone());
        backlog.add(free.clone());
        let now = Instant::now();
        let next = backlog.next(now, &|lane| lane != "full").unwrap();
        assert_eq!(next.job_id, free.job_id);
        assert!(backlog.next(now, &|lane| lane != "full").is_none());
        assert_eq!(backlog.next(now, &|_| true), Some(full));
    }
}
