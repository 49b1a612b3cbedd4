//! How bytes get here: copied from a file of this host, or downloaded. Modifies no source.
//!
//! Knows no provider: what is to be fetched, and how it is checked, is told.
mod ahead;
pub mod copy;
pub mod download;
pub mod http;
pub mod tls;

use sha2::Digest;

use crate::error::{Error, ErrorKind};

/// The converter runs as another user of the queue's group.
pub const MODE: u32 = 0o640;

/// Watches a long piece of work, and may stop it.
pub trait Monitor: Sync {
    /// A stretch of work begins; 0 bytes if its length is not known.
    fn begin(&self, what: &str, bytes_total: u64);
    fn advance(&self, bytes: u64);
    /// Where the stretch stands now, where somebody else counts.
    fn stand(&self, bytes_done: u64, bytes_total: u64);
    fn message(&self, text: &str);
    fn warn(&self, text: &str);
    fn is_cancelled(&self) -> bool;
    /// A monitor of its own for one of several stretches that go on at once: its `begin`,
    /// `advance`, `stand` and `message` concern that stretch alone. Ended by its drop.
    fn branch(&self) -> Box<dyn Monitor + '_>;
}

/// Shows nothing and never cancels: for what must be brought to its end.
pub struct Steady;

impl Monitor for Steady {
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn stand(&self, _: u64, _: u64) {}
    fn message(&self, _: &str) {}
    fn warn(&self, _: &str) {}
    fn is_cancelled(&self) -> bool {
        false
    }
    fn branch(&self) -> Box<dyn Monitor + '_> {
        Box::new(Self)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// Read by everybody.
    Sha256,
    /// Read by our own converter, several times as fast.
    Blake3,
    /// What older servers tell; for comparison only.
    Sha1,
}

/// A checksum in the making.
pub enum Hasher {
    Sha1(sha1::Sha1),
    Sha256(sha2::Sha256),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha1 => Self::Sha1(sha1::Sha1::new()),
            Algorithm::Sha256 => Self::Sha256(sha2::Sha256::new()),
            Algorithm::Blake3 => Self::Blake3(Box::default()),
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha1(hasher) => hasher.update(bytes),
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Blake3(hasher) => {
                hasher.update(bytes);
            }
        }
    }

    pub fn finish(self) -> String {
        match self {
            Self::Sha1(hasher) => format!("sha1:{}", hex(&hasher.finalize())),
            Self::Sha256(hasher) => format!("sha256:{}", hex(&hasher.finalize())),
            Self::Blake3(hasher) => format!("blake3:{}", hasher.finalize().to_hex()),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The error of work that its monitor stopped.
pub fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "the export was interrupted")
        .with_remedy("run it again; nothing of it was left behind")
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Counts, and cancels when it has counted enough.
    #[derive(Default)]
    pub struct Counter {
        pub bytes: AtomicU64,
        pub cancel_at: Option<u64>,
    }

    impl Monitor for Counter {
        fn begin(&self, _: &str, _: u64) {}
        fn advance(&self, bytes: u64) {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        fn stand(&self, _: u64, _: u64) {}
        fn message(&self, _: &str) {}
        fn warn(&self, _: &str) {}
        fn is_cancelled(&self) -> bool {
            self.cancel_at
                .is_some_and(|limit| self.bytes.load(Ordering::Relaxed) >= limit)
        }
        fn branch(&self) -> Box<dyn Monitor + '_> {
            Box::new(Branch(self))
        }
    }

    /// Counts for the whole.
    struct Branch<'a>(&'a Counter);

    impl Monitor for Branch<'_> {
        fn begin(&self, _: &str, _: u64) {}
        fn advance(&self, bytes: u64) {
            self.0.advance(bytes);
        }
        fn stand(&self, _: u64, _: u64) {}
        fn message(&self, _: &str) {}
        fn warn(&self, _: &str) {}
        fn is_cancelled(&self) -> bool {
            self.0.is_cancelled()
        }
        fn branch(&self) -> Box<dyn Monitor + '_> {
            self.0.branch()
        }
    }
}
