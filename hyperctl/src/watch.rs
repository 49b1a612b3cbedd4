//! Waiting: looks at files again and again until something is so, or a limit has passed.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

use crate::outcome::{Exit, Result, Stop};

/// How often files are looked at; the daemon replaces a record at most twice a second.
pub const INTERVAL: Duration = Duration::from_millis(200);

/// A point in time after which waiting ends; without one it never does.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// `timeout` of zero, or none, means no limit.
    pub fn after(timeout: Option<Duration>) -> Self {
        let limited = timeout.filter(|timeout| !timeout.is_zero());
        Self(limited.and_then(|timeout| Instant::now().checked_add(timeout)))
    }

    pub fn has_passed(&self) -> bool {
        self.0.is_some_and(|end| Instant::now() >= end)
    }

    /// Sleeps for one interval, or to the end of the limit where that is nearer.
    pub fn pause(&self, interval: Duration) {
        let left = self.0.map_or(interval, |end| {
            end.saturating_duration_since(Instant::now()).min(interval)
        });
        std::thread::sleep(left);
    }
}

/// Calls `look` until it finds something; `None` means that the limit has passed.
pub fn until<T>(
    deadline: Deadline,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    loop {
        if let Some(found) = look()? {
            return Ok(Some(found));
        }
        if deadline.has_passed() {
            return Ok(None);
        }
        deadline.pause(INTERVAL);
    }
}

/// Ctrl-C, which ends the waiting instead of the program; pressed again it ends both.
#[derive(Debug, Clone)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From here on, in this thread and those that it starts.
    pub fn listen() -> Result<Self> {
        let fail = |errno| Stop::new(Exit::Failed, format!("listen for Ctrl-C: {errno}"));
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.thread_block().map_err(fail)?;
        let pressed = Arc::new(AtomicBool::new(false));
        let seen = pressed.clone();
        std::thread::spawn(move || {
            while signals.wait().is_ok() {
                if seen.swap(true, Ordering::Relaxed) {
                    std::process::exit(Exit::Interrupted as i32);
                }
            }
        });
        Ok(Self(pressed))
    }

    pub fn was_pressed(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Something done at most once per interval, however often the loop around it turns.
#[derive(Debug)]
pub struct Every {
    interval: Duration,
    last: Option<Instant>,
}

impl Every {
    pub fn new(interval: Duration) -> Self {
        Self {
            interval,
            last: None,
        }
    }

    /// Whether it is time; the first call always says so.
    pub fn is_due(&mut self) -> bool {
        let due = self.last.is_none_or(|last| last.elapsed() >= self.interval);
        if due {
            self.last = Some(Instant::now());
        }
        due
    }
}
