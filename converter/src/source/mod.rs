//! Opens what was dropped: a disk, an OVA, an OVF or a manifest becomes an `Appliance`.
//!
//! The content chooses the format; a name that says something else is an error. Every file is
//! opened through `Roots`, never by a path alone, and only read.
mod arriving;
mod blocks;
mod content;
mod flat;
mod growing;
mod manifest;
mod overlay;
mod package;
mod parent;
mod qcow;
mod raw;
#[cfg(test)]
mod seen;
mod tar;
#[cfg(test)]
mod tests;
mod vhd;
mod vhdx;
mod vmdk;
mod wrapper;

use std::path::Path;

use queue::job::{Machine, Manifest};
use queue::roots::Roots;
use serde::Serialize;

use self::content::{Claim, Content};
pub use self::growing::Completed;
use self::growing::Growing;
pub use self::wrapper::Unpacker;
use crate::disk::{Checksum, Image, Window};
use crate::error::Result;

/// A virtual machine as its source describes it.
pub struct Appliance {
    /// `name` is `None` for a bare disk: the caller names it after the drop.
    pub machine: Machine,
    /// In boot order, then in the order of the hardware; never empty.
    pub disks: Vec<SourceDisk>,
    /// What an OVF package says beside the machine.
    pub package: Option<PackageFacts>,
    /// What was read over, one line each.
    pub notes: Vec<String>,
}

/// What stands beside the disks of an OVF package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PackageFacts {
    pub descriptor: String,
    /// The `.mf` with the files' digests, if there is one.
    pub digests: Option<String>,
    /// `vmx-19`, `virtualbox-2.2`: the hardware that the descriptor is for.
    pub system_type: Option<String>,
}

/// A disk that is open and whose structure was checked as far as its header and map.
pub struct SourceDisk {
    /// The file's name as its owner names it.
    pub name: String,
    /// Container and subformat, e.g. `vmdk (streamOptimized)`.
    pub format: String,
    pub capacity_bytes: u64,
    /// What the guest takes for a sector: 512 or 4096.
    pub sector_bytes: u64,
    /// The sizes of its files together.
    pub source_bytes: u64,
    /// What the file system holds for them: the total that `Observer::advance` adds up to.
    pub allocated_bytes: u64,
    /// `scsi`, `sata`, `ide`, `nvme`, as the source says it.
    pub bus: Option<String>,
    /// Lower boots first; only from a manifest.
    pub boot_order: Option<i64>,
    pub image: Box<dyn Image>,
    /// Verified by `convert::copy` while it reads; a mismatch fails it as `corrupt`.
    pub checksums: Vec<Checksum>,
    /// How the file was compressed as a whole: `gzip`, `xz`, `zstd`.
    pub wrapper: Option<String>,
    /// It still arrives, and is streamed: see `SourceDisk::complete`.
    growing: Option<Growing>,
    /// What was read over, until the appliance has it.
    notes: Vec<String>,
}

/// Finds the file that a descriptor names, where and as far as its owner may read.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Result<Window>;

/// Opens `owner`: a disk, an OVA, an OVF or a manifest (`*.json`) beneath `roots`.
///
/// With `checksum`, what manifests and `.mf` files say is attached to the disks and verified by
/// `convert::copy`; an OVF's own digest is verified at once. What is compressed as a whole is
/// unpacked first, which takes as long as that takes.
pub fn open(
    roots: &Roots,
    owner: &Path,
    checksum: bool,
    unpacker: &Unpacker<'_>,
) -> Result<Appliance> {
    let mut appliance = open_owner(roots, owner, checksum, unpacker)?;
    for disk in &mut appliance.disks {
        appliance.notes.append(&mut disk.notes);
    }
    Ok(appliance)
}

fn open_owner(
    roots: &Roots,
    owner: &Path,
    checksum: bool,
    unpacker: &Unpacker<'_>,
) -> Result<Appliance> {
    let (file, path) = roots.open_path(owner)?;
    let window = Window::whole(file, &path)?;
    if is_manifest(&path) {
        return manifest::open(roots, &window, checksum, unpacker);
    }
    open_file(roots, window, checksum, unpacker)
}

/// What stands for itself: a disk, an OVA or an OVF.
fn open_file(
    roots: &Roots,
    window: Window,
    checksum: bool,
    unpacker: &Unpacker<'_>,
) -> Result<Appliance> {
    let path = window.path().to_path_buf();
    let name = file_name(&path);
    let opened = unpacker.open(window, &name)?;
    let claim = Claim::by_name(&opened.name);
    let lookup = |reference: &str| open_reference(roots, &path, reference);
    match opened.content {
        Content::Tar if claim.is_family() || package::has_descriptor(&opened.window)? => {
            claim.check(opened.content, &path)?;
            package::open_ova(&opened.window, checksum, unpacker)
        }
        Content::Ovf if opened.wrapper.is_none() => {
            claim.check(opened.content, &path)?;
            package::open_ovf(roots, &opened.window, &lookup, checksum, unpacker)
        }
        _ => content::open_opened(opened, &name, &claim, &lookup, unpacker).map(bare),
    }
}

fn bare(disk: SourceDisk) -> Appliance {
    Appliance {
        machine: Machine::default(),
        disks: vec![disk],
        package: None,
        notes: Vec::new(),
    }
}

/// The manifest, if `owner` is one: what it asks for beyond its disks is the caller's.
pub fn read_manifest(roots: &Roots, owner: &Path) -> Result<Option<Manifest>> {
    if !is_manifest(owner) {
        return Ok(None);
    }
    let (file, path) = roots.open_path(owner)?;
    manifest::read(&Window::whole(file, &path)?).map(Some)
}

/// Opens a raw image that `convert::copy` wrote, to be read again.
pub(crate) fn open_raw(window: Window) -> Result<SourceDisk> {
    let name = file_name(window.path());
    let image = raw::RawImage::open(window)?;
    Ok(SourceDisk::new(&name, "raw".to_owned(), Box::new(image)))
}

fn is_manifest(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("json"))
}

fn open_reference(roots: &Roots, referrer: &Path, name: &str) -> Result<Window> {
    let (file, path) = roots.open_reference(referrer, name)?;
    Window::whole(file, &path)
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

impl SourceDisk {
    pub(crate) fn new(name: &str, format: String, image: Box<dyn Image>) -> Self {
        let sum = |measure: fn(&Window) -> u64| {
            image
                .files()
                .iter()
                .fold(0u64, |sum, file| sum.saturating_add(measure(file)))
        };
        Self {
            name: name.to_owned(),
            format,
            capacity_bytes: image.capacity_bytes(),
            sector_bytes: image.sector_bytes(),
            source_bytes: sum(Window::length_bytes),
            allocated_bytes: sum(Window::allocated_bytes),
            bus: None,
            boot_order: None,
            image,
            checksums: Vec::new(),
            wrapper: None,
            growing: None,
            notes: Vec::new(),
        }
    }
}
