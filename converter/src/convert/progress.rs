//! What the observer is told of the pipeline's work.
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::disk::{Observer, Waiter};
use crate::error::{Error, ErrorKind, Result};

/// Reports work done, never more in total than was announced.
pub(super) struct Work<'a> {
    pub observer: &'a dyn Observer,
    left_bytes: AtomicU64,
    announced_bytes: AtomicU64,
    /// A thread failed: the others stop at once.
    pub failed: AtomicBool,
}

impl<'a> Work<'a> {
    /// `announced_bytes` were announced.
    pub fn new(observer: &'a dyn Observer, announced_bytes: u64) -> Self {
        Self {
            observer,
            left_bytes: AtomicU64::new(announced_bytes),
            announced_bytes: AtomicU64::new(announced_bytes),
            failed: AtomicBool::new(false),
        }
    }

    /// False: another thread failed, its error is the one to tell.
    pub fn go_on(&self) -> Result<bool> {
        if self.observer.is_cancelled() {
            return Err(Error::new(
                ErrorKind::Cancelled,
                "the conversion was cancelled",
            ));
        }
        Ok(!self.failed.load(Ordering::Relaxed))
    }

    /// Work of an earlier attempt.
    pub fn resume(&self, bytes: u64) {
        let left_bytes = self.left_bytes.load(Ordering::Relaxed);
        let bytes = bytes.min(left_bytes);
        self.left_bytes.store(left_bytes - bytes, Ordering::Relaxed);
        if bytes > 0 {
            self.observer.resume(bytes);
        }
    }

    pub fn advance(&self, bytes: u64) {
        let mut done = 0;
        // The closure always returns Some, so the update cannot fail.
        let _ = self
            .left_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                done = bytes.min(left);
                Some(left - done)
            });
        if done > 0 {
            self.observer.advance(done);
        }
    }
}

/// Of a file that still arrives, more is announced as it comes.
impl Waiter for Work<'_> {
    fn go_on(&self, arrived_bytes: u64) -> Result<bool> {
        let before = self
            .announced_bytes
            .fetch_max(arrived_bytes, Ordering::Relaxed);
        let more_bytes = arrived_bytes.saturating_sub(before);
        if more_bytes > 0 {
            self.left_bytes.fetch_add(more_bytes, Ordering::Relaxed);
            self.observer.expect(more_bytes);
        }
        // Waiting is no work: the watchdog must see that it goes on.
        self.observer.advance(0);
        self.go_on()
    }
}
