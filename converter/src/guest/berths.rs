//! How many guests are worked on at once in this process: an appliance or a proof takes about two
//! cores and a gigabyte. Whoever waits holds up nobody's copying.
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::disk::Observer;
use crate::error::{Error, ErrorKind, Result};

static TAKEN: Mutex<usize> = Mutex::new(0);
static LEFT: Condvar = Condvar::new();
const TICK: Duration = Duration::from_millis(500);
const CORES_EACH: usize = 2;

/// A place among those that are worked on, until it is dropped.
pub struct Berth(());

impl Berth {
    /// How many there are.
    pub fn count() -> usize {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        (cores / CORES_EACH).max(1)
    }

    /// Waits for a place; ends as `cancelled` if the observer says so.
    pub fn take(observer: &dyn Observer) -> Result<Self> {
        let count = Self::count();
        let mut taken = lock();
        while *taken >= count {
            let waited = LEFT.wait_timeout(taken, TICK);
            drop(waited);
            observer.advance(0);
            if observer.is_cancelled() {
                return Err(Error::new(ErrorKind::Cancelled, "wait for an appliance"));
            }
            taken = lock();
        }
        *taken += 1;
        Ok(Self(()))
    }
}

fn lock() -> MutexGuard<'static, usize> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Berth {
    fn drop(&mut self) {
        let mut taken = lock();
        *taken = taken.saturating_sub(1);
        LEFT.notify_one();
    }
}
