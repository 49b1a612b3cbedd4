//! `Disk`: the live image with its inodes, and the images that a crash may leave of it.
//!
//! Never counts steps or fails on purpose; `process` does.
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use queue::durable::EntryKind;

use super::names::{Change, Inode, Journal, Names, Place, ROOT, Survivors};

#[derive(Debug, Clone)]
pub(super) enum Node {
    File { bytes: Vec<u8>, synced: bool },
    Directory,
    Symlink(PathBuf),
}

impl Node {
    pub(super) fn kind(&self) -> EntryKind {
        match self {
            Self::File { .. } => EntryKind::File,
            Self::Directory => EntryKind::Directory,
            Self::Symlink(_) => EntryKind::Symlink,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct State {
    nodes: BTreeMap<Inode, Node>,
    live: Names,
    journal: Journal,
    /// Who holds the lock of which inode: the number of the process and of the lock.
    pub(super) locks: BTreeMap<Inode, (u64, u64)>,
    pub(super) next_number: u64,
    /// Inodes below this one are from before the last crash: long ago.
    first_recent: Inode,
    /// What every process did, for messages.
    pub(super) trace: Vec<String>,
}

/// What a crash leaves of bytes that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    Empty,
    Half,
    Whole,
}

/// One way the disk may look after a crash.
#[derive(Debug, Clone)]
pub struct Crash {
    survivors: Survivors,
    contents: Contents,
}

impl Crash {
    /// A process was killed, the machine lives on: nothing is lost.
    pub fn loses_nothing(&self) -> bool {
        self.survivors.are_all() && self.contents == Contents::Whole
    }
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, unsynced bytes {:?}", self.survivors, self.contents)
    }
}

/// A shared handle: clones are the same disk.
#[derive(Debug, Clone)]
pub struct Disk(Arc<Mutex<State>>);

impl Default for Disk {
    fn default() -> Self {
        Self::holding(BTreeMap::from([(ROOT, Node::Directory)]), Names::default())
    }
}

impl Disk {
    fn holding(nodes: BTreeMap<Inode, Node>, durable: Names) -> Self {
        let next_number = nodes.keys().last().map_or(ROOT, |last| last + 1);
        Self(Arc::new(Mutex::new(State {
            nodes,
            live: durable.clone(),
            journal: Journal::starting_with(durable),
            next_number,
            first_recent: next_number,
            ..State::default()
        })))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Makes everything there is durable, as if long ago, and forgets the trace.
    pub fn settle(&self) {
        let mut state = self.state();
        for node in state.nodes.values_mut() {
            if let Node::File { synced, .. } = node {
                *synced = true;
            }
        }
        state.journal = Journal::starting_with(state.live.clone());
        state.first_recent = state.next_number;
        state.trace.clear();
    }

    /// Time passes: everything on it was made long ago.
    pub fn age(&self) {
        let mut state = self.state();
        state.first_recent = state.next_number;
    }

    /// Every way this disk may look if the machine stops now; the first loses nothing.
    pub fn crashes(&self) -> Vec<Crash> {
        let state = self.state();
        let mut crashes = Vec::new();
        for survivors in state.journal.survivors().into_iter().rev() {
            let names = state.journal.after(&survivors);
            let in_doubt = state.nodes.iter().any(|(inode, node)| {
                matches!(node, Node::File { bytes, synced: false } if !bytes.is_empty())
                    && names.holds(*inode)
            });
            crashes.push(Crash {
                survivors: survivors.clone(),
                contents: Contents::Whole,
            });
            if in_doubt {
                for contents in [Contents::Half, Contents::Empty] {
                    crashes.push(Crash {
                        survivors: survivors.clone(),
                        contents,
                    });
                }
            }
        }
        crashes
    }

    /// The disk as `crash` leaves it: all of it durable, no lock held.
    pub fn after(&self, crash: &Crash) -> Self {
        let state = self.state();
        let mut nodes = state.nodes.clone();
        for node in nodes.values_mut() {
            if let Node::File { bytes, synced } = node {
                if !*synced {
                    bytes.truncate(match crash.contents {
                        Contents::Empty => 0,
                        Contents::Half => bytes.len() / 2,
                        Contents::Whole => bytes.len(),
                    });
                }
                *synced = true;
            }
        }
        Self::holding(nodes, state.journal.after(&crash.survivors))
    }

    /// A copy that goes its own way, with what is durable and what is not; no lock is held.
    pub fn fork(&self) -> Self {
        let state = self.state();
        Self(Arc::new(Mutex::new(State {
            nodes: state.nodes.clone(),
            live: state.live.clone(),
            journal: state.journal.clone(),
            locks: BTreeMap::new(),
            next_number: state.next_number,
            first_recent: state.first_recent,
            trace: Vec::new(),
        })))
    }

    /// Puts a file there that is durable at once, as if another program had taken its time.
    pub fn plant(&self, path: &Path, text: &str) {
        let mut state = self.state();
        let inode = state.next_number;
        let bytes = text.as_bytes().to_vec();
        let at = state.place(path).expect("the directory of a planted file");
        assert!(state.live.get(&at).is_none(), "{} is taken", path.display());
        state.next_number += 1;
        state.nodes.insert(
            inode,
            Node::File {
                bytes,
                synced: true,
            },
        );
        let link = Change::Link { at, inode };
        link.apply(&mut state.live);
        state.journal.force(&link);
    }

    /// Every path with what stands there, sorted.
    pub fn tree(&self) -> BTreeMap<PathBuf, String> {
        let state = self.state();
        let mut tree = BTreeMap::new();
        let mut ahead = vec![(PathBuf::from("/"), ROOT)];
        while let Some((path, directory)) = ahead.pop() {
            for (name, inode) in state.live.list(directory) {
                let path = path.join(name);
                let text = match &state.nodes[&inode] {
                    Node::Directory => {
                        ahead.push((path.clone(), inode));
                        "/".to_owned()
                    }
                    Node::Symlink(target) => format!("-> {}", target.display()),
                    Node::File { bytes, .. } => String::from_utf8_lossy(bytes).into_owned(),
                };
                tree.insert(path, text);
            }
        }
        tree
    }

    /// What was done to this disk since it was settled, one step a line.
    pub fn trace(&self) -> String {
        self.state().trace.join("\n")
    }
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, text) in self.tree() {
            let text: String = text.chars().take(400).collect();
            writeln!(f, "  {} {}", path.display(), text.replace('\n', " "))?;
        }
        Ok(())
    }
}

pub(super) type Outcome<T> = Result<T, io::Error>;

pub(super) fn errno<T>(number: Errno) -> Outcome<T> {
    Err(number.into())
}

/// The calls of the model, with the errors of Linux.
impl State {
    /// The directory entry that `path` names; the entry itself may be free.
    pub(super) fn place(&self, path: &Path) -> Outcome<Place> {
        let mut place: Option<Place> = None;
        for component in path.components() {
            let name = match component {
                Component::RootDir => continue,
                Component::Normal(name) => name,
                _ => return errno(Errno::EINVAL),
            };
            let directory = match &place {
                None => ROOT,
                Some(place) => self.live.get(place).ok_or(Errno::ENOENT)?,
            };
            place = Some(self.entry(directory, name)?);
        }
        place.ok_or_else(|| Errno::EBUSY.into())
    }

    /// Links in the middle of a path are not followed: the product never walks through one.
    fn entry(&self, directory: Inode, name: &OsStr) -> Outcome<Place> {
        match &self.nodes[&directory] {
            Node::Directory => Ok((directory, name.to_owned())),
            _ => errno(Errno::ENOTDIR),
        }
    }

    pub(super) fn inode(&self, path: &Path) -> Outcome<Inode> {
        if path == Path::new("/") {
            return Ok(ROOT);
        }
        self.live
            .get(&self.place(path)?)
            .ok_or_else(|| Errno::ENOENT.into())
    }

    pub(super) fn node(&self, path: &Path) -> Outcome<&Node> {
        Ok(&self.nodes[&self.inode(path)?])
    }

    /// When it was made: now, or long before the last crash.
    pub(super) fn modified(&self, path: &Path) -> Outcome<SystemTime> {
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
        let is_recent = self.inode(path)? >= self.first_recent;
        Ok(if is_recent {
            SystemTime::now()
        } else {
            long_ago
        })
    }

    pub(super) fn list(&self, path: &Path) -> Outcome<Vec<(std::ffi::OsString, EntryKind)>> {
        let inode = self.inode(path)?;
        match &self.nodes[&inode] {
            Node::Directory => {}
            _ => return errno(Errno::ENOTDIR),
        }
        let entries = self.live.list(inode).into_iter();
        Ok(entries
            .map(|(name, inode)| (name, self.nodes[&inode].kind()))
            .collect())
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.live);
        self.journal.push(change);
    }

    pub(super) fn create(&mut self, path: &Path, node: Node) -> Outcome<Inode> {
        let at = self.place(path)?;
        if self.live.get(&at).is_some() {
            return errno(Errno::EEXIST);
        }
        let inode = self.next_number;
        self.next_number += 1;
        self.nodes.insert(inode, node);
        self.change(Change::Link { at, inode });
        Ok(inode)
    }

    pub(super) fn sync(&mut self, path: &Path) -> Outcome<()> {
        let inode = self.inode(path)?;
        match self.nodes.get_mut(&inode) {
            Some(Node::File { synced, .. }) => *synced = true,
            Some(Node::Directory) => self.journal.sync(inode),
            _ => return errno(Errno::ELOOP),
        }
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> Outcome<()> {
        let (source, target) = (self.place(from)?, self.place(to)?);
        let Some(inode) = self.live.get(&source) else {
            return errno(Errno::ENOENT);
        };
        if to != from && to.starts_with(from) {
            return errno(Errno::EINVAL);
        }
        if let Some(taken) = self.live.get(&target) {
            if taken == inode {
                return Ok(());
            }
            let is_directory = |inode| matches!(self.nodes[&inode], Node::Directory);
            match (is_directory(inode), is_directory(taken)) {
                (true, false) => return errno(Errno::ENOTDIR),
                (false, true) => return errno(Errno::EISDIR),
                (true, true) if !self.live.is_empty(taken) => return errno(Errno::ENOTEMPTY),
                _ => {}
            }
        }
        self.change(Change::Rename {
            from: source,
            to: target,
            inode,
        });
        Ok(())
    }

    pub(super) fn exchange(&mut self, a: &Path, b: &Path) -> Outcome<()> {
        let inodes = (self.inode(a)?, self.inode(b)?);
        let (a, b) = (self.place(a)?, self.place(b)?);
        self.change(Change::Exchange { a, b, inodes });
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path, directory: bool) -> Outcome<()> {
        let inode = self.inode(path)?;
        match (&self.nodes[&inode], directory) {
            (Node::Directory, false) => return errno(Errno::EISDIR),
            (Node::Directory, true) if !self.live.is_empty(inode) => {
                return errno(Errno::ENOTEMPTY);
            }
            (Node::Directory, true) | (_, false) => {}
            (_, true) => return errno(Errno::ENOTDIR),
        }
        let at = self.place(path)?;
        self.change(Change::Unlink { at, inode });
        Ok(())
    }
}
