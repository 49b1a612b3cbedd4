//! Disks that lie in a directory without a `.vmx`, or one disk file: candidates by name, and what
//! belongs to them.
//!
//! Whatever would lose something silently is refused: an extent without its descriptor, two
//! snapshots of one disk of which only one can be meant.
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use queue::arrival::candidate::{self, Class};

use super::chain::{self, Files};
use super::place::Place;
use crate::error::{Error, Result};

const MAX_DISKS: usize = 256;

/// The disks in the place's directory, in the order of their names.
pub fn in_directory(place: &Place<'_>, mut names: Vec<String>) -> Result<Vec<Files>> {
    let directory = &place.directory;
    names.sort_by(|a, b| natural(candidate::stem(a), candidate::stem(b)).then(a.cmp(b)));
    let mut disks = Vec::new();
    let mut extents = Vec::new();
    for name in names {
        let path = directory.join(&name);
        let head = chain::head(&place.open(&path)?, &path)?;
        if candidate::is_extent(&name, &head) {
            extents.push(path);
            continue;
        }
        disks.push(chain::of_disk(place, &path)?);
    }
    let disks = leaves(disks)?;
    let owned: BTreeSet<&PathBuf> = disks
        .iter()
        .flat_map(|disk| disk.others.iter().map(|part| &part.from))
        .collect();
    let is_lost = |path: &&PathBuf| !owned.contains(*path) && !is_change_tracking(path);
    if let Some(lost) = extents.iter().find(is_lost) {
        return Err(lost_extent(lost));
    }
    if disks.is_empty() || disks.len() > MAX_DISKS {
        let (place, count) = (directory.display(), disks.len());
        return Err(
            Error::invalid(format!("{place} holds {count} disks")).with_remedy(
                "give a directory with the 1 to 256 disks of one VM, its .vmx, or its OVF or OVA",
            ),
        );
    }
    Ok(disks)
}

/// The disk at `path` alone.
pub fn one(place: &Place<'_>, path: &Path) -> Result<Files> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.unwrap_or_default();
    if candidate::classify(name) != Some(Class::Disk) {
        return Err(
            Error::invalid(format!("{} is not named like a disk", path.display())).with_remedy(
                "give a .vmx, .ova, .ovf, .vmdk, .vhd, .vhdx, .raw, .img, .ami, .qcow2 or .vdi \
                 file, a disk plain or packed",
            ),
        );
    }
    let head = chain::head(&place.open(path)?, path)?;
    if candidate::is_extent(name, &head) {
        return Err(lost_extent(path));
    }
    chain::of_disk(place, path)
}

/// The disks that no other stands on, and that are no extent of one (`disk.raw`).
fn leaves(disks: Vec<Files>) -> Result<Vec<Files>> {
    let mut owners: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    for disk in &disks {
        for part in &disk.others {
            let leaf = disk.first.from.clone();
            owners.entry(part.from.clone()).or_insert(leaf);
        }
    }
    let mut found: Vec<Files> = Vec::new();
    for disk in disks {
        if owners.contains_key(&disk.first.from) {
            continue;
        }
        let shared = disk.others.iter().find(|part| {
            let mut known = found.iter().flat_map(|other| &other.others);
            known.any(|other| other.from == part.from)
        });
        if let Some(shared) = shared {
            let (disk, shared) = (disk.first.from.display(), shared.from.display());
            return Err(Error::invalid(format!(
                "{disk} and another disk both stand on {shared}: which one is the VM's is not told"
            ))
            .with_remedy("name the disk file, or put the VM's .vmx beside them"));
        }
        found.push(disk);
    }
    Ok(found)
}

fn lost_extent(path: &Path) -> Error {
    Error::invalid(format!(
        "{} is an extent without its descriptor",
        path.display()
    ))
    .with_remedy("put the disk's descriptor (the small .vmdk) beside it and export that")
}

/// Changed Block Tracking files hold no guest data.
fn is_change_tracking(path: &Path) -> bool {
    let name = path.to_string_lossy().to_ascii_lowercase();
    name.ends_with("-ctk.vmdk")
}

/// Numbers inside names compare as numbers: disk2 before disk10.
fn natural(a: &str, b: &str) -> Ordering {
    let (a, b) = (runs(a), runs(b));
    for (left, right) in a.iter().zip(&b) {
        let numbers = left.parse::<u64>().ok().zip(right.parse::<u64>().ok());
        let order = numbers.map_or_else(|| left.cmp(right), |(left, right)| left.cmp(&right));
        if order != Ordering::Equal {
            return order;
        }
    }
    a.len().cmp(&b.len())
}

/// The text in runs of digits and of everything else.
fn runs(text: &str) -> Vec<&str> {
    let mut runs = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let digits = first.is_ascii_digit();
        let end = rest
            .find(|c: char| c.is_ascii_digit() != digits)
            .unwrap_or(rest.len());
        let (run, tail) = rest.split_at(end);
        runs.push(run);
        rest = tail;
    }
    runs
}
