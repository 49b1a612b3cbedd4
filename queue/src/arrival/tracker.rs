//! The tracker: names that lie in the queue directory, until each is whole, refused or gone.
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::arrival::candidate::{self, Class};
use crate::arrival::company::Company;
use crate::arrival::drops::Arrival;
use crate::arrival::examine::Verdict;
use crate::arrival::gather::Wanted;
use crate::arrival::pieces::{Pieces, Scope};
use crate::arrival::settle::Stillness;
use crate::arrival::texts::Texts;
use crate::error::{Error, Result};
use crate::instance::Directories;
use crate::job::JobId;
use crate::spool::{Drop, DropKind};

/// How long an owner waits for a disk of the queue before one that was taken alone, under the same
/// name, is thought to be meant: a new one that is being delivered shows itself sooner.
pub const ADOPTION_GRACE: Duration = Duration::from_secs(15);
/// Names of disks that were claimed alone and are remembered.
const ALONE_ENTRIES: usize = 4096;

/// How arrival judges, as the configuration says it.
#[derive(Debug, Clone)]
pub struct Terms {
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
    /// What claimed jobs still wait for: never a drop of its own.
    pub(super) wanted: HashMap<JobId, Wanted>,
    /// Disks that were lately claimed alone: their owner may come after them.
    pub(super) alone: VecDeque<String>,
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
            wanted: HashMap::new(),
            alone: VecDeque::new(),
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
        let path = self.path(name);
        self.stillness.moved_in(&path);
        self.touched(name);
    }

    /// A name was created or written.
    pub fn touched(&mut self, name: &str) {
        self.arrived += 1;
        self.pending.entry(name.to_owned()).or_insert(self.arrived);
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
        // What nobody watched arrives in the order of its last change.
        names.sort_unstable();
        for (_, name) in names {
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

    /// How many drops wait to become whole.
    pub fn waiting(&self) -> usize {
        self.pending.len()
    }

    /// The drops that are ready now. Those that are not stay pending.
    pub fn ready(&mut self) -> Vec<Arrival> {
        let mut names: Vec<String> = self.pending.keys().cloned().collect();
        names.sort_unstable_by_key(|name| self.pending.get(name).copied());
        let mut owned = self.owned_by_owners(&names);
        owned.extend(
            self.wanted
                .values()
                .flat_map(|wanted| &wanted.names)
                .cloned(),
        );
        let mut company = Company::of(&names);
        let mut ready = Vec::new();
        for name in names {
            if !owned.contains(&name) {
                ready.extend(self.verdict(&name, Some(&mut company)));
            }
        }
        ready
    }

    /// Looks once more at a drop that was ready a while ago: it may have been overwritten since.
    pub fn again(&mut self, name: &str) -> Option<Arrival> {
        self.touched(name);
        let is_wanted = |wanted: &Wanted| wanted.names.iter().any(|known| known == name);
        if self.wanted.values().any(is_wanted) {
            return None;
        }
        self.verdict(name, None)
    }

    /// Whether something of this name was seen and not yet claimed.
    pub fn is_pending(&self, name: &str) -> bool {
        self.pending.contains_key(name)
    }

    fn verdict(&mut self, name: &str, company: Option<&mut Company>) -> Option<Arrival> {
        match self.examine(name, company) {
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
            self.pending.remove(name);
        }
        if drop.kind == DropKind::Disk && drop.owned.is_empty() {
            self.alone.push_back(drop.name.clone());
            if self.alone.len() > ALONE_ENTRIES {
                self.alone.pop_front();
            }
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
        for name in names {
            let is_owner = !matches!(candidate::classify(name), None | Some(Class::Disk))
                || name.to_ascii_lowercase().ends_with(".vmdk");
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
