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

use serde_json::json;

use self::bat::Bat;
pub(super) use self::header::SIGNATURE;
use self::header::{Header, written};
use self::log::Replayed;
use self::metadata::{Metadata, ParentLocator};
use self::region::Regions;
use super::Lookup;
use super::blocks::{BlockExtents, Geometry};
use super::overlay::{Overlay, nothing_packed};
use super::parent::{self, utf16};
use crate::disk::{Extents, Image, Layer, Packed, Unpacked, Window, brief, corrupt};
use crate::error::Result;

/// One file of a chain.
struct Vhdx {
    files: [Window; 1],
    file: Replayed,
    header: Header,
    creator: String,
    /// The data write GUID, as it is written.
    identity: String,
    regions: Regions,
    metadata: Metadata,
}

/// Opens a VHDX and, by `lookup`, its parents. Also returns what kind it is.
pub(super) fn open(window: Window, lookup: Lookup<'_>) -> Result<(Box<dyn Image>, &'static str)> {
    let mut directory = String::new();
    let mut last = Vhdx::open(window)?;
    let kind = last.kind();
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
    fn kind(&self) -> &'static str {
        match (&self.metadata.parent, self.metadata.leaves_allocated) {
            (Some(_), _) => "differencing",
            (None, true) => "fixed",
            (None, false) => "dynamic",
        }
    }

    fn open(window: Window) -> Result<Self> {
        let header = Header::read(&window)?;
        // [MS-VHDX] 2.2.1: behind the signature, up to 256 characters.
        let creator = utf16(&window.read_vec(8, 512)?, u16::from_le_bytes);
        let file = Replayed::new(window.clone(), &header)?;
        let regions = Regions::read(&file, &header)?;
        let metadata = Metadata::read(&file, &regions.metadata)?;
        bat::check(&file, &regions, &metadata)?;
        Ok(Self {
            files: [window],
            file,
            identity: written(&header.data_write_guid),
            creator,
            header,
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

    fn sector_bytes(&self) -> u64 {
        self.metadata.sector_bytes
    }

    fn layers(&self) -> Vec<Layer> {
        let (header, metadata) = (&self.header, &self.metadata);
        let brief_all =
            |texts: &[String]| -> Vec<String> { texts.iter().map(|text| brief(text)).collect() };
        let parent = metadata.parent.as_ref().map(|parent| {
            json!({
                "data_write_ids": brief_all(&parent.linkages),
                "paths": brief_all(&parent.paths),
            })
        });
        let fields = json!({
            "capacity_bytes": metadata.capacity_bytes,
            "kind": self.kind(),
            "block_bytes": metadata.block_bytes,
            "logical_sector_bytes": metadata.sector_bytes,
            "physical_sector_bytes": metadata.physical_sector_bytes,
            "disk_id": metadata.disk_id.as_ref().map(written),
            "file_write_id": written(&header.file_write_guid),
            "data_write_id": self.identity,
            "creator": self.creator,
            "log": {
                "id": header.log_guid.as_ref().map(written),
                "replayed": header.log_guid.is_some(),
                "offset_bytes": header.log_at,
                "length_bytes": header.log_bytes,
            },
            "parent": parent,
        });
        vec![Layer::new(&self.file.window, "vhdx", fields)]
    }

    fn unpack(&self, unit: &Packed, _stored: &[u8], _out: &mut [u8]) -> Result<Unpacked> {
        let [window] = &self.files;
        nothing_packed(window, unit)
    }
}
