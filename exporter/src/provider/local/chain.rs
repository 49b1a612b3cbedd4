//! All files that one disk is made of: its descriptor, its extents, and the disks below a snapshot.
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use queue::arrival::{candidate, parents, pieces};
use queue::job::manifest::FIXED_NAMES;

use super::place::Place;
use crate::error::{Error, ErrorKind, Result};

const HEAD_BYTES: usize = 4096;
/// The largest descriptor that is read: one of the largest disk in 2 GB pieces has a tenth of it.
const MAX_DESCRIPTOR_BYTES: u64 = 1024 * 1024;
/// More disks in one chain than any writer makes.
const MAX_CHAIN: usize = 64;
/// Of all disks of a VM: what a manifest can name.
const MAX_FILES: usize = 3000;

/// A file that is to be copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub from: PathBuf,
    /// Relative to where the export goes.
    pub to: String,
    pub size_bytes: u64,
}

/// A disk, or an appliance, with everything that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The file that stands for it.
    pub first: Part,
    pub others: Vec<Part>,
    pub format: &'static str,
}

impl Files {
    pub fn size_bytes(&self) -> u64 {
        let parts = std::iter::once(&self.first).chain(&self.others);
        parts.fold(0, |sum, part| sum.saturating_add(part.size_bytes))
    }
}

/// The disk at `path`, and what it stands on.
pub fn of_disk(place: &Place<'_>, path: &Path) -> Result<Files> {
    let mut below = Some(path.to_path_buf());
    let mut disks: Vec<PathBuf> = Vec::new();
    let mut parts = Vec::new();
    let mut format = None;
    while let Some(path) = below {
        if disks.contains(&path) || disks.len() >= MAX_CHAIN {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("the chain of parents of {} does not end", path.display()),
            )
            .with_remedy("consolidate the VM's snapshots and export it again"));
        }
        let file = place.open(&path)?;
        let link = Link::read(&file, &path)?;
        format = format.or(Some(link.format));
        parts.push(part(&file, &path)?);
        for name in &link.extents {
            let extent = beside(&path, name)?;
            parts.push(part(&place.open(&extent)?, &extent)?);
        }
        below = link
            .parent
            .map(|name| parent(place, &path, &name))
            .transpose()?;
        disks.push(path);
    }
    let mut parts = parts.into_iter();
    let first = parts
        .next()
        .ok_or_else(|| Error::new(ErrorKind::Internal, "a disk without a file"))?;
    Ok(Files {
        first,
        others: parts.collect(),
        format: format.unwrap_or("raw"),
    })
}

/// What one file of a chain says.
struct Link {
    format: &'static str,
    extents: Vec<String>,
    parent: Option<String>,
}

impl Link {
    fn read(file: &File, path: &Path) -> Result<Self> {
        let head = head(file, path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let format = format(&name, &head);
        if !candidate::is_descriptor(&head) {
            return Ok(Self {
                format,
                extents: Vec::new(),
                parent: parents::parent_path(file),
            });
        }
        let text = text(file, path)?;
        refuse_foreign(&text, path)?;
        Ok(Self {
            format,
            extents: pieces::extents(&text).map(str::to_owned).collect(),
            parent: parents::path_in_descriptor(&text),
        })
    }
}

pub fn head(file: &File, path: &Path) -> Result<Vec<u8>> {
    let mut head = vec![0; HEAD_BYTES];
    let mut length = 0;
    while let Some(room) = head.get_mut(length..).filter(|room| !room.is_empty()) {
        match file.read_at(room, length as u64) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("read", path, error)),
        }
    }
    head.truncate(length);
    Ok(head)
}

fn text(file: &File, path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    file.take(MAX_DESCRIPTOR_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Error::io("read", path, error))?;
    if bytes.len() as u64 > MAX_DESCRIPTOR_BYTES {
        let path = path.display();
        return Err(
            Error::invalid(format!("the descriptor {path} is larger than 1 MiB"))
                .with_remedy("a descriptor names a disk's files and holds no data"),
        );
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A disk whose data is not in files, or that only its key opens.
fn refuse_foreign(descriptor: &str, path: &Path) -> Result<()> {
    let says = |key: &str, value: &str| {
        let mut lines = descriptor.lines().map(str::to_ascii_lowercase);
        lines.any(|line| line.trim_start().starts_with(key) && line.contains(value))
    };
    let (what, remedy) = if says("createtype", "rawdevicemap") || says("createtype", "device\"") {
        (
            "stands for a raw device, whose data is in no file",
            "copy its LUN by itself, or detach it from the VM for the export",
        )
    } else if says("encryptionkeys", "=") {
        ("is encrypted", "decrypt the VM and export it again")
    } else {
        return Ok(());
    };
    let path = path.display();
    Err(Error::new(ErrorKind::Unsupported, format!("{path} {what}")).with_remedy(remedy))
}

/// An extent is a plain name: the engine looks for it beside its descriptor.
fn beside(descriptor: &Path, name: &str) -> Result<PathBuf> {
    if name.contains(['/', '\\', '\0']) || name == ".." || name == "." || name.is_empty() {
        let path = descriptor.display();
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("{path} has the extent {name:?} in another directory"),
        )
        .with_remedy("put all files of the disk into one directory"));
    }
    Ok(descriptor.with_file_name(name))
}

/// Beside the child, where snapshots are; else where the hint leads. That it is the right one, the
/// engine checks by its identity.
fn parent(place: &Place<'_>, child: &Path, hint: &str) -> Result<PathBuf> {
    let near = parents::last_part(hint).map(|name| child.with_file_name(name));
    if let Some(near) = near.filter(|near| near.symlink_metadata().is_ok()) {
        return Ok(near);
    }
    place.locate(child.parent().unwrap_or(child), hint, child)
}

pub fn part(file: &File, path: &Path) -> Result<Part> {
    let metadata = file
        .metadata()
        .map_err(|error| Error::io("stat", path, error))?;
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| {
        Error::invalid(format!("the name of {} is not UTF-8", path.display()))
            .with_remedy("rename the file")
    })?;
    Ok(Part {
        from: path.to_path_buf(),
        to: name.to_owned(),
        size_bytes: metadata.len(),
    })
}

/// Gives every file a place of its own; disks whose names are taken go into a directory each.
pub fn lay_out(disks: &mut [Files]) -> Result<()> {
    let files: usize = disks.iter().map(|disk| disk.others.len() + 1).sum();
    if files > MAX_FILES {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("the VM's disks have {files} files, more than {MAX_FILES}"),
        )
        .with_remedy("make its disks of fewer pieces, or export them in parts"));
    }
    let mut taken: Vec<(String, PathBuf)> = FIXED_NAMES
        .map(|name| (name.to_owned(), PathBuf::new()))
        .to_vec();
    for (index, disk) in disks.iter_mut().enumerate() {
        let parts = || std::iter::once(&disk.first).chain(&disk.others);
        let is_taken = |name: &str, part: &Part, taken: &[(String, PathBuf)]| {
            taken
                .iter()
                .any(|(known, from)| known == name && *from != part.from)
        };
        let prefix = match parts().any(|part| is_taken(&part.to, part, &taken)) {
            true => format!("disk-{index}/"),
            false => String::new(),
        };
        for part in std::iter::once(&mut disk.first).chain(&mut disk.others) {
            part.to.insert_str(0, &prefix);
            if is_taken(&part.to, part, &taken) {
                let (name, from) = (&part.to, part.from.display());
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("two files of one disk are called {name}, one of them {from}"),
                )
                .with_remedy("consolidate the VM's snapshots and export it again"));
            }
            taken.push((part.to.clone(), part.from.clone()));
        }
    }
    Ok(())
}

/// By name where the name says it; `.img` and `.ami` by their first bytes.
pub fn format(name: &str, head: &[u8]) -> &'static str {
    let lower = name.to_ascii_lowercase();
    let named = lower.split('.').rev().take(2).find_map(|part| {
        [
            ("vmdk", "vmdk"),
            ("vhdx", "vhdx"),
            ("avhdx", "vhdx"),
            ("vhd", "vhd"),
            ("avhd", "vhd"),
            ("qcow2", "qcow2"),
            ("vdi", "vdi"),
        ]
        .into_iter()
        .find_map(|(extension, format)| (extension == part).then_some(format))
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
