//! The reporter of one turn: counts what is done, keeps the job's record fresh, passes commands on.
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::activity::{Activity, Command, lock, percent};
use super::turn;
use crate::job::{Finding, Phase, Progress, Record};
use crate::spool::Job;

/// Records are replaced at most twice a second.
const RECORD_INTERVAL: Duration = Duration::from_millis(500);
/// The rate shown is the mean over this time.
const RATE_WINDOW: Duration = Duration::from_secs(10);

/// Watches one turn's work on behalf of whoever polls.
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
        turn::note_seconds(pen.job, ended, seconds);
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

    /// Changes what the record tells; pollers see it with the next progress.
    pub fn note(&self, change: impl FnOnce(&mut Record)) {
        change(&mut lock(&self.pen).job.record);
    }

    /// Does something with the job itself.
    pub fn with_job<T>(&self, act: impl FnOnce(&mut Job) -> T) -> T {
        act(lock(&self.pen).job)
    }

    /// `bytes` more are to be done than was known before.
    pub fn expect(&self, bytes: u64) {
        self.activity
            .total_bytes
            .fetch_add(bytes, Ordering::Relaxed);
    }

    /// `bytes` more are done; 0 says that other work goes on.
    pub fn advance(&self, bytes: u64) {
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

    /// `bytes` were done by an earlier attempt: they count, but tell nothing of the speed.
    pub fn resume(&self, bytes: u64) {
        let done_bytes = self.activity.done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let mut pen = lock(&self.pen);
        pen.resumed_bytes = pen.resumed_bytes.saturating_add(bytes);
        pen.window = VecDeque::from([(Instant::now(), done_bytes)]);
        self.save(&mut pen, done_bytes);
    }

    /// The source still arrives, or does no longer.
    pub fn follow(&self, is_following: bool) {
        self.activity.follow(is_following);
    }

    /// Whether the work is to end, for whatever reason.
    pub fn is_cancelled(&self) -> bool {
        self.activity.command() != Command::GoOn
    }

    /// Whether that end is a pause: the work will be gone on with.
    pub fn is_paused(&self) -> bool {
        self.activity.command() == Command::Stop
    }

    /// A line for whoever looks into the job's log.
    pub fn tell(&self, line: &str) {
        super::log::say(lock(&self.pen).job, line);
    }

    /// Something was found of the guest: the record tells it at once.
    pub fn find(&self, finding: &Finding) {
        let mut pen = lock(&self.pen);
        if !pen.job.record.findings.contains(finding) {
            pen.job.record.findings.push(finding.clone());
            let _ = pen.job.save_record(false);
        }
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
