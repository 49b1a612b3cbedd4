//! VHDX ([MS-VHDX]): fixed, dynamic, and differencing with its parents; a log that is not empty is
//! replayed in memory.
//!
//! Parents are opened by the caller's lookup, never by path, and known by their data write GUID.
mod bat;
mod crc32c;
mod header;
mod log;
mod metadata;
mod region;
#[cfg(test)]
mod tests;

use self::bat::Bat;
pub(super) use self::header::SIGNATURE;
use self::header::{Header, written};
use self::log::Replayed;
use self::metadata::{Metadata, ParentLocator};
use self::region::Regions;
use super::Lookup;
use super::blocks::{BlockExtents, Geometry};
use super::overlay::{Overlay, nothing_packed};
use super::parent;
use crate::disk::{Extents, Image, Packed, Unpacked, Window, corrupt};
use crate::error::Result;

/// One file of a chain.
struct Vhdx {
    files: [Window; 1],
    file: Replayed,
    /// The data write GUID, as it is written.
    identity: String,
    regions: Regions,
    metadata: Metadata,
}

/// Opens a VHDX and, by `lookup`, its parents. Also returns what kind it is.
pub(super) fn open(window: Window, lookup: Lookup<'_>) -> Result<(Box<dyn Image>, &'static str)> {
    let mut directory = String::new();
    let mut last = Vhdx::open(window)?;
    let kind = match (&last.metadata.parent, last.metadata.leaves_allocated) {
        (Some(_), _) => "differencing",
        (None, true) => "fixed",
        (None, false) => "dynamic",
    };
    let mut children: Vec<Vhdx> = Vec::new();
    while let Some(locator) = &last.metadata.parent {
        let path = last.file.window.path();
        let loops = children
            .iter()
            .chain([&last])
            .any(|child| locator.names(&child.identity));
        parent::check_chain(path, children.len() + 1, loops)?;
        let open = |window: Window| {
            let parent = Vhdx::open(window)?;
            if locator.names(&parent.identity) {
                return Ok(parent);
            }
            let what = format!(
                "it is not the parent of {}, or was changed since: its data write GUID is {}",
                path.display(),
                parent.identity
            );
            Err(corrupt(parent.file.window.path(), what))
        };
        let (parent, place) = parent::find(path, &directory, &locator.paths, lookup, open)?;
        directory = place;
        children.push(std::mem::replace(&mut last, parent));
    }
    Ok((Overlay::stack(last, children), kind))
}

impl ParentLocator {
    fn names(&self, identity: &str) -> bool {
        let same = |linkage: &String| linkage.eq_ignore_ascii_case(identity);
        self.linkages.iter().any(same)
    }
}

impl Vhdx {
    fn open(window: Window) -> Result<Self> {
        let header = Header::read(&window)?;
        let file = Replayed::new(window.clone(), &header)?;
        let regions = Regions::read(&file, &header)?;
        let metadata = Metadata::read(&file, &regions.metadata)?;
        bat::check(&file, &regions, &metadata)?;
        Ok(Self {
            files: [window],
            file,
            identity: written(&header.data_write_guid),
            regions,
            metadata,
        })
    }
}

impl Image for Vhdx {
    fn capacity_bytes(&self) -> u64 {
        self.metadata.capacity_bytes
    }

    fn files(&self) -> &[Window] {
        &self.files
    }

    fn extents(&self) -> Extents<'_> {
        let [window] = &self.files;
        let geometry = Geometry {
            capacity_bytes: self.metadata.capacity_bytes,
            block_bytes: self.metadata.block_bytes,
            sector_bytes: self.metadata.sector_bytes,
            end_bytes: self.file.length_bytes,
            differencing: self.metadata.parent.is_some(),
        };
        let bat = Bat::new(&self.file, &self.regions, &self.metadata);
        Box::new(BlockExtents::new(bat, window, geometry))
    }

    fn unpack(&self, unit: &Packed, _stored: &[u8], _out: &mut [u8]) -> Result<Unpacked> {
        let [window] = &self.files;
        nothing_packed(window, unit)
    }
}
