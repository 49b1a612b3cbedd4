//! The tracker: names that lie in the queue directory, until each is whole, refused or gone.
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::arrival::candidate::{self, Class};
use crate::arrival::drops::Arrival;
use crate::arrival::examine::Verdict;
use crate::arrival::gather::Wanted;
use crate::arrival::pieces::{Pieces, Scope};
use crate::arrival::settle::Stillness;
use crate::arrival::texts::Texts;
use crate::error::{Error, Result};
use crate::instance::Directories;
use crate::job::JobId;
use crate::spool::Drop;

/// How long an owner waits for a disk of the queue before one that was taken alone, under the same
/// name, is thought to be meant: a new one that is being delivered shows itself sooner.
pub const ADOPTION_GRACE: Duration = Duration::from_secs(15);
/// The most disks that are looked at together: what a look costs, and all the memory that a long
/// queue takes.
pub(super) const PENDING_MAX: usize = 768;
/// How many names that are not UTF-8 a scan tells of.
const UNREADABLE_MAX: usize = 64;

/// Manifests, and what may be a job directory.
fn is_urgent(name: &str) -> bool {
    !matches!(candidate::classify(name), Some(Class::Disk | Class::Ovf))
}

/// Which drops a queue takes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Intake {
    /// Disks, appliances, manifests and job directories.
    #[default]
    Machines,
    /// Export requests and nothing else.
    Requests,
}

/// How arrival judges, as the configuration says it.
#[derive(Debug, Clone)]
pub struct Terms {
    pub intake: Intake,
    pub settle: Duration,
    pub incomplete_timeout: Duration,
    /// Whether other hosts write to the queue's file system.
    pub network: bool,
    /// Where files outside the queue may lie that a job waits for.
    pub source_roots: Vec<PathBuf>,
}

/// Everything in the queue directory that is not claimed yet.
pub struct Arrivals {
    pub(super) directories: Arc<Directories>,
    /// Names and the order of their arrival.
    pub(super) pending: HashMap<String, u64>,
    arrived: u64,
    /// Names that were seen and not taken up, because enough others wait.
    beyond: usize,
    /// What claimed jobs still wait for: never a drop of its own.
    pub(super) wanted: HashMap<JobId, Wanted>,
    pub(super) stillness: Stillness,
    pub(super) texts: Texts,
    pub(super) terms: Terms,
}

impl Arrivals {
    pub fn new(directories: Arc<Directories>, terms: Terms) -> Self {
        Self {
            directories,
            pending: HashMap::new(),
            arrived: 0,
            beyond: 0,
            wanted: HashMap::new(),
            stillness: Stillness::new(terms.settle, terms.network),
            texts: Texts::default(),
            terms,
        }
    }

    /// Judges by other terms from now on; what was seen stays seen.
    pub fn set_terms(&mut self, terms: Terms) {
        self.stillness.set_settle(terms.settle);
        self.terms = terms;
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

    /// Looks at the whole directory: the truth. The first names that are not UTF-8 are returned.
    pub fn scan(&mut self) -> Result<Vec<PathBuf>> {
        let queue = self.directories.queue.clone();
        let listing = |error| Error::io("list", &queue, error);
        let mut unreadable = Vec::new();
        let room = PENDING_MAX.saturating_sub(self.pending.len());
        let mut urgent = Vec::new();
        // The oldest others that there is room for; the newest of them is on top.
        let mut others = BinaryHeap::new();
        self.beyond = 0;
        for entry in std::fs::read_dir(&queue).map_err(listing)? {
            let entry = entry.map_err(listing)?;
            let name = match entry.file_name().into_string() {
                Ok(name) if candidate::is_ignored(&name) || self.is_pending(&name) => continue,
                Ok(name) => name,
                Err(name) => {
                    if unreadable.len() < UNREADABLE_MAX {
                        unreadable.push(queue.join(name));
                    }
                    continue;
                }
            };
            let changed = entry
                .metadata()
                .map(|meta| (meta.ctime(), meta.ctime_nsec()));
            let found = (changed.unwrap_or_default(), name);
            if is_urgent(&found.1) {
                urgent.push(found);
                continue;
            }
            others.push(found);
            if others.len() > room {
                others.pop();
                self.beyond += 1;
            }
        }
        // What nobody watched arrives in the order of its last change.
        urgent.extend(others);
        urgent.sort_unstable();
        for (_, name) in urgent {
            self.touched(&name);
        }
        self.prune();
        Ok(unreadable)
    }

    /// Forgets what was seen of files that are no longer in the queue directory.
    fn prune(&mut self) {
        let (queue, pending) = (&self.directories.queue, &self.pending);
        self.stillness
            .retain(|path| match path.strip_prefix(queue).map(Path::iter) {
                Ok(mut parts) => parts
                    .next()
                    .and_then(|top| top.to_str())
                    .is_some_and(|top| pending.contains_key(top)),
                Err(_) => true,
            });
        self.texts.prune();
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
        owned.extend(self.wanted.values().flat_map(|w| &w.names).cloned());
        let moving = self.families_in_motion(&names);
        let mut ready = Vec::new();
        let mut others = 0;
        for name in names {
            let is_other = !is_urgent(&name);
            if owned.contains(&name) || (is_other && others >= limit) {
                continue;
            }
            if let Some(arrival) = self.verdict(&name, &moving) {
                others += usize::from(is_other);
                ready.push(arrival);
            }
        }
        ready
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

    /// Looks once more at a drop that was ready a while ago: it may have been overwritten since.
    pub fn again(&mut self, name: &str) -> Option<Arrival> {
        self.pending.entry(name.to_owned()).or_insert(self.arrived);
        let is_wanted = |wanted: &Wanted| wanted.names.iter().any(|known| known == name);
        if self.wanted.values().any(is_wanted) {
            return None;
        }
        self.verdict(name, &BTreeSet::new())
    }

    /// Whether something of this name was seen and not yet claimed.
    pub fn is_pending(&self, name: &str) -> bool {
        self.pending.contains_key(name)
    }

    fn verdict(&mut self, name: &str, moving: &BTreeSet<String>) -> Option<Arrival> {
        match self.examine(name, moving) {
            Verdict::Wait => None,
            Verdict::Ignore => {
                self.pending.remove(name);
                None
            }
            Verdict::Ready(arrival) => {
                self.pending.remove(name);
                Some(arrival)
            }
        }
    }

    /// The drop was claimed or is gone: forget what was seen of its files.
    pub fn forget(&mut self, drop: &Drop) {
        for name in drop.owned.iter().chain([&drop.name, &drop.owner]) {
            let path = self.path(name);
            self.stillness.forget(&path);
            self.texts.forget(&path);
            self.pending.remove(name);
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directories.queue.join(name)
    }

    pub(super) fn pieces(&mut self, owner: &str) -> Result<Pieces> {
        let directories = self.directories.clone();
        self.texts
            .pieces(&scope(&directories, &directories.queue), owner)
    }

    /// What the owners among the pending names own: never a drop of its own.
    fn owned_by_owners(&mut self, names: &[String]) -> BTreeSet<String> {
        let directories = self.directories.clone();
        let scope = scope(&directories, &directories.queue);
        let mut owned = BTreeSet::new();
        if self.terms.intake == Intake::Requests {
            return owned;
        }
        for name in names {
            let is_owner = candidate::classify(name).is_some();
            if is_owner && let Some(pieces) = self.texts.pieces_if_sound(&scope, name) {
                owned.extend(pieces.names);
            }
        }
        owned
    }
}

/// Where the names in an owner's text are resolved that lies beneath `base`.
pub(super) fn scope<'a>(directories: &'a Directories, base: &'a Path) -> Scope<'a> {
    Scope {
        base,
        queue: &directories.queue,
        output: &directories.output,
    }
}
