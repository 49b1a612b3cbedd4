//! What a running job shows while it works, and what it is told: the observer of its conversion.
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use queue::job::record::ActiveJob;
use queue::job::{JobId, Phase, Progress};
use queue::spool::Job;

use crate::disk::Observer;

/// Records are replaced at most twice a second.
const RECORD_INTERVAL: Duration = Duration::from_millis(500);
/// The rate shown is the mean over this time.
const RATE_WINDOW: Duration = Duration::from_secs(10);

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
    shown: Mutex<Shown>,
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
    command: AtomicU8,
    pulse: Pulse,
}

struct Shown {
    vm_name: String,
    phase: Phase,
}

impl Activity {
    pub fn new(job: &Job) -> Arc<Self> {
        Arc::new(Self {
            job_id: job.id(),
            shown: Mutex::new(Shown {
                vm_name: job.memory.vm_name.to_string(),
                phase: Phase::Settle,
            }),
            done_bytes: AtomicU64::new(0),
            total_bytes: AtomicU64::new(0),
            command: AtomicU8::new(0),
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

    /// Whether its guest is repaired or proven: that holds up nobody's copying.
    pub fn is_in_care(&self) -> bool {
        matches!(lock(&self.shown).phase, Phase::Repair | Phase::Prove)
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

fn percent(done_bytes: u64, total_bytes: u64) -> f64 {
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

/// The observer of one conversion: counts, keeps the record fresh, and passes commands on.
pub struct Reporter<'a> {
    activity: &'a Activity,
    pen: Mutex<Pen<'a>>,
}

struct Pen<'a> {
    job: &'a mut Job,
    saved: Instant,
    /// When its phase began.
    entered: Instant,
    /// The disk that is being worked on, from 1, and how many there are.
    disk: (u32, u32),
    /// Done by an earlier attempt.
    resumed_bytes: u64,
    /// Moments and the bytes done by then, oldest first.
    window: VecDeque<(Instant, u64)>,
}

impl<'a> Reporter<'a> {
    pub fn new(activity: &'a Activity, job: &'a mut Job, total_bytes: u64, disks: usize) -> Self {
        activity.total_bytes.store(total_bytes, Ordering::Relaxed);
        activity.done_bytes.store(0, Ordering::Relaxed);
        let now = Instant::now();
        let pen = Pen {
            job,
            // The first advance writes the record, so that pollers see the work begin.
            saved: now.checked_sub(RECORD_INTERVAL).unwrap_or(now),
            entered: now,
            disk: (0, u32::try_from(disks).unwrap_or(u32::MAX)),
            resumed_bytes: 0,
            window: VecDeque::from([(now, 0)]),
        };
        Self {
            activity,
            pen: Mutex::new(pen),
        }
    }

    /// Notes how long the phase took so far.
    pub fn end_phase(&self) {
        let mut pen = lock(&self.pen);
        let seconds = pen.entered.elapsed().as_secs_f64();
        pen.entered = Instant::now();
        let ended = pen.job.record.phase;
        super::turn::note_seconds(pen.job, ended, seconds);
    }

    /// Ends the phase and enters a further one.
    pub fn enter(&self, phase: Phase, patience: Duration) {
        self.end_phase();
        let mut pen = lock(&self.pen);
        pen.job.record.phase = phase;
        let vm_name = pen.job.memory.vm_name.to_string();
        self.activity.enter(&vm_name, phase, patience);
        let _ = pen.job.save_record(false);
    }

    /// The next disk is begun, counted from 1.
    pub fn enter_disk(&self, number: usize) {
        let done_bytes = self.activity.done_bytes.load(Ordering::Relaxed);
        let mut pen = lock(&self.pen);
        pen.disk.0 = u32::try_from(number).unwrap_or(u32::MAX);
        self.save(&mut pen, done_bytes);
    }

    fn save(&self, pen: &mut Pen<'_>, done_bytes: u64) {
        pen.saved = Instant::now();
        let total_bytes = self.activity.total_bytes.load(Ordering::Relaxed);
        pen.job.record.progress = pen.progress(done_bytes, total_bytes);
        // Progress is a courtesy: a full disk is found out by the conversion itself.
        let _ = pen.job.save_record(false);
    }
}

impl Observer for Reporter<'_> {
    fn expect(&self, bytes: u64) {
        self.activity
            .total_bytes
            .fetch_add(bytes, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        let done_bytes = self.activity.done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.activity.pulse.keep();
        // Whoever finds the pen taken leaves the writing to its holder.
        let Ok(mut pen) = self.pen.try_lock() else {
            return;
        };
        if pen.saved.elapsed() < RECORD_INTERVAL {
            return;
        }
        self.save(&mut pen, done_bytes);
    }

    fn resume(&self, bytes: u64) {
        let done_bytes = self.activity.done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let mut pen = lock(&self.pen);
        pen.resumed_bytes = pen.resumed_bytes.saturating_add(bytes);
        pen.window = VecDeque::from([(Instant::now(), done_bytes)]);
        self.save(&mut pen, done_bytes);
    }

    fn is_cancelled(&self) -> bool {
        self.activity.command() != Command::GoOn
    }

    fn is_paused(&self) -> bool {
        self.activity.command() == Command::Stop
    }

    fn tell(&self, line: &str) {
        super::log::say(lock(&self.pen).job, line);
    }
}

impl Pen<'_> {
    fn progress(&mut self, done_bytes: u64, total_bytes: u64) -> Progress {
        let now = Instant::now();
        self.window.push_back((now, done_bytes));
        while self.window.len() > 2
            && self
                .window
                .front()
                .is_some_and(|(then, _)| now - *then > RATE_WINDOW)
        {
            self.window.pop_front();
        }
        let (then, before) = self.window.front().copied().unwrap_or((now, 0));
        let seconds = (now - then).as_secs_f64();
        let moved = done_bytes.saturating_sub(before) as f64;
        let rate = if seconds > 0.0 { moved / seconds } else { 0.0 };
        let left = total_bytes.saturating_sub(done_bytes) as f64;
        Progress {
            bytes_done: done_bytes,
            bytes_total: total_bytes,
            percent: percent(done_bytes, total_bytes),
            rate_bytes_per_second: rate as u64,
            eta_seconds: (rate >= 1.0).then(|| (left / rate).ceil() as u64),
            resumed_bytes: self.resumed_bytes,
            disk: self.disk.0,
            disks: self.disk.1,
        }
    }
}

/// A lock that survives the panic of another thread: what it guards is only shown.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
