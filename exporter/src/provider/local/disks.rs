//! Which files are the disks of the VM: candidates by name, and the extents that descriptors own.
//!
//! Whatever would lose something silently is refused: an extent without its descriptor, a snapshot
//! whose parent lies beside it, an appliance whose descriptor tells the hardware.
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use queue::arrival::candidate::{self, Class};
use queue::arrival::pieces::{self, Scope};

use crate::error::{Error, ErrorKind, Result};

const HEAD_BYTES: u64 = 4096;
const MAX_DISKS: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The file that stands for the disk.
    pub file: String,
    pub format: &'static str,
    /// Its extents, beside it.
    pub owned: Vec<String>,
    /// Of all of them.
    pub size_bytes: u64,
}

#[derive(Debug)]
pub struct Found {
    pub directory: PathBuf,
    pub disks: Vec<Files>,
}

/// `source` is absolute and without symbolic links.
pub fn find(source: &Path) -> Result<Found> {
    if !source.is_dir() {
        return find_file(source);
    }
    let mut names = candidates(source)?;
    names.sort_by(|a, b| natural(candidate::stem(a), candidate::stem(b)).then(a.cmp(b)));
    let mut disks = Vec::new();
    let mut extents = Vec::new();
    let mut owned = BTreeSet::new();
    for name in names {
        let head = head(&source.join(&name))?;
        if candidate::is_extent(&name, &head) {
            extents.push(name);
            continue;
        }
        let files = files(source, &name, &head)?;
        owned.extend(files.owned.iter().cloned());
        disks.push(files);
    }
    // A descriptor may own files that look like disks (`disk.raw`).
    disks.retain(|disk| !owned.contains(&disk.file));
    let is_lost = |name: &String| !owned.contains(name) && !is_change_tracking(name);
    if let Some(lost) = extents.into_iter().find(is_lost) {
        return Err(lost_extent(&source.join(lost)));
    }
    if disks.is_empty() || disks.len() > MAX_DISKS {
        let (place, count) = (source.display(), disks.len());
        return Err(Error::invalid(format!("{place} holds {count} disks"))
            .with_remedy("give a directory with the 1 to 256 disks of one VM"));
    }
    Ok(Found {
        directory: source.to_path_buf(),
        disks,
    })
}

fn find_file(source: &Path) -> Result<Found> {
    let directory = source.parent().unwrap_or(Path::new("/"));
    let name = source
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    if is_appliance(name) {
        return Err(appliance(source));
    }
    if candidate::classify(name) != Some(Class::Disk) {
        return Err(
            Error::invalid(format!("{} is not named like a disk", source.display())).with_remedy(
                "give a .vmdk, .vhd, .vhdx, .raw, .img, .ami, .qcow2 or .vdi file, plain or packed",
            ),
        );
    }
    let head = head(source)?;
    if candidate::is_extent(name, &head) {
        return Err(lost_extent(source));
    }
    Ok(Found {
        directory: directory.to_path_buf(),
        disks: vec![files(directory, name, &head)?],
    })
}

fn candidates(directory: &Path) -> Result<Vec<String>> {
    let bad = |error| Error::io("list", directory, error);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(bad)? {
        let name = entry.map_err(bad)?.file_name();
        let Some(name) = name.to_str() else {
            continue;
        };
        if candidate::is_ignored(name) {
            continue;
        }
        if is_appliance(name) {
            return Err(appliance(&directory.join(name)));
        }
        if candidate::classify(name) == Some(Class::Disk) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn is_appliance(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    candidate::classify(name) == Some(Class::Ovf)
        || [".ova", ".ova.gz", ".ova.xz", ".ova.zst"]
            .iter()
            .any(|end| lower.ends_with(end))
}

fn appliance(path: &Path) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("{} is an appliance, which needs no export", path.display()),
    )
    .with_remedy("copy it into the queue (an OVF with its disks), or run hyper2kvm convert on it")
}

fn lost_extent(path: &Path) -> Error {
    Error::invalid(format!(
        "{} is an extent without its descriptor",
        path.display()
    ))
    .with_remedy("put the disk's descriptor (the small .vmdk) beside it and export that")
}

/// Changed Block Tracking files hold no guest data.
fn is_change_tracking(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with("-ctk.vmdk")
}

fn head(path: &Path) -> Result<Vec<u8>> {
    pieces::head(path, HEAD_BYTES).map_err(|error| Error::io("read", path, error))
}

fn files(directory: &Path, name: &str, head: &[u8]) -> Result<Files> {
    let path = directory.join(name);
    let mut owned = Vec::new();
    if candidate::is_descriptor(head) {
        refuse_snapshot(&path, head)?;
        let scope = Scope {
            base: directory,
            queue: directory,
            output: directory,
        };
        owned = scope.pieces(name)?.names;
    }
    let mut size_bytes = size(&path)?;
    for extent in &owned {
        if extent.contains('/') {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "{} has the extent {extent:?} in another directory",
                    path.display()
                ),
            )
            .with_remedy("put all files of the disk into one directory"));
        }
        size_bytes = size_bytes.saturating_add(size(&directory.join(extent))?);
    }
    Ok(Files {
        file: name.to_owned(),
        format: format(name, head),
        owned,
        size_bytes,
    })
}

fn size(path: &Path) -> Result<u64> {
    let metadata = std::fs::symlink_metadata(path).map_err(|error| {
        Error::io("find", path, error).with_remedy("put the missing file beside its descriptor")
    })?;
    if !metadata.is_file() {
        return Err(
            Error::invalid(format!("{} is not a regular file", path.display()))
                .with_remedy("give disks as plain files; links are not followed"),
        );
    }
    Ok(metadata.len())
}

fn refuse_snapshot(path: &Path, descriptor: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(descriptor);
    let key = "parentfilenamehint";
    if text
        .lines()
        .any(|line| line.trim_start().to_ascii_lowercase().starts_with(key))
    {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("{} is a snapshot of another disk", path.display()),
        )
        .with_remedy("consolidate the VM's snapshots and export it again"));
    }
    Ok(())
}

/// By name where the name says it; `.img` and `.ami` by their first bytes.
fn format(name: &str, head: &[u8]) -> &'static str {
    let lower = name.to_ascii_lowercase();
    let named = lower.split('.').rev().take(2).find_map(|part| {
        ["vmdk", "vhdx", "vhd", "qcow2", "vdi"]
            .into_iter()
            .find(|f| *f == part)
    });
    if let Some(format) = named {
        return format;
    }
    let signatures: [(&[u8], &str); 3] = [
        (b"QFI\xfb", "qcow2"),
        (b"KDMV", "vmdk"),
        (b"vhdxfile", "vhdx"),
    ];
    let signed = signatures
        .into_iter()
        .find(|(mark, _)| head.starts_with(mark));
    signed.map_or("raw", |(_, format)| format)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn place(files: &[(&str, &str)]) -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(place.path().join(name), content).unwrap();
        }
        place
    }

    const DESCRIPTOR: &str =
        "# Disk DescriptorFile\nversion=1\nRW 8 FLAT \"vm-flat.vmdk\" 0\nRW 8 FLAT \"x.raw\" 0\n";

    #[test]
    fn finds_disks_in_order_with_their_extents() {
        let place = place(&[
            ("vm.vmdk", DESCRIPTOR),
            ("vm-flat.vmdk", "12345678"),
            ("vm-ctk.vmdk", "t"),
            ("x.raw", "1234"),
            ("vm_10.vmdk", "KDMV"),
            ("vm_2.img", "QFI\u{fb}"),
            ("vm_3.raw.gz", "x"),
            ("notes.txt", "x"),
            (".hidden.vmdk", "x"),
            ("late.vmdk.part", "x"),
        ]);
        std::fs::write(place.path().join("vm_2.img"), b"QFI\xfb").unwrap();
        let found = find(place.path()).unwrap();
        let disks: Vec<(&str, &str, u64)> = found
            .disks
            .iter()
            .map(|disk| (disk.file.as_str(), disk.format, disk.size_bytes))
            .collect();
        let descriptor = DESCRIPTOR.len() as u64 + 12;
        assert_eq!(
            disks,
            [
                ("vm.vmdk", "vmdk", descriptor),
                ("vm_2.img", "qcow2", 4),
                ("vm_3.raw.gz", "raw", 1),
                ("vm_10.vmdk", "vmdk", 4),
            ]
        );
        assert_eq!(found.disks[0].owned, ["vm-flat.vmdk", "x.raw"]);
        let one = find(&place.path().join("vm.vmdk")).unwrap();
        assert_eq!(one.disks[0], found.disks[0]);
    }

    #[test]
    fn refuses_what_would_lose_something() {
        let child = "# Disk DescriptorFile\nparentFileNameHint=\"vm.vmdk\"\n";
        for (files, about) in [
            (&[("readme.txt", "x")][..], "holds 0 disks"),
            (&[("vm-flat.vmdk", "x")], "without its descriptor"),
            (&[("vm.vmdk", DESCRIPTOR), ("x.raw", "")], "vm-flat.vmdk"),
            (&[("vm-000001.vmdk", child)], "snapshot"),
            (&[("a.vmdk", "KDMV"), ("a.ovf", "x")], "appliance"),
            (&[("a.ova", "x")], "appliance"),
        ] {
            let place = place(files);
            let error = find(place.path()).unwrap_err();
            assert!(error.to_string().contains(about), "{error}");
        }
        let place = place(&[("vm-flat.vmdk", "x"), ("a.txt", "x"), ("a.ova", "x")]);
        for name in ["vm-flat.vmdk", "a.txt", "a.ova"] {
            assert!(find(&place.path().join(name)).is_err(), "{name}");
        }
    }
}
