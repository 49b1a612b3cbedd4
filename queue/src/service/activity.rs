//! What a running job shows while it works, and what it is told.
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::job::record::ActiveJob;
use crate::job::{JobId, Phase};
use crate::spool::Job;

/// What a running job is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    GoOn,
    /// Somebody asked for its end.
    Cancel,
    /// The daemon stops: put the job back.
    Stop,
}

/// One running job, as the dispatcher and the heartbeat see it.
pub struct Activity {
    pub job_id: JobId,
    pub(super) lane: String,
    shown: Mutex<Shown>,
    pub(super) done_bytes: AtomicU64,
    pub(super) total_bytes: AtomicU64,
    command: AtomicU8,
    follows: AtomicBool,
    pub(super) pulse: Pulse,
}

struct Shown {
    vm_name: String,
    phase: Phase,
}

impl Activity {
    pub fn new(job: &Job) -> Arc<Self> {
        Arc::new(Self {
            job_id: job.id(),
            lane: job.memory.lane.clone(),
            shown: Mutex::new(Shown {
                vm_name: job.memory.vm_name.to_string(),
                phase: Phase::Settle,
            }),
            done_bytes: AtomicU64::new(0),
            total_bytes: AtomicU64::new(0),
            command: AtomicU8::new(0),
            follows: AtomicBool::new(false),
            pulse: Pulse::new(),
        })
    }

    pub fn command(&self) -> Command {
        match self.command.load(Ordering::Relaxed) {
            0 => Command::GoOn,
            1 => Command::Cancel,
            _ => Command::Stop,
        }
    }

    pub fn tell(&self, command: Command) {
        let number = match command {
            Command::GoOn => 0,
            Command::Cancel => 1,
            Command::Stop => 2,
        };
        if command == Command::Stop {
            // A cancellation that was acknowledged is not forgotten because the daemon stops.
            let (go_on, relaxed) = (0, Ordering::Relaxed);
            let _ = self
                .command
                .compare_exchange(go_on, number, relaxed, relaxed);
        } else {
            self.command.store(number, Ordering::Relaxed);
        }
    }

    /// Enters a phase; within it the job must move at least every `patience`.
    pub fn enter(&self, vm_name: &str, phase: Phase, patience: Duration) {
        let mut shown = lock(&self.shown);
        shown.vm_name = vm_name.to_owned();
        shown.phase = phase;
        self.pulse.beat(patience);
    }

    /// Within the phase, from now on.
    pub fn be_patient(&self, patience: Duration) {
        self.pulse.beat(patience);
    }

    pub fn is_stuck(&self, extra: Duration) -> bool {
        self.pulse.is_stuck(extra)
    }

    pub fn phase(&self) -> Phase {
        lock(&self.shown).phase
    }

    /// Its source still arrives, or does no longer.
    pub fn follow(&self, is_following: bool) {
        self.follows.store(is_following, Ordering::Relaxed);
    }

    /// Whether it waits for a source that still arrives more than it works.
    pub fn is_following(&self) -> bool {
        self.follows.load(Ordering::Relaxed)
    }

    pub fn show(&self) -> ActiveJob {
        let shown = lock(&self.shown);
        ActiveJob {
            job_id: self.job_id,
            vm_name: shown.vm_name.clone(),
            phase: shown.phase,
            percent: self.percent(),
        }
    }

    fn percent(&self) -> f64 {
        percent(
            self.done_bytes.load(Ordering::Relaxed),
            self.total_bytes.load(Ordering::Relaxed),
        )
    }
}

pub(super) fn percent(done_bytes: u64, total_bytes: u64) -> f64 {
    if total_bytes == 0 {
        return 0.0;
    }
    let percent = done_bytes as f64 * 100.0 / total_bytes as f64;
    (percent.min(100.0) * 10.0).round() / 10.0
}

/// The last sign of life of a thread, and how long it may be silent.
pub struct Pulse {
    born: Instant,
    last_millis: AtomicU64,
    patience_millis: AtomicU64,
}

impl Pulse {
    pub fn new() -> Self {
        Self {
            born: Instant::now(),
            last_millis: AtomicU64::new(0),
            patience_millis: AtomicU64::new(u64::from(u32::MAX)),
        }
    }

    pub fn beat(&self, patience: Duration) {
        let patience = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        self.patience_millis.store(patience, Ordering::Relaxed);
        self.keep();
    }

    /// Another sign of life, with the patience as it is.
    pub fn keep(&self) {
        self.last_millis.store(self.age_millis(), Ordering::Relaxed);
    }

    /// Whether the silence is longer than the patience and `extra` together.
    pub fn is_stuck(&self, extra: Duration) -> bool {
        let silent = self
            .age_millis()
            .saturating_sub(self.last_millis.load(Ordering::Relaxed));
        let extra = u64::try_from(extra.as_millis()).unwrap_or(u64::MAX);
        silent
            > self
                .patience_millis
                .load(Ordering::Relaxed)
                .saturating_add(extra)
    }

    fn age_millis(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Self::new()
    }
}

/// A lock that survives the panic of another thread: what it guards is only shown.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
