//! What the observer is told of the pipeline's work.
use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk::Observer;

/// Reports work done, never more in total than was announced.
pub(super) struct Work<'a> {
    pub observer: &'a dyn Observer,
    pub left_bytes: AtomicU64,
}

impl Work<'_> {
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
