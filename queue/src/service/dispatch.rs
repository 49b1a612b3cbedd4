//! The dispatcher: one thread that claims what arrives, starts turns, and obeys requests.
//!
//! It alone decides; the watcher, the workers and the signals only send it messages.
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use crate::arrival::watch::Hint;
use crate::arrival::{Arrival, Arrivals, Intake, Terms};
use crate::error::Result;
use crate::instance::Instance;
use crate::job::JobId;
use crate::job::record::DaemonState;
use crate::spool::recover::{self, Waiting};
use crate::spool::{Fate, Policy, Spool};

use super::activity::{Activity, Command, lock};
use super::backlog::Backlog;
use super::board::Board;
use super::work::{Outcome, Service, Work};

/// What the dispatcher is told.
pub enum Message {
    Hint(Hint),
    Done(JobId, Outcome),
    /// Libvirt has answered; whether its answer could be kept.
    Imported(bool),
    /// New configuration for the jobs to come.
    Reload(Box<Service>),
    Stop,
}

/// How soon drops are looked at again while something moves, and while nothing does.
const SETTLE_TICK: Duration = Duration::from_millis(100);
const QUIET_TICK: Duration = Duration::from_secs(1);
/// After the last hint, drops are expected to become whole within the settle time and this.
const SETTLE_MARGIN: Duration = Duration::from_secs(3);
/// How soon a job is tried again whose name is taken or whose disks are missing.
const POSTPONE: Duration = Duration::from_secs(1);
/// The longest silence of a healthy dispatcher.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL_NETWORK: Duration = Duration::from_secs(2);

pub struct Dispatcher {
    pub(super) spool: Spool,
    pub(super) arrivals: Arrivals,
    pub(super) backlog: Backlog,
    pub(super) board: Arc<Board>,
    pub(super) active: HashMap<JobId, Arc<Activity>>,
    pub(super) state: DaemonState,
    pub(super) instance: Instance,
    pub(super) work: Arc<dyn Work>,
    pub(super) claimable: VecDeque<Arrival>,
    /// What was already said about drops that cannot be claimed.
    pub(super) complaints: HashMap<String, String>,
    pub(super) sender: Sender<Message>,
    receiver: Receiver<Message>,
    unread_hints: Arc<AtomicUsize>,
    network: bool,
    last_scan: Instant,
    pub(super) told_positions: Instant,
    last_hint: Instant,
    pub(super) requests_due: bool,
    /// Whether libvirt is being told of a result.
    pub(super) is_importing: bool,
    /// Whether another converter's jobs were met in this queue, and when they were looked for.
    pub(super) has_peers: bool,
    pub(super) peers_looked_for: Option<Instant>,
}

impl Dispatcher {
    pub fn new(
        service: Service,
        spool: Spool,
        board: Arc<Board>,
        channel: (Sender<Message>, Receiver<Message>, Arc<AtomicUsize>),
    ) -> Result<Self> {
        let Service {
            instance,
            intake,
            work,
        } = service;
        let network = crate::instance::is_network(&instance.directories.queue)?;
        let arrivals = Arrivals::new(spool.directories.clone(), terms(&instance, intake, network));
        let state = spool.state()?;
        if state != DaemonState::Running {
            tracing::warn!("{state:?} since before the start; `hyperctl resume` takes up work");
        }
        let now = Instant::now();
        Ok(Self {
            spool,
            arrivals,
            backlog: Backlog::default(),
            board,
            active: HashMap::new(),
            state,
            instance,
            work,
            claimable: VecDeque::new(),
            complaints: HashMap::new(),
            sender: channel.0,
            receiver: channel.1,
            unread_hints: channel.2,
            network,
            last_scan: now,
            told_positions: now,
            last_hint: now,
            requests_due: true,
            is_importing: false,
            has_peers: false,
            peers_looked_for: None,
        })
    }

    /// Recovers, then looks at everything that is there.
    pub fn look(&mut self) -> Result<()> {
        self.last_scan = Instant::now();
        let (backlog, active) = (&self.backlog, &self.active);
        let pulse = &self.board.pulse;
        let known = |id| {
            // A long queue takes a while; each step of it is a sign of life.
            pulse.keep();
            backlog.contains(id) || active.contains_key(&id)
        };
        let swept = recover::sweep(&self.spool, &known)?;
        for (job, error) in swept.errors {
            let job_id = job.map(|id| id.to_string()).unwrap_or_default();
            tracing::warn!(job_id, "recovery, to be tried again: {}", error.to_line());
        }
        for id in swept.finished {
            tracing::info!(job_id = %id, "recovery: finished what an earlier process began");
        }
        for waiting in swept.waiting {
            self.board.pulse.keep();
            self.enlist(waiting);
        }
        for path in self.arrivals.scan()? {
            let name = path.to_string_lossy().into_owned();
            self.complain(&name, "the file name is not UTF-8; rename the file");
        }
        // A look at a slow network file system is not followed by the next at once.
        self.last_scan = Instant::now();
        self.requests_due = true;
        self.show();
        Ok(())
    }

    /// Works until told to stop, and until the last turn has ended.
    pub fn run(mut self) {
        while self.state != DaemonState::Stopping || !self.active.is_empty() {
            self.board.pulse.beat(PATIENCE);
            self.listen();
            if self.state == DaemonState::Stopping {
                continue;
            }
            if self.last_scan.elapsed() >= self.scan_interval()
                && let Err(error) = self.look()
            {
                tracing::error!("the queue cannot be read: {}", error.to_line());
            }
            if self.requests_due {
                self.requests_due = false;
                self.obey();
            }
            self.claim_some();
            self.start_some();
            self.tell_positions();
        }
        self.show();
    }

    fn scan_interval(&self) -> Duration {
        let rescan = Duration::from_secs(self.instance.config.rescan_seconds);
        if self.network {
            rescan.min(POLL_NETWORK)
        } else {
            rescan
        }
    }

    /// Waits for messages as long as there is nothing to do, then takes all there are.
    fn listen(&mut self) {
        let mut wait = self.patience();
        loop {
            match self.receiver.recv_timeout(wait) {
                Ok(message) => self.heed(message),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
            wait = Duration::ZERO;
        }
    }

    fn patience(&self) -> Duration {
        if self.state == DaemonState::Stopping {
            return QUIET_TICK;
        }
        if !self.claimable.is_empty() || self.requests_due {
            return Duration::ZERO;
        }
        let mut wait = self
            .scan_interval()
            .saturating_sub(self.last_scan.elapsed());
        if self.arrivals.waiting() > 0 {
            let settle = Duration::from_secs(self.instance.config.settle_seconds.unwrap_or(2));
            let moving = self.last_hint.elapsed() < settle + SETTLE_MARGIN;
            wait = wait.min(if moving { SETTLE_TICK } else { QUIET_TICK });
        }
        if let Some(due) = self.backlog.next_due()
            && self.has_slot()
        {
            wait = wait.min(due.saturating_duration_since(Instant::now()));
        }
        wait.min(PATIENCE / 4)
    }

    fn heed(&mut self, message: Message) {
        match message {
            Message::Hint(hint) => {
                self.unread_hints.fetch_sub(1, Ordering::Relaxed);
                self.last_hint = Instant::now();
                match hint {
                    Hint::Moved(name) => self.arrivals.moved_in(&name),
                    Hint::Touched(name) => self.arrivals.touched(&name),
                    Hint::Control => self.requests_due = true,
                    Hint::Rescan => self.scan_soon(),
                }
            }
            Message::Done(id, outcome) => self.finish(id, outcome),
            Message::Imported(is_kept) => {
                self.is_importing = false;
                self.requests_due |= is_kept;
            }
            Message::Reload(service) => self.reload(*service),
            Message::Stop => {
                self.state = DaemonState::Stopping;
                for activity in self.active.values() {
                    activity.tell(Command::Stop);
                }
                self.show();
            }
        }
    }

    /// Makes the next look at the whole queue due.
    pub(super) fn scan_soon(&mut self) {
        let long_ago = Instant::now().checked_sub(self.scan_interval());
        self.last_scan = long_ago.unwrap_or(self.last_scan);
    }

    pub(super) fn reload(&mut self, service: Service) {
        let Service {
            mut instance,
            intake,
            work,
        } = service;
        if instance.directories != self.instance.directories {
            tracing::warn!("directories change only with a restart; the rest is reloaded");
            instance.directories = self.instance.directories.clone();
        }
        self.spool.policy = Arc::new(Policy::of(&instance));
        self.work = work;
        self.arrivals
            .set_terms(terms(&instance, intake, self.network));
        self.instance = instance;
        tracing::info!("configuration reloaded; running jobs go on with the earlier one");
    }

    pub(super) fn count(&self, fate: &Fate) {
        use crate::job::JobState;
        self.board.update(|shown| match fate {
            Fate::Retried { .. } => shown.totals.retried += 1,
            Fate::Ended(JobState::Cancelled) => shown.totals.cancelled += 1,
            Fate::Ended(_) => shown.totals.failed += 1,
            Fate::Publishing => {}
        });
    }

    pub(super) fn postpone(&mut self, waiting: Waiting) {
        self.backlog.postpone(waiting, POSTPONE);
    }

    /// Puts the dispatcher's view on the board.
    pub(super) fn show(&self) {
        let unclaimed = match self.state {
            // Those are nobody's to finish now.
            DaemonState::Draining => 0,
            _ => self.claimable.len() + self.arrivals.waiting() + self.arrivals.beyond(),
        };
        let depth = (self.backlog.len() + unclaimed) as u64;
        let mut shown = lock(&self.board.shown);
        let changed = shown.state != self.state || shown.active.len() != self.active.len();
        shown.state = self.state;
        shown.queue_depth = depth;
        if changed
            || shown
                .active
                .iter()
                .any(|job| !self.active.contains_key(&job.job_id))
        {
            shown.active = self.active.values().cloned().collect();
            shown.active.sort_by_key(|activity| activity.job_id);
            drop(shown);
            self.board.changed.notify_one();
        }
    }
}

fn terms(instance: &Instance, intake: Intake, network: bool) -> Terms {
    let settle = instance.config.settle_seconds;
    Terms {
        intake,
        settle: Duration::from_secs(settle.unwrap_or(if network { 10 } else { 2 })),
        incomplete_timeout: Duration::from_secs(instance.config.incomplete_timeout),
        network,
        source_roots: instance.config.source_roots.clone(),
    }
}
