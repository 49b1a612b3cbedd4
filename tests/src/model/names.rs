//! The names of the model's file system, and the changes made to them since they were last durable.
//!
//! Owns which changes outlive a crash; never looks into a file's contents (`disk` does).
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;

pub type Inode = u64;
pub const ROOT: Inode = 1;

/// One entry of one directory.
pub type Place = (Inode, OsString);

/// Which inode stands under which name of which directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    directories: BTreeMap<Inode, BTreeMap<OsString, Inode>>,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            directories: BTreeMap::from([(ROOT, BTreeMap::new())]),
        }
    }
}

impl Names {
    pub fn get(&self, place: &Place) -> Option<Inode> {
        self.directories.get(&place.0)?.get(&place.1).copied()
    }

    /// The entries of a directory, by name.
    pub fn list(&self, directory: Inode) -> Vec<(OsString, Inode)> {
        let entries = self.directories.get(&directory).into_iter().flatten();
        entries
            .map(|(name, inode)| (name.clone(), *inode))
            .collect()
    }

    pub fn is_empty(&self, directory: Inode) -> bool {
        self.directories
            .get(&directory)
            .is_none_or(BTreeMap::is_empty)
    }

    /// Whether some entry, reachable or not, stands for `inode`.
    pub fn holds(&self, inode: Inode) -> bool {
        self.directories
            .values()
            .any(|entries| entries.values().any(|held| *held == inode))
    }

    fn set(&mut self, place: &Place, inode: Option<Inode>) {
        let entries = self.directories.entry(place.0).or_default();
        match inode {
            Some(inode) => entries.insert(place.1.clone(), inode),
            None => entries.remove(&place.1),
        };
    }

    /// Whether `directory` can be walked to from the root.
    pub fn reaches(&self, directory: Inode) -> bool {
        let mut ahead = vec![ROOT];
        let mut seen = BTreeSet::new();
        while let Some(next) = ahead.pop() {
            if next == directory {
                return true;
            }
            if seen.insert(next) {
                ahead.extend(
                    self.directories
                        .get(&next)
                        .into_iter()
                        .flatten()
                        .map(|e| *e.1),
                );
            }
        }
        false
    }
}

/// One step of the directory operations; each is atomic, also across a crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// create, mkdir, symlink
    Link { at: Place, inode: Inode },
    /// unlink, rmdir
    Unlink { at: Place, inode: Inode },
    Rename {
        from: Place,
        to: Place,
        inode: Inode,
    },
    Exchange {
        a: Place,
        b: Place,
        inodes: (Inode, Inode),
    },
}

impl Change {
    pub fn apply(&self, names: &mut Names) {
        match self {
            Self::Link { at, inode } => names.set(at, Some(*inode)),
            Self::Unlink { at, .. } => names.set(at, None),
            Self::Rename { from, to, inode } => {
                names.set(from, None);
                names.set(to, Some(*inode));
            }
            Self::Exchange { a, b, inodes } => {
                names.set(a, Some(inodes.1));
                names.set(b, Some(inodes.0));
            }
        }
    }

    fn directories(&self) -> BTreeSet<Inode> {
        match self {
            Self::Link { at, .. } | Self::Unlink { at, .. } => BTreeSet::from([at.0]),
            Self::Rename { from: a, to: b, .. } | Self::Exchange { a, b, .. } => {
                BTreeSet::from([a.0, b.0])
            }
        }
    }

    /// Whether what this change builds on is there.
    fn fits(&self, names: &Names) -> bool {
        let stands = match self {
            Self::Link { .. } => true,
            Self::Unlink { at, inode }
            | Self::Rename {
                from: at, inode, ..
            } => names.get(at) == Some(*inode),
            Self::Exchange { a, b, inodes } => {
                names.get(a) == Some(inodes.0) && names.get(b) == Some(inodes.1)
            }
        };
        stands && self.directories().iter().all(|inode| names.reaches(*inode))
    }
}

#[derive(Debug, Clone)]
struct Pending {
    change: Change,
    /// The directories still to be synced before the change is sure to last.
    unsynced: BTreeSet<Inode>,
}

/// Names that are durable, and the changes since, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Journal {
    durable: Names,
    pending: Vec<Pending>,
}

/// Which of the pending changes outlive a crash.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Survivors(Vec<bool>);

impl Survivors {
    pub fn are_all(&self) -> bool {
        self.0.iter().all(|survives| *survives)
    }
}

impl fmt::Display for Survivors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let marks: String = self
            .0
            .iter()
            .map(|kept| if *kept { '+' } else { '-' })
            .collect();
        write!(f, "unforced changes [{marks}]")
    }
}

impl Journal {
    pub fn starting_with(durable: Names) -> Self {
        Self {
            durable,
            pending: Vec::new(),
        }
    }

    pub fn push(&mut self, change: Change) {
        let unsynced = change.directories();
        self.pending.push(Pending { change, unsynced });
    }

    /// Makes a change durable at once.
    pub fn force(&mut self, change: &Change) {
        change.apply(&mut self.durable);
    }

    /// fsync of a directory: forces what touched its entries so far.
    pub fn sync(&mut self, directory: Inode) {
        for pending in &mut self.pending {
            pending.unsynced.remove(&directory);
        }
        let forced = self
            .pending
            .iter()
            .take_while(|p| p.unsynced.is_empty())
            .count();
        for pending in self.pending.drain(..forced) {
            pending.change.apply(&mut self.durable);
        }
    }

    /// The sets of changes that may outlive a crash now: strictly the forced ones; every beginning
    /// of the journal, and everything but one unforced change, with the forced ones.
    pub fn survivors(&self) -> BTreeSet<Survivors> {
        let forced = |index: usize| self.pending[index].unsynced.is_empty();
        let choose = |keep: &dyn Fn(usize) -> bool| {
            Survivors(
                (0..self.pending.len())
                    .map(|i| forced(i) || keep(i))
                    .collect(),
            )
        };
        let mut sets = BTreeSet::from([choose(&|_| false), choose(&|_| true)]);
        for end in 0..self.pending.len() {
            // A journal keeps its order: a beginning that lacks a forced change is none.
            if (end..self.pending.len()).all(|later| !forced(later)) {
                sets.insert(choose(&|index| index < end));
            }
            sets.insert(choose(&|index| index != end));
        }
        sets
    }

    /// The names after a crash that `survivors` outlive.
    ///
    /// An unforced change needs what it builds on; a forced one was promised and is made in any
    /// case, even in a directory whose own name is lost, where nobody will find it.
    pub fn after(&self, survivors: &Survivors) -> Names {
        let mut names = self.durable.clone();
        for (pending, survives) in self.pending.iter().zip(&survivors.0) {
            let forced = pending.unsynced.is_empty();
            if forced || (*survives && pending.change.fits(&names)) {
                pending.change.apply(&mut names);
            }
        }
        names
    }
}
