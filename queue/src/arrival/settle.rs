//! Stillness: since when a path has not changed, by its size and change times.
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// What changes whenever a file is written or another takes its place: inode, size, mtime, ctime.
pub(super) type Mark = (u64, u64, i64, i64, i64, i64);

#[derive(Debug)]
struct Seen {
    mark: Mark,
    since: Instant,
    moved_in: bool,
}

/// What has been seen of the files in the queue directory.
#[derive(Debug)]
pub struct Stillness {
    seen: HashMap<PathBuf, Seen>,
    settle: Duration,
    /// Clocks of other hosts are not compared with ours.
    network: bool,
}

impl Stillness {
    pub fn new(settle: Duration, network: bool) -> Self {
        Self {
            seen: HashMap::new(),
            settle,
            network,
        }
    }

    pub fn set_settle(&mut self, settle: Duration) {
        self.settle = settle;
    }

    /// The path was renamed in: what it is now, it is whole.
    pub fn moved_in(&mut self, path: &Path) {
        if let Ok(metadata) = std::fs::symlink_metadata(path) {
            let now = Instant::now();
            let seen = Seen {
                mark: mark(&metadata),
                since: now,
                moved_in: true,
            };
            self.seen.insert(path.to_path_buf(), seen);
        }
    }

    pub fn forget(&mut self, path: &Path) {
        self.seen.remove(path);
    }

    /// Whether the path was renamed in and has not changed since.
    pub fn is_moved_in(&mut self, path: &Path) -> bool {
        self.look(path).is_some_and(|seen| seen.moved_in)
    }

    /// Whether the path was renamed in, or has been still for the settle time.
    pub fn is_still(&mut self, path: &Path) -> bool {
        self.is_moved_in(path) || self.is_still_for(path, self.settle)
    }

    /// Whether the path has not changed for so long, renamed in or not.
    pub fn is_still_for(&mut self, path: &Path, settle: Duration) -> bool {
        let network = self.network;
        let Some(seen) = self.look(path) else {
            return false;
        };
        let changed = SystemTime::UNIX_EPOCH
            + Duration::new(
                u64::try_from(seen.mark.4).unwrap_or(0),
                u32::try_from(seen.mark.5).unwrap_or(0),
            );
        let by_clock = !network
            && SystemTime::now()
                .duration_since(changed)
                .is_ok_and(|age| age >= settle);
        seen.since.elapsed() >= settle || by_clock
    }

    /// How long the path has not changed while we looked; `None` if nothing is there.
    pub fn unchanged_for(&mut self, path: &Path) -> Option<Duration> {
        self.look(path).map(|seen| seen.since.elapsed())
    }

    /// Forgets all but what `is_wanted`: nothing is remembered of what left the queue.
    pub fn retain(&mut self, is_wanted: impl Fn(&Path) -> bool) {
        self.seen.retain(|path, _| is_wanted(path));
    }

    /// Makes everything that was seen older.
    #[cfg(test)]
    pub fn age(&mut self, by: Duration) {
        for seen in self.seen.values_mut() {
            seen.since = seen.since.checked_sub(by).unwrap();
        }
    }

    fn look(&mut self, path: &Path) -> Option<&Seen> {
        let Ok(metadata) = std::fs::symlink_metadata(path) else {
            self.seen.remove(path);
            return None;
        };
        let mark = mark(&metadata);
        let now = Instant::now();
        let fresh = Seen {
            mark,
            since: now,
            moved_in: false,
        };
        let seen = self.seen.entry(path.to_path_buf()).or_insert(fresh);
        if seen.mark != mark {
            // A file that is written after it was renamed in has to settle like any other.
            *seen = Seen {
                mark,
                since: now,
                moved_in: false,
            };
        }
        Some(seen)
    }
}

pub(super) fn mark(metadata: &std::fs::Metadata) -> Mark {
    (
        metadata.ino(),
        metadata.size(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    )
}
