//! Examination: whether one name in the queue directory is a drop, and whether it is whole.
//!
//! Waiting has an end: what has not changed for the incomplete timeout is refused as truncated.
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::arrival::candidate::{self, Class};
use crate::arrival::drops::{Arrival, arrival, directory_owner, lone};
use crate::arrival::pieces::{self, Pieces};
use crate::arrival::tracker::{Arrivals, Intake};
use crate::arrival::whole;
use crate::error::{Error, ErrorKind, Result};
use crate::job::VmName;
use crate::spool::DropKind;

/// How long a file that may not be read is left alone: some copiers open it up only at their end.
const ACCESS_GRACE: Duration = Duration::from_secs(30);
/// How long a disk that looks like one of several waits for its owner: so many settle times, and
/// no longer than this.
const OWNER_PATIENCE: Duration = Duration::from_secs(30);
const OWNER_PATIENCE_SETTLES: u32 = 15;

#[expect(clippy::large_enum_variant, reason = "made and taken apart at once")]
pub(super) enum Verdict {
    Ready(Arrival),
    Wait,
    /// Not a drop, or somebody else's piece.
    Ignore,
}

impl Arrivals {
    pub(super) fn examine(&mut self, name: &str, moving: &BTreeSet<String>) -> Verdict {
        if candidate::is_ignored(name) {
            return Verdict::Ignore;
        }
        let path = self.path(name);
        let Ok(metadata) = std::fs::symlink_metadata(&path) else {
            self.stillness.forget(&path);
            return Verdict::Ignore;
        };
        if self.terms.intake == Intake::Requests {
            return self.examine_request(name, &metadata);
        }
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
        if let Some(error) = self.unreadable(name) {
            return Verdict::Ready(Arrival::Refused(lone(name, kind_of(class)), error));
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
            return self.wait_or_refuse(name, &[], DropKind::Manifest, "is not complete JSON");
        }
        if !whole::looks_like_manifest(&path) {
            return Verdict::Ignore;
        }
        let described = self
            .pieces(name)
            .and_then(|pieces| match pieces.growing.first() {
                None => Ok(pieces),
                // The claim would take it away from under its producer.
                Some(disk) => Err(Error::invalid(format!(
                    "{name} says that {disk:?} still grows, but is not in a job directory"
                ))
                .with_remedy("rename a directory in that holds manifest.json and its disks")),
            });
        self.described(name, name, DropKind::Manifest, described)
    }

    fn examine_disk(&mut self, name: &str, moving: &BTreeSet<String>) -> Verdict {
        let path = self.path(name);
        let head = pieces::head(&path, candidate::HEAD_BYTES).unwrap_or_default();
        if candidate::is_extent(name, &head) {
            let why = "is an extent that no descriptor here names";
            return self.wait_or_refuse(name, &[], DropKind::Disk, why);
        }
        if moving.contains(candidate::family(name)) && !self.stillness.is_moved_in(&path) {
            return Verdict::Wait;
        }
        if candidate::is_companion(name, &head) && !self.is_owner_late(&path) {
            return Verdict::Wait;
        }
        self.examine_owner(name, DropKind::Disk)
    }

    /// Whether a disk that looks like one of several has waited long enough for what owns it: the
    /// settle time after a rename, since whoever renames one file renames the next at once.
    fn is_owner_late(&mut self, path: &Path) -> bool {
        let settle = self.terms.settle;
        let patience = if self.stillness.is_moved_in(path) {
            settle
        } else {
            settle.max(OWNER_PATIENCE.min(settle * OWNER_PATIENCE_SETTLES))
        };
        self.stillness.is_still_for(path, patience)
    }

    /// A file that may own others: whole when it and all it names are.
    fn examine_owner(&mut self, name: &str, kind: DropKind) -> Verdict {
        let path = self.path(name);
        if !self.is_whole_file(&path) {
            return self.wait_or_refuse(name, &[], kind, "is not complete: it ends too early");
        }
        let described = match self.pieces(name) {
            Ok(described) => described,
            Err(error) => return Verdict::Ready(Arrival::Refused(lone(name, kind), error)),
        };
        if kind == DropKind::Ovf || described.has_parent {
            // What it names may have come long before, and be jobs of their own: the claimed job
            // gathers them, wherever they are.
            return Verdict::Ready(arrival(name, name, kind, Ok(described), false));
        }
        let names = &described.names;
        if let Some(missing) = names.iter().find(|piece| !self.is_there(piece)) {
            let why = format!("names {missing:?}, which is not there");
            return self.wait_or_refuse(name, names, kind, &why);
        }
        for piece in names {
            if let Some(error) = self.unreadable(piece) {
                return Verdict::Ready(Arrival::Refused(lone(name, kind), error));
            }
            let at = self.path(piece);
            if !self.is_whole_file(&at) {
                let why = format!("names {piece:?}, which is not complete");
                return self.wait_or_refuse(name, names, kind, &why);
            }
        }
        Verdict::Ready(arrival(name, name, kind, Ok(described), true))
    }

    fn examine_directory(&mut self, name: &str) -> Verdict {
        let path = self.path(name);
        let moved_in = self.stillness.is_moved_in(&path);
        let Some(owner) = directory_owner(&path) else {
            let why = "holds no manifest.json";
            return self.wait_or_refuse(name, &[], DropKind::Directory, why);
        };
        let owner = format!("{name}/{owner}");
        let described = self.pieces(&owner);
        let growing = described.as_ref().map_or(&[][..], |pieces| &pieces.growing);
        // A disk that grows is never still: its job was published on purpose before it is whole.
        if !moved_in && growing.is_empty() && !self.is_tree_still(&path) {
            return Verdict::Wait;
        }
        if !moved_in && let Ok(pieces) = &described {
            for piece in &pieces.names {
                let at = self.path(piece);
                let is_there = match pieces.growing.contains(piece) {
                    true => self.is_there(piece),
                    false => self.is_whole_file(&at),
                };
                if !is_there {
                    let why = format!("misses {piece}");
                    let names = &pieces.names;
                    return self.wait_or_refuse(name, names, DropKind::Directory, &why);
                }
            }
        }
        self.described(name, &owner, DropKind::Directory, described)
    }

    /// A drop whose pieces are gathered later; refused under the name that its owner gives it.
    fn described(
        &self,
        name: &str,
        owner: &str,
        kind: DropKind,
        described: Result<Pieces>,
    ) -> Verdict {
        let mut arrival = arrival(name, owner, kind, described, false);
        if let Arrival::Refused(drop, _) = &mut arrival
            && let Some(vm_name) = pieces::name_in_manifest(&self.path(owner))
            && let Ok(vm_name) = VmName::new(&vm_name)
        {
            drop.vm_name = vm_name;
        }
        Verdict::Ready(arrival)
    }

    /// Whether something of this name lies in the queue directory.
    pub fn is_there(&self, name: &str) -> bool {
        std::fs::symlink_metadata(self.path(name)).is_ok()
    }

    /// Whether a regular file is whole: nobody writes it, it is still, its structure is complete.
    pub(super) fn is_whole_file(&mut self, path: &Path) -> bool {
        std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file())
            && self.stillness.is_still(path)
            && !whole::is_open_for_writing(path)
            && (self.stillness.is_moved_in(path) || whole::is_complete(path).unwrap_or(false))
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

    /// Since when neither the name nor what is there of its pieces has changed.
    fn quiet_for(&mut self, name: &str, pieces: &[String]) -> Duration {
        let paths: Vec<PathBuf> = pieces.iter().map(|piece| self.path(piece)).collect();
        let own = self.path(name);
        std::iter::once(own)
            .chain(paths)
            .filter_map(|path| self.stillness.unchanged_for(&path))
            .min()
            .unwrap_or_default()
    }

    /// What is wrong with a file that this process may not read and that nobody is about to open
    /// up to it.
    pub(super) fn unreadable(&mut self, name: &str) -> Option<Error> {
        let path = self.path(name);
        match pieces::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {}
            _ => return None,
        }
        let settled = self.stillness.is_moved_in(&path)
            || self.stillness.unchanged_for(&path)? >= ACCESS_GRACE;
        settled.then(|| {
            Error::invalid(format!("{name} may not be read by the converter"))
                .with_remedy("give the service's user or group read access to it, and retry")
        })
    }

    /// Not whole: wait, but not longer than the incomplete timeout since the last change.
    pub(super) fn wait_or_refuse(
        &mut self,
        name: &str,
        pieces: &[String],
        kind: DropKind,
        why: &str,
    ) -> Verdict {
        if self.quiet_for(name, pieces) < self.terms.incomplete_timeout {
            return Verdict::Wait;
        }
        let error = Error::new(ErrorKind::Corrupt, format!("{name} {why}"))
            .with_remedy("copy it again, under a name ending in .part until it is whole");
        Verdict::Ready(Arrival::Refused(lone(name, kind), error))
    }
}

fn kind_of(class: Class) -> DropKind {
    match class {
        Class::Manifest => DropKind::Manifest,
        Class::Ovf => DropKind::Ovf,
        Class::Disk => DropKind::Disk,
    }
}
