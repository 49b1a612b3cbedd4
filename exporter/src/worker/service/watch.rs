//! The monitor of one export: its progress per disk into the job's record.
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use queue::service::Reporter;

use super::space::Reservation;
use crate::transfer::Monitor;

/// No disk is being fetched, or one that the VM's description does not know.
const NONE: usize = usize::MAX;

/// Watches a whole export, or one of its disks when several are fetched at once.
pub struct Watch<'a, 'job> {
    reporter: &'a Reporter<'job>,
    reservation: &'a Reservation,
    /// The files that stand for the VM's disks.
    files: &'a [String],
    disk: AtomicUsize,
    /// Of the disk that is being fetched.
    done_bytes: AtomicU64,
}

impl<'a, 'job> Watch<'a, 'job> {
    pub fn new(
        reporter: &'a Reporter<'job>,
        reservation: &'a Reservation,
        files: &'a [String],
    ) -> Self {
        Self {
            reporter,
            reservation,
            files,
            disk: AtomicUsize::new(NONE),
            done_bytes: AtomicU64::new(0),
        }
    }

    fn count(&self, bytes: u64, done_bytes: u64) {
        let disk = self.disk.load(Ordering::Relaxed);
        self.reporter.note(|record| {
            if let Some(disk) = record.disks.get_mut(disk) {
                disk.output_bytes = done_bytes;
            }
        });
        self.reservation.consume(bytes);
        self.reporter.advance(bytes);
    }
}

impl Monitor for Watch<'_, '_> {
    fn begin(&self, what: &str, _: u64) {
        let index = self.files.iter().position(|file| file == what);
        self.disk.store(index.unwrap_or(NONE), Ordering::Relaxed);
        self.done_bytes.store(0, Ordering::Relaxed);
        if let Some(index) = index {
            self.reporter.enter_disk(index.saturating_add(1));
        }
    }

    fn advance(&self, bytes: u64) {
        let before = self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.count(bytes, before.saturating_add(bytes));
    }

    /// A disk that is fetched anew does not take back what was told.
    fn stand(&self, bytes_done: u64, _: u64) {
        let before = self.done_bytes.fetch_max(bytes_done, Ordering::Relaxed);
        self.count(bytes_done.saturating_sub(before), bytes_done.max(before));
    }

    fn message(&self, _: &str) {
        // A sign of life; what is worth keeping is a warning.
        self.reporter.advance(0);
    }

    fn warn(&self, text: &str) {
        self.reporter.tell(text);
        self.reporter
            .note(|record| record.notes.push(text.to_owned()));
    }

    fn is_cancelled(&self) -> bool {
        self.reporter.is_cancelled()
    }

    fn branch(&self) -> Box<dyn Monitor + '_> {
        Box::new(Watch::new(self.reporter, self.reservation, self.files))
    }
}
