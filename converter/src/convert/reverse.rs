//! Undoes the repair of a published result: its images, its domain.xml and its metadata.json.
use std::path::Path;

use queue::instance::config::OutFormat;

use super::care::digest_of;
use super::examine::{Care, case, macs};
use super::metadata::Metadata;
use super::vm::DOMAIN;
use crate::disk::Observer;
use crate::error::{Error, Result};
use crate::guest;
use crate::guest::overlay::{Image, Shelf};
use crate::guest::report::ARCHIVE;

const METADATA: &str = "metadata.json";

/// Puts back what the repair of the result in `directory` changed; returns the guest's files.
pub fn undo(
    directory: &Path,
    care: &Care,
    force: bool,
    shelf: &Shelf<'_>,
    observer: &dyn Observer,
) -> Result<Vec<String>> {
    let path = directory.join(METADATA);
    let bytes = std::fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
    let mut metadata = Metadata::parse(&bytes)?;
    let images: Vec<Image> = metadata
        .disks
        .iter()
        .map(|disk| image(directory, &disk.file))
        .collect();
    let macs = macs(&metadata.machine);
    let files = guest::undo::undo(
        &case(care, &metadata.machine, &macs),
        directory,
        &images,
        force,
        shelf,
        observer,
    )?;
    let domain = directory.join(ARCHIVE).join(DOMAIN);
    if let Ok(text) = std::fs::read(&domain) {
        (shelf.replace)(&directory.join(DOMAIN), &text)?;
    }
    for (disk, image) in metadata.disks.iter_mut().zip(&images) {
        let format = OutFormat::Raw.as_str() == image.format;
        if disk.digest.is_some() {
            disk.digest = Some(digest_of(&image.path, format, observer)?);
        }
    }
    metadata.guest.repaired = false;
    metadata.guest.virtio = false;
    metadata.guest.boot = None;
    metadata.guest.code = Some("undone".to_owned());
    metadata.guest.reason = Some("the repair was undone".to_owned());
    (shelf.replace)(&path, metadata.to_json()?.as_bytes())?;
    Ok(files)
}

/// A published image: by its name's end, as it was named by us.
fn image(directory: &Path, file: &str) -> Image {
    let is_raw = file.ends_with(".raw");
    Image {
        path: directory.join(file),
        format: if is_raw { "raw" } else { "qcow2" },
    }
}
