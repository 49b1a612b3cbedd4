//! Claims: what arrived becomes jobs, what cannot be claimed is told.
use std::time::{Duration, Instant};

use crate::arrival::Arrival;
use crate::job::JobId;
use crate::job::record::DaemonState;
use crate::spool::recover::Waiting;
use crate::spool::{Drop, DropKind, Fate, Hold, Job};

use super::dispatch::Dispatcher;
use super::log;
use crate::error::{Error, Result};

/// Claimed jobs that may start; beyond it, disks wait in the queue directory under their own names.
const BACKLOG_MAX: usize = 512;
/// Claims between two looks at the messages.
const CLAIMS_AT_ONCE: usize = 16;
/// How many drops a look at the queue directory brings at most.
const REFILL: usize = 128;
/// How often a converter that seems to be alone looks whether it is.
const PEERS_INTERVAL: Duration = Duration::from_millis(100);

impl Dispatcher {
    pub(super) fn claim_some(&mut self) {
        if self.arrivals.needs_scan()
            && let Err(error) = self.arrivals.scan()
        {
            tracing::error!("the queue cannot be read: {}", error.to_line());
        }
        if self.claimable.is_empty() {
            // A look at what is pending costs a stat of each: not for the sake of a single slot.
            let room = BACKLOG_MAX.saturating_sub(self.backlog.ready());
            let limit = if room >= REFILL { REFILL } else { 0 };
            let ready = self.arrivals.ready(limit);
            self.claimable.extend(ready);
        }
        for _ in 0..CLAIMS_AT_ONCE {
            // Whoever writes these overwrites them: they never wait behind a long queue.
            for name in crate::job::manifest::FIXED_NAMES {
                if self.arrivals.is_pending(name) {
                    self.claim_again(name);
                }
            }
            let Some(Arrival::Whole(drop) | Arrival::Refused(drop, _)) = self.claimable.pop_front()
            else {
                break;
            };
            // Draining claims nothing more, except what the next of its name would overwrite.
            if self.state != DaemonState::Draining || is_fixed_name(&drop) {
                self.claim_again(&drop.name);
            }
        }
        self.show();
    }

    /// Claims a drop if it still is whole: it may have been overwritten since it was found so.
    fn claim_again(&mut self, name: &str) {
        self.board.pulse.keep();
        let (drop, refusal) = match self.arrivals.again(name) {
            None => return,
            Some(Arrival::Whole(drop)) => (drop, None),
            Some(Arrival::Refused(drop, error)) => (drop, Some(error)),
        };
        if drop.kind == DropKind::Disk && drop.owned.is_empty() && self.is_owned_elsewhere(name) {
            return;
        }
        match self.spool.claim(&drop) {
            Ok(None) => {}
            Ok(Some(id)) => {
                if let Err(error) = self.claimed(id, &drop, refusal) {
                    tracing::error!(job_id = %id, "left to recovery: {}", error.to_line());
                }
            }
            Err(error) => {
                let text = format!("cannot be claimed: {}", error.to_line());
                self.complain(&drop.name, &text);
                // What was taken all the same is recovery's, and no failure.
                if let Err(error) = self.spool.complain(&drop, &error) {
                    tracing::error!("{}: {error}", drop.name);
                }
            }
        }
    }

    /// Whether a job that another converter claimed owns this disk: that one's to take. Judged for
    /// every claim once a second converter was met, and now and then before.
    fn is_owned_elsewhere(&mut self, name: &str) -> bool {
        let recently = |then: Instant| then.elapsed() < PEERS_INTERVAL;
        if !self.has_peers && self.peers_looked_for.is_some_and(recently) {
            return false;
        }
        self.peers_looked_for = Some(Instant::now());
        let (backlog, active) = (&self.backlog, &self.active);
        let known = |id| backlog.contains(id) || active.contains_key(&id);
        match self.arrivals.owned_elsewhere(&self.spool, &known) {
            Ok(owned) => {
                self.has_peers = owned.is_some();
                owned.is_some_and(|owned| owned.contains(name))
            }
            Err(error) => {
                tracing::debug!("{error}");
                false
            }
        }
    }

    fn claimed(&mut self, id: JobId, drop: &Drop, refusal: Option<Error>) -> Result<()> {
        self.arrivals.forget(drop);
        self.complaints.remove(&drop.name);
        let vm_name = drop.vm_name.as_str();
        tracing::info!(job_id = %id, vm_name, phase = "settle", "{vm_name}: claimed {}", drop.name);
        let Hold::Job(mut job) = self.spool.hold(id)? else {
            return Ok(());
        };
        let Some(error) = refusal else {
            self.gather_early(&mut job);
            self.backlog.add(Waiting::from(&*job));
            return Ok(());
        };
        log::fail(&mut job, &error);
        let fate = job.fail(&error)?;
        self.count(&fate);
        if matches!(fate, Fate::Retried { .. }) {
            self.hold_again(id);
        }
        Ok(())
    }

    /// Adds a job that a sweep found; what it owns is kept from becoming jobs.
    pub(super) fn enlist(&mut self, waiting: Waiting) {
        if waiting.bare_disk.is_none()
            && let Ok(Hold::Job(mut job)) = self.spool.hold(waiting.job_id)
        {
            self.gather_early(&mut job);
        }
        self.backlog.add(waiting);
    }

    /// Brings together what is there of a job that has to wait for its turn.
    fn gather_early(&mut self, job: &mut Job) {
        if let Err(error) = self.arrivals.gather(job) {
            // Its turn will say so in full.
            tracing::debug!(job_id = %job.id(), "{error}");
        }
    }

    /// Says something about a drop once, not at every scan.
    pub(super) fn complain(&mut self, name: &str, text: &str) {
        if self.complaints.get(name).map(String::as_str) != Some(text) {
            tracing::error!("{name}: {text}");
            self.complaints.insert(name.to_owned(), text.to_owned());
        }
    }
}

fn is_fixed_name(drop: &Drop) -> bool {
    crate::job::manifest::FIXED_NAMES.contains(&drop.name.as_str())
}
