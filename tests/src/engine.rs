//! The converter's library as the golden tests use it: opening, converting, and walking a map.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a panic is how a test fails
use std::path::Path;

use converter::convert::{self, DiskReport, Plan};
use converter::disk::{Stored, Unobserved};
use converter::error::{Error, Result};
use converter::source::{self, Appliance, SourceDisk, Unpacker};
use queue::roots::Roots;

/// Opens `owner` as `hyper2kvm convert` does: what lies beside it may be named absolutely, too.
pub fn open(owner: &Path) -> Result<Appliance> {
    let job = owner.parent().unwrap();
    let roots = Roots::open(job, &[job.to_path_buf()])?;
    source::open(&roots, owner, true, &unpacker())
}

/// For wrapped sources, where their content goes.
pub fn unpacker() -> Unpacker<'static> {
    Unpacker {
        directory: Path::new("/tmp"),
        observer: &Unobserved,
        patience: std::time::Duration::ZERO,
    }
}

pub fn first_disk(owner: &Path) -> SourceDisk {
    let appliance = open(owner).unwrap_or_else(|error| fails(&error));
    appliance.disks.into_iter().next().unwrap()
}

/// Converts the first disk of `owner`.
pub fn copy(owner: &Path, target: &Path, plan: &Plan) -> Result<DiskReport> {
    convert::copy(&open(owner)?.disks[0], target, plan, &Unobserved)
}

pub fn fails(error: &Error) -> ! {
    panic!("{error}: {:?}", error.chain())
}

/// Opens `owner` and walks and reads the whole map of its first disk, whatever they hold: an error
/// ends it, a map that has gaps or does not move fails the test.
pub fn walk(owner: &Path) {
    let Ok(appliance) = open(owner) else { return };
    let image = &appliance.disks[0].image;
    let mut end = 0;
    for extent in image.extents() {
        let Ok(extent) = extent else { return };
        assert_eq!(extent.start.0, end, "the map has gaps");
        assert!(extent.length_bytes > 0, "the map does not move");
        end += extent.length_bytes;
        if let Stored::Packed { unit, .. } = extent.stored {
            let file = &image.files()[unit.file];
            let limit_bytes = unit.limit_bytes as usize;
            let stored = file.read_vec(unit.offset.0, limit_bytes).unwrap();
            let mut out = vec![0; unit.unpacked_bytes as usize];
            let _ = image.unpack(&unit, &stored, &mut out);
        }
    }
    assert_eq!(end, image.capacity_bytes());
}
