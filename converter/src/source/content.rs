//! Tells a file's format by its content and holds it against its name.
use std::path::Path;

use super::{SourceDisk, raw};
use crate::disk::Window;
use crate::error::Result;

pub(super) fn open_disk(window: Window, path: &Path) -> Result<SourceDisk> {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let image = raw::RawImage::open(window)?;
    Ok(SourceDisk::new(name, "raw".to_owned(), Box::new(image)))
}
