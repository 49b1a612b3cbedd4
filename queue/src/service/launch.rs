//! Starting turns while there are slots, and what becomes of jobs when their turns end.
use std::time::{Duration, Instant, SystemTime};

use crate::arrival::Gathered;
use crate::job::JobId;
use crate::job::record::DaemonState;
use crate::spool::recover::Waiting;
use crate::spool::{Fate, Hold, Job};

use super::activity::Activity;
use super::dispatch::{Dispatcher, Message};
use super::log;
use super::work::Outcome;
use crate::error::{Error, ErrorKind, Result};

/// Whose positions are told: a long queue's end moves too slowly for anyone to watch.
const POSITIONS: usize = 32;
/// How soon a job is tried again when the queue itself could not be written.
const AFTER_TROUBLE: Duration = Duration::from_secs(5);
const POSITIONS_INTERVAL: Duration = Duration::from_secs(2);

impl Dispatcher {
    pub(super) fn has_slot(&self) -> bool {
        let mut running = self.active.values().map(|activity| &**activity);
        matches!(self.state, DaemonState::Running | DaemonState::Draining)
            && self.work.has_room(&mut running)
    }

    pub(super) fn start_some(&mut self) {
        let now = Instant::now();
        while self.has_slot() {
            self.board.pulse.keep();
            let (active, work) = (&self.active, &self.work);
            let is_free = |lane: &str| {
                let running = active.values().filter(|activity| activity.lane == lane);
                running.count() < work.lane_limit(lane)
            };
            let Some(waiting) = self.backlog.next(now, &is_free) else {
                break;
            };
            if let Err(error) = self.start(&waiting) {
                let job_id = waiting.job_id;
                tracing::error!(%job_id, "cannot be started: {}", error.to_line());
                self.postpone(waiting);
            }
        }
        self.show();
    }

    /// Tells the first of those that wait where they stand, as often as the heart beats.
    pub(super) fn tell_positions(&mut self) {
        if self.told_positions.elapsed() < POSITIONS_INTERVAL {
            return;
        }
        self.told_positions = Instant::now();
        for (index, id) in self.backlog.first(POSITIONS).into_iter().enumerate() {
            if let Err(error) = self.spool.tell_position(id, index as u64 + 1) {
                tracing::debug!(job_id = %id, "{error}");
            }
        }
    }

    fn start(&mut self, waiting: &Waiting) -> Result<()> {
        // Busy: another converter works on it. Over: it was finished meanwhile.
        let Hold::Job(mut job) = self.spool.hold(waiting.job_id)? else {
            self.arrivals.release(waiting.job_id);
            return Ok(());
        };
        if job
            .not_before()
            .is_some_and(|time| time > SystemTime::now())
        {
            self.backlog.add(Waiting::from(&*job));
            return Ok(());
        }
        match self.gather(&mut job) {
            Ok(Gathered::Whole) => {}
            Ok(Gathered::Missing {
                overdue: false,
                names,
            }) => {
                if job.record.waits_for.is_empty() {
                    log::say(&mut job, &format!("waits for {}", names.join(", ")));
                }
                job.tell_missing(&names)?;
                self.postpone(Waiting::from(&*job));
                return Ok(());
            }
            Ok(Gathered::Missing { names, .. }) => {
                let error = Error::new(
                    ErrorKind::Corrupt,
                    format!(
                        "{} names {}, which never came whole",
                        job.memory.drop,
                        names.join(", ")
                    ),
                )
                .with_remedy("put the missing files beside it, then `hyperctl retry`");
                self.arrivals.release(job.id());
                log::fail(&mut job, &error);
                let fate = job.fail(&error)?;
                self.count(&fate);
                return Ok(());
            }
            // What an owner's text gets wrong, the turn says in full.
            Err(_) => {}
        }
        self.spawn(job)
    }

    fn spawn(&mut self, job: Box<Job>) -> Result<()> {
        let id = job.id();
        self.arrivals.release(id);
        let activity = Activity::new(&job);
        self.active.insert(id, activity.clone());
        let (work, sender) = (self.work.clone(), self.sender.clone());
        let spawned = std::thread::Builder::new()
            .name(format!("turn-{id}"))
            .spawn(move || {
                let turn = || work.turn(job, &activity);
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(turn));
                let outcome = outcome.unwrap_or_else(|_| {
                    Outcome::Trouble(Error::new(ErrorKind::Internal, "the worker panicked"))
                });
                // The dispatcher outlives every turn.
                let _ = sender.send(Message::Done(id, outcome));
            });
        if let Err(error) = spawned {
            self.active.remove(&id);
            return Err(Error::new(ErrorKind::Internal, "start a thread").with_source(error));
        }
        Ok(())
    }

    pub(super) fn finish(&mut self, id: JobId, outcome: Outcome) {
        self.active.remove(&id);
        match outcome {
            Outcome::Published {
                bytes_in,
                bytes_out,
            } => {
                self.board.update(|shown| {
                    shown.totals.completed += 1;
                    shown.totals.bytes_in += bytes_in;
                    shown.totals.bytes_out += bytes_out;
                });
                // Its import may wait for this.
                self.requests_due = true;
            }
            Outcome::Failed(fate) => {
                self.count(&fate);
                if matches!(fate, Fate::Retried { .. } | Fate::Publishing) {
                    self.hold_again(id);
                }
            }
            Outcome::Stopped => {}
            Outcome::NameTaken(waiting) => self.postpone(waiting),
            Outcome::Trouble(error) => {
                tracing::error!(job_id = %id, "left to recovery: {}", error.to_line());
                self.hold_again(id);
            }
        }
        self.show();
    }

    /// A turn that ended without ending its job: look at it in a while, not at once, since what
    /// was wrong with the queue (a full disk, for one) is wrong for a while.
    pub(super) fn hold_again(&mut self, id: JobId) {
        match self.spool.hold(id) {
            Ok(Hold::Job(job)) => self.backlog.postpone(Waiting::from(&*job), AFTER_TROUBLE),
            Ok(Hold::Busy | Hold::Over) => {}
            Err(error) => tracing::warn!(job_id = %id, "{error}; it is tried again"),
        }
    }
}
