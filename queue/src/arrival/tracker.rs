//! The tracker: names that lie in the queue directory, until each is whole, refused or gone.
use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::arrival::candidate::{self, Class};
use crate::arrival::drops::{Arrival, arrival, directory_owner, lone};
use crate::arrival::pieces::{self, Pieces, Scope};
use crate::arrival::settle::Stillness;
use crate::arrival::whole;
use crate::error::{Error, ErrorKind, Result};
use crate::instance::Directories;
use crate::job::JobId;
use crate::spool::{Drop, DropKind, Job};

/// Whether a claimed job has all its pieces.
#[derive(Debug)]
pub enum Gathered {
    Whole,
    /// These are not there yet, or not whole; `overdue` if waiting longer makes no sense.
    Missing {
        names: Vec<String>,
        overdue: bool,
    },
}

enum Verdict {
    Ready(Arrival),
    Wait,
    /// Not a drop, or somebody else's piece.
    Ignore,
}

/// The most disks that are looked at together.
const PENDING_MAX: usize = 2048;

/// Manifests, and what may be a job directory.
fn is_urgent(name: &str) -> bool {
    !matches!(candidate::classify(name), Some(Class::Disk | Class::Ovf))
}

/// Everything in the queue directory that is not claimed yet.
pub struct Arrivals {
    directories: Arc<Directories>,
    /// Names and the order of their arrival.
    pending: HashMap<String, u64>,
    arrived: u64,
    /// Names that were seen and not taken up, because enough others wait.
    beyond: usize,
    /// What claimed jobs still wait for: never a drop of its own.
    wanted: HashMap<JobId, Vec<String>>,
    stillness: Stillness,
    incomplete_timeout: Duration,
    /// Where files outside the queue may lie that a job waits for.
    source_roots: Vec<PathBuf>,
}

impl Arrivals {
    pub fn new(
        directories: Arc<Directories>,
        settle: Duration,
        incomplete_timeout: Duration,
        network: bool,
        source_roots: Vec<PathBuf>,
    ) -> Self {
        Self {
            directories,
            pending: HashMap::new(),
            arrived: 0,
            beyond: 0,
            wanted: HashMap::new(),
            stillness: Stillness::new(settle, network),
            incomplete_timeout,
            source_roots,
        }
    }

    /// A name was renamed in: whole at once.
    pub fn moved_in(&mut self, name: &str) {
        if self.admit(name) {
            let path = self.path(name);
            self.stillness.moved_in(&path);
        }
    }

    /// A name was created or written.
    pub fn touched(&mut self, name: &str) {
        self.admit(name);
    }

    /// Takes a name up. Beyond `PENDING_MAX`, disks stay for a later scan, so that memory does not
    /// grow with the queue; manifests and job directories never do: they may be urgent, and a
    /// manifest may be overwritten.
    fn admit(&mut self, name: &str) -> bool {
        let many = self.pending.len() >= PENDING_MAX && !self.pending.contains_key(name);
        if many && !is_urgent(name) {
            self.beyond += 1;
            return false;
        }
        self.arrived += 1;
        self.pending.entry(name.to_owned()).or_insert(self.arrived);
        true
    }

    /// Looks at the whole directory: the truth. Names that are not UTF-8 are returned.
    pub fn scan(&mut self) -> Result<Vec<PathBuf>> {
        let queue = self.directories.queue.clone();
        let listing = |error| Error::io("list", &queue, error);
        let mut unreadable = Vec::new();
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&queue).map_err(listing)? {
            let entry = entry.map_err(listing)?;
            match entry.file_name().into_string() {
                Ok(name) if candidate::is_ignored(&name) => {}
                Ok(name) => {
                    let changed = entry
                        .metadata()
                        .map(|meta| (meta.ctime(), meta.ctime_nsec()));
                    names.push((changed.unwrap_or_default(), name));
                }
                Err(name) => unreadable.push(queue.join(name)),
            }
        }
        self.beyond = 0;
        // What nobody watched arrives in the order of its last change.
        names.sort_unstable();
        for (_, name) in names {
            self.touched(&name);
        }
        Ok(unreadable)
    }

    /// How many names wait to become whole and to be claimed.
    pub fn waiting(&self) -> usize {
        self.pending.len()
    }

    /// How many more lie in the queue directory, about.
    pub fn beyond(&self) -> usize {
        self.beyond
    }

    /// Whether there is room again for names that were not taken up.
    pub fn needs_scan(&self) -> bool {
        self.beyond > 0 && self.pending.len() < PENDING_MAX / 2
    }

    /// Drops that are ready now: all that are urgent, and the first `limit` others. Those that are
    /// not stay pending.
    pub fn ready(&mut self, limit: usize) -> Vec<Arrival> {
        let mut names: Vec<String> = self.pending.keys().cloned().collect();
        names.retain(|name| limit > 0 || is_urgent(name));
        names.sort_unstable_by_key(|name| self.pending.get(name).copied());
        let mut owned = self.owned_by_owners(&names);
        owned.extend(self.wanted.values().flatten().cloned());
        let moving = self.families_in_motion(&names);
        let mut ready = Vec::new();
        let mut others = 0;
        for name in names {
            let is_other = !is_urgent(&name);
            if owned.contains(&name) || (is_other && others >= limit) {
                continue;
            }
            match self.examine(&name, &moving) {
                Verdict::Wait => {}
                Verdict::Ignore => {
                    self.pending.remove(&name);
                }
                Verdict::Ready(arrival) => {
                    self.pending.remove(&name);
                    others += usize::from(is_other);
                    ready.push(arrival);
                }
            }
        }
        ready
    }

    /// The job is begun or over: nothing is kept for it any more.
    pub fn release(&mut self, job: JobId) {
        self.wanted.remove(&job);
    }

    /// The drop was claimed or is gone: forget what was seen of its files.
    pub fn forget(&mut self, drop: &Drop) {
        for name in drop.owned.iter().chain([&drop.name, &drop.owner]) {
            let path = self.path(name);
            self.stillness.forget(&path);
            self.pending.remove(name);
        }
    }

    /// Brings a claimed job's pieces together; those in the queue directory are taken when whole.
    pub fn gather(&mut self, job: &mut Job) -> Result<Gathered> {
        let source = job.source_dir();
        let owner = job.memory.owner.clone();
        self.wanted.remove(&job.id());
        let pieces = self.scope(&source).pieces(&owner)?;
        let mut missing = Vec::new();
        for name in pieces.names.iter().chain(&pieces.optional) {
            // What lies in `source/` was whole when it was taken.
            if std::fs::symlink_metadata(source.join(name)).is_ok() {
                continue;
            }
            let there = self.path(name);
            if self.is_whole_file(&there) && job.take(name)? {
                self.stillness.forget(&there);
                self.pending.remove(name);
            } else if !pieces.optional.contains(name) {
                missing.push(name.clone());
            }
        }
        for path in &pieces.outside {
            let is_ours = self.source_roots.iter().any(|root| path.starts_with(root));
            if is_ours && !self.is_whole_file(path) {
                missing.push(path.to_string_lossy().into_owned());
            }
        }
        if missing.is_empty() {
            return Ok(Gathered::Whole);
        }
        self.wanted.insert(job.id(), missing.clone());
        let growing = missing.iter().any(|name| self.is_growing(name));
        let overdue = !growing && job.age() >= self.incomplete_timeout;
        Ok(Gathered::Missing {
            names: missing,
            overdue,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directories.queue.join(name)
    }

    fn scope<'a>(&'a self, base: &'a Path) -> Scope<'a> {
        Scope {
            base,
            queue: &self.directories.queue,
            output: &self.directories.output,
        }
    }

    fn pieces(&self, owner: &str) -> Result<Pieces> {
        self.scope(&self.directories.queue).pieces(owner)
    }

    /// What the owners among the pending names own: never a drop of its own.
    fn owned_by_owners(&self, names: &[String]) -> BTreeSet<String> {
        let mut owned = BTreeSet::new();
        for name in names {
            let is_owner = !matches!(candidate::classify(name), None | Some(Class::Disk))
                || name.to_ascii_lowercase().ends_with(".vmdk");
            if is_owner && let Ok(pieces) = self.pieces(name) {
                owned.extend(pieces.names);
            }
        }
        owned
    }

    fn examine(&mut self, name: &str, moving: &BTreeSet<String>) -> Verdict {
        if candidate::is_ignored(name) {
            return Verdict::Ignore;
        }
        let path = self.path(name);
        let Ok(metadata) = std::fs::symlink_metadata(&path) else {
            self.stillness.forget(&path);
            return Verdict::Ignore;
        };
        if metadata.is_dir() {
            return self.examine_directory(name);
        }
        let Some(class) = candidate::classify(name) else {
            return Verdict::Ignore;
        };
        if !metadata.is_file() {
            let error = Error::invalid(format!("{name} is not a regular file"))
                .with_remedy("links, devices and pipes are never followed: copy the disk itself");
            return Verdict::Ready(Arrival::Refused(lone(name, DropKind::Disk), error));
        }
        match class {
            Class::Manifest => self.examine_manifest(name),
            Class::Ovf => self.examine_owner(name, DropKind::Ovf),
            Class::Disk => self.examine_disk(name, moving),
        }
    }

    /// Claimed at once when it parses: the next one may come under the same name.
    fn examine_manifest(&mut self, name: &str) -> Verdict {
        let path = self.path(name);
        if whole::is_open_for_writing(&path) || !whole::is_complete_json(&path) {
            return self.wait_or_refuse(name, DropKind::Manifest, "is not complete JSON");
        }
        if !whole::looks_like_manifest(&path) {
            return Verdict::Ignore;
        }
        let described = self.pieces(name);
        Verdict::Ready(arrival(name, name, DropKind::Manifest, described, false))
    }

    fn examine_disk(&mut self, name: &str, moving: &BTreeSet<String>) -> Verdict {
        let path = self.path(name);
        let head = pieces::head(&path, candidate::HEAD_BYTES).unwrap_or_default();
        if candidate::is_extent(name, &head) {
            let why = "is an extent that no descriptor here names";
            return self.wait_or_refuse(name, DropKind::Disk, why);
        }
        if moving.contains(candidate::family(name)) && !self.stillness.is_moved_in(&path) {
            return Verdict::Wait;
        }
        self.examine_owner(name, DropKind::Disk)
    }

    /// The families of what is still being written: a disk waits while something of its VM is in
    /// motion, because its owner may come last, as `cp` of a whole export does it.
    fn families_in_motion(&mut self, names: &[String]) -> BTreeSet<String> {
        let mut families = BTreeSet::new();
        for name in names {
            let path = self.path(name);
            if !candidate::is_ignored(name) && !self.stillness.is_still(&path) {
                families.insert(candidate::family(name).to_owned());
            }
        }
        families
    }

    /// A file that may own others: whole when it and all it names are.
    fn examine_owner(&mut self, name: &str, kind: DropKind) -> Verdict {
        let path = self.path(name);
        if !self.is_whole_file(&path) {
            return self.wait_or_refuse(name, kind, "is not complete: it ends too early");
        }
        let described = match self.pieces(name) {
            Ok(described) => described,
            Err(error) => return Verdict::Ready(Arrival::Refused(lone(name, kind), error)),
        };
        if kind == DropKind::Ovf {
            // Its disks may have come long before, and be jobs of their own: the claimed job
            // gathers them, wherever they are.
            return Verdict::Ready(arrival(name, name, kind, Ok(described), false));
        }
        let missing: Vec<&String> = described
            .names
            .iter()
            .filter(|name| !self.is_there(name))
            .collect();
        if !missing.is_empty() {
            let why = format!("names {:?}, which is not there", missing.first());
            let why = why.replace("Some(", "").replace(')', "");
            return self.wait_or_refuse(name, kind, &why);
        }
        for piece in described.names.clone() {
            let piece = self.path(&piece);
            if !self.is_whole_file(&piece) {
                let why = format!("names {}, which is not complete", piece.display());
                return self.wait_or_refuse(name, kind, &why);
            }
        }
        Verdict::Ready(arrival(name, name, kind, Ok(described), true))
    }

    fn examine_directory(&mut self, name: &str) -> Verdict {
        let path = self.path(name);
        let moved_in = self.stillness.is_moved_in(&path);
        let Some(owner) = directory_owner(&path) else {
            return self.wait_or_refuse(name, DropKind::Directory, "holds no manifest.json");
        };
        let owner = format!("{name}/{owner}");
        if !moved_in && !self.is_tree_still(&path) {
            return Verdict::Wait;
        }
        let described = self.pieces(&owner);
        if !moved_in && let Ok(pieces) = &described {
            for piece in &pieces.names {
                let piece = self.path(piece);
                if !self.is_whole_file(&piece) {
                    let why = format!("misses {}", piece.display());
                    return self.wait_or_refuse(name, DropKind::Directory, &why);
                }
            }
        }
        Verdict::Ready(arrival(name, &owner, DropKind::Directory, described, false))
    }

    /// Whether a file is there and has changed within the incomplete timeout.
    fn is_growing(&mut self, name: &str) -> bool {
        let path = self.path(name);
        self.is_there(name) && self.stillness.unchanged_for(&path) < self.incomplete_timeout
    }

    fn is_there(&self, name: &str) -> bool {
        std::fs::symlink_metadata(self.path(name)).is_ok()
    }

    /// Whether a file is whole: nobody writes it, it is still, and its structure is complete.
    fn is_whole_file(&mut self, path: &Path) -> bool {
        self.stillness.is_still(path)
            && (self.stillness.is_moved_in(path)
                || (!whole::is_open_for_writing(path) && whole::is_complete(path).unwrap_or(false)))
    }

    fn is_tree_still(&mut self, dir: &Path) -> bool {
        if !self.stillness.is_still(dir) {
            return false;
        }
        let Ok(entries) = std::fs::read_dir(dir) else {
            return false;
        };
        entries.flatten().take(4096).all(|entry| {
            let path = entry.path();
            self.stillness.is_still(&path) && !whole::is_open_for_writing(&path)
        })
    }

    /// Not whole: wait, but not longer than the incomplete timeout since the last change.
    fn wait_or_refuse(&mut self, name: &str, kind: DropKind, why: &str) -> Verdict {
        let path = self.path(name);
        if self.stillness.unchanged_for(&path) < self.incomplete_timeout {
            return Verdict::Wait;
        }
        let error = Error::new(ErrorKind::Corrupt, format!("{name} {why}"))
            .with_remedy("copy it again, under a name ending in .part until it is whole");
        Verdict::Ready(Arrival::Refused(lone(name, kind), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_queue_is_taken_up_by_degrees_and_urgent_drops_at_once() {
        let top = tempfile::tempdir().unwrap();
        let queue = top.path().join("queue");
        std::fs::create_dir(&queue).unwrap();
        let directories = Arc::new(Directories {
            queue: queue.clone(),
            output: top.path().join("output"),
            work: top.path().join("work"),
        });
        let mut arrivals = Arrivals::new(
            directories,
            Duration::ZERO,
            Duration::MAX,
            false,
            Vec::new(),
        );
        let count = PENDING_MAX + 100;
        for number in 0..count {
            std::fs::write(queue.join(format!("vm-{number}.raw")), [1; 512]).unwrap();
        }
        let manifest = r#"{"manifest_version": "1.0", "disks": [
            {"id": "a", "source_format": "raw", "bytes": 0, "local_path": "a.raw"}]}"#;
        std::fs::write(queue.join("z.json"), manifest).unwrap();
        arrivals.scan().unwrap();
        let mut claimed = BTreeSet::new();
        assert!(arrivals.beyond() >= 100 && !arrivals.needs_scan());
        while claimed.len() <= count {
            if arrivals.needs_scan() {
                arrivals.scan().unwrap();
            }
            let ready = arrivals.ready(64);
            assert!(!ready.is_empty() && ready.len() <= 65);
            for arrival in ready {
                let Arrival::Whole(drop) = arrival else {
                    panic!("{arrival:?}")
                };
                assert!(drop.name != "z.json" || claimed.len() <= 64);
                std::fs::remove_file(queue.join(&drop.name)).unwrap();
                assert!(claimed.insert(drop.name));
            }
        }
        assert!(arrivals.ready(64).is_empty());
    }
}
