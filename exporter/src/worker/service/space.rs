//! Room for downloads: what running exports will still write counts as taken.
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::error::{Error, ErrorKind, Result};

/// The reservations of all running exports.
#[derive(Default)]
pub struct Space {
    reserved: Mutex<Vec<Weak<Reservation>>>,
}

/// Bytes of one file system, until it is dropped.
pub struct Reservation {
    device: u64,
    left_bytes: AtomicU64,
}

impl Space {
    /// Reserves `bytes` of the file system of `queue`, or fails as `no_space`.
    pub fn reserve(&self, queue: &Path, bytes: u64) -> Result<Arc<Reservation>> {
        let device = std::fs::metadata(queue)
            .map_err(|error| Error::io("stat", queue, error))?
            .dev();
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        reserved.retain(|other| other.strong_count() > 0);
        let others = reserved.iter().filter_map(Weak::upgrade);
        let promised_bytes: u64 = others
            .filter(|other| other.device == device)
            .map(|other| other.left_bytes.load(Ordering::Relaxed))
            .fold(0, u64::saturating_add);
        let free_bytes = queue::instance::free_bytes(queue)?;
        if free_bytes.saturating_sub(promised_bytes) < bytes {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "{} has {free_bytes} bytes free, {promised_bytes} of them for other exports, \
                     and this one needs {bytes}",
                    queue.display()
                ),
            )
            .with_remedy("free space there, or point the instance's watch_dir to a larger one"));
        }
        let reservation = Arc::new(Reservation {
            device,
            left_bytes: AtomicU64::new(bytes),
        });
        reserved.push(Arc::downgrade(&reservation));
        Ok(reservation)
    }
}

impl Reservation {
    /// So much of it is written, and no longer counts as free anyway.
    pub fn consume(&self, bytes: u64) {
        let spend = |left: u64| Some(left.saturating_sub(bytes));
        // The closure never refuses.
        let _ = self
            .left_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_will_write_is_not_free() {
        let top = tempfile::tempdir().unwrap();
        let free_bytes = queue::instance::free_bytes(top.path()).unwrap();
        let space = Space::default();
        let most = free_bytes / 4 * 3;
        let first = space.reserve(top.path(), most).unwrap();
        let Err(error) = space.reserve(top.path(), most) else {
            panic!("reserved twice");
        };
        assert_eq!(error.kind, ErrorKind::NoSpace);
        first.consume(most);
        let second = space.reserve(top.path(), most).unwrap();
        drop((first, second));
        assert!(space.reserve(top.path(), most).is_ok());
    }
}
