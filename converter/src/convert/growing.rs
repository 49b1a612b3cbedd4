//! Converts a disk while it arrives. What comes out is what its tables say once it is whole, as if
//! there had been no streaming: where they say something else, it is converted again by them.
use std::fs;
use std::path::Path;

use super::DiskReport;
use crate::disk::Observer;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{Completed, SourceDisk};

/// Converts `disk` into `target` by `copy`, completing it if it still arrives.
pub(super) fn copy_growing(
    disk: &mut SourceDisk,
    target: &Path,
    observer: &dyn Observer,
    copy: &dyn Fn(&SourceDisk) -> Result<DiskReport>,
) -> Result<DiskReport> {
    if !disk.is_growing() {
        return copy(disk);
    }
    observer.follow(true);
    observer.tell(&format!("{} is converted while it arrives", disk.name));
    let streamed = match copy(disk) {
        Ok(report) => Some(report),
        Err(error) if disk.is_irregular() && error.kind != ErrorKind::Cancelled => {
            observer.tell(&format!(
                "{} is no plain stream: it has to be whole first",
                disk.name
            ));
            None
        }
        Err(error) => return Err(error),
    };
    match (disk.complete(observer)?, streamed) {
        (Completed::AsStreamed, Some(report)) => Ok(DiskReport {
            source_bytes: disk.source_bytes,
            ..report
        }),
        (Completed::AsStreamed, None) => again(disk, target, observer, copy, "it was not streamed"),
        (Completed::Otherwise(why), _) => again(disk, target, observer, copy, &why),
    }
}

fn again(
    disk: &SourceDisk,
    target: &Path,
    observer: &dyn Observer,
    copy: &dyn Fn(&SourceDisk) -> Result<DiskReport>,
    why: &str,
) -> Result<DiskReport> {
    observer.tell(&format!(
        "{} is converted again, by its tables: {why}",
        disk.name
    ));
    observer.expect(disk.allocated_bytes);
    match fs::remove_file(target) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io("remove", target, error));
        }
        _ => {}
    }
    copy(disk)
}
