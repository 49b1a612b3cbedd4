//! Drops as the tracker hands them out: what is claimed, under which name, with which files.
use std::path::Path;

use crate::arrival::candidate::{self, Class};
use crate::arrival::pieces::Pieces;
use crate::error::{Error, Result};
use crate::job::{Priority, VmName};
use crate::spool::{Drop, DropKind};

/// A drop that is ready to be claimed.
#[derive(Debug)]
pub enum Arrival {
    Whole(Drop),
    /// To be claimed and then failed with this error.
    Refused(Drop, Error),
}

/// The one file in a directory that owns the others: a manifest, else a lone OVF.
pub(super) fn directory_owner(dir: &Path) -> Option<String> {
    if std::fs::symlink_metadata(dir.join("manifest.json")).is_ok_and(|meta| meta.is_file()) {
        return Some("manifest.json".to_owned());
    }
    let mut owners = std::fs::read_dir(dir)
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.') && candidate::classify(name) == Some(Class::Ovf));
    let owner = owners.next()?;
    owners.next().is_none().then_some(owner)
}

/// What an owner's text makes of a drop.
pub(super) fn arrival(
    name: &str,
    owner: &str,
    kind: DropKind,
    described: Result<Pieces>,
    with_pieces: bool,
) -> Arrival {
    let mut drop = lone(name, kind);
    drop.owner = owner.to_owned();
    match described {
        Ok(pieces) => {
            if let Some(vm_name) = pieces.vm_name.as_deref()
                && let Ok(vm_name) = VmName::new(vm_name)
            {
                drop.vm_name = vm_name;
            }
            drop.place = pieces.place.unwrap_or_default();
            drop.priority = pieces.priority;
            if with_pieces {
                drop.owned = pieces.names;
                drop.owned.extend(pieces.optional);
            }
            Arrival::Whole(drop)
        }
        Err(error) => Arrival::Refused(drop, error),
    }
}

/// A drop of one entry, named after itself.
pub(super) fn lone(name: &str, kind: DropKind) -> Drop {
    let stem = if kind == DropKind::Directory {
        name
    } else {
        candidate::stem(name)
    };
    Drop {
        name: name.to_owned(),
        kind,
        owner: name.to_owned(),
        owned: Vec::new(),
        vm_name: VmName::of_file(stem),
        place: String::new(),
        lane: String::new(),
        priority: Priority::Normal,
    }
}
