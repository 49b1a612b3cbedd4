//! VHD (Virtual Hard Disk Image Format 1.0): fixed, dynamic, and differencing with its parents.
//!
//! Parents are opened by the caller's lookup, never by path, and known by their unique id. The
//! parent time stamp is not held against them: it is a file's, and copying a file changes it.
mod bat;
mod footer;
mod header;
#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime};

use queue::job::record::timestamp;
use serde_json::json;

use self::bat::Bat;
pub(super) use self::footer::COOKIE;
use self::footer::{DiskType, Footer};
use self::header::Header;
use super::Lookup;
use super::blocks::{BlockExtents, Geometry};
use super::flat::FlatExtents;
use super::overlay::{Overlay, nothing_packed};
use super::parent;
use crate::disk::{
    Extents, GuestOffset, Image, Layer, Packed, SECTOR_BYTES, Unpacked, Window, brief, corrupt,
};
use crate::error::Result;

/// 2000-01-01, from which its time stamps count.
const EPOCH_SECONDS: u64 = 946_684_800;

/// One file of a chain.
struct Vhd {
    files: [Window; 1],
    footer: Footer,
    /// `None`: fixed.
    header: Option<Header>,
}

/// Opens a VHD and, by `lookup`, its parents. Also returns what kind it is.
pub(super) fn open(window: Window, lookup: Lookup<'_>) -> Result<(Box<dyn Image>, &'static str)> {
    let mut directory = String::new();
    let mut last = Vhd::open(window)?;
    let kind = last.footer.disk_type.as_str();
    let mut children: Vec<Vhd> = Vec::new();
    while let Some((header, [window])) = last.differencing() {
        let path = window.path();
        let id = header.parent_unique_id;
        let loops = last.footer.unique_id == id
            || children.iter().any(|child| child.footer.unique_id == id);
        parent::check_chain(path, children.len() + 1, loops)?;
        let open = |window: Window| {
            let parent = Vhd::open(window)?;
            if parent.footer.unique_id == id {
                return Ok(parent);
            }
            let [window] = &parent.files;
            let what = format!(
                "it is not the parent of {}: that one's unique id is another",
                path.display()
            );
            Err(corrupt(window.path(), what))
        };
        let paths = &header.parent_paths;
        let (parent, place) = parent::find(path, &directory, paths, lookup, open)?;
        directory = place;
        children.push(std::mem::replace(&mut last, parent));
    }
    Ok((Overlay::stack(last, children), kind))
}

impl Vhd {
    fn open(window: Window) -> Result<Self> {
        let footer = Footer::read(&window)?;
        let capacity_bytes = footer.capacity_bytes;
        let header = match footer.disk_type {
            DiskType::Fixed if capacity_bytes > footer.offset_bytes => {
                let what = format!(
                    "truncated: a fixed VHD of {capacity_bytes} bytes, of which it has {}",
                    footer.offset_bytes
                );
                return Err(corrupt(window.path(), what));
            }
            DiskType::Fixed => None,
            DiskType::Dynamic | DiskType::Differencing => {
                let at = footer.data_offset_bytes;
                Some(Header::read(&window, at, capacity_bytes)?)
            }
        };
        Ok(Self {
            files: [window],
            footer,
            header,
        })
    }

    /// The header, if there is a parent to be found.
    fn differencing(&self) -> Option<(&Header, &[Window; 1])> {
        let is_child = self.footer.disk_type == DiskType::Differencing;
        let header = self.header.as_ref().filter(|_| is_child)?;
        Some((header, &self.files))
    }
}

impl Image for Vhd {
    fn capacity_bytes(&self) -> u64 {
        self.footer.capacity_bytes
    }

    fn files(&self) -> &[Window] {
        &self.files
    }

    fn extents(&self) -> Extents<'_> {
        let [window] = &self.files;
        let capacity_bytes = self.footer.capacity_bytes;
        let Some(header) = &self.header else {
            let range = 0..capacity_bytes;
            return Box::new(FlatExtents::new(window, 0, range, GuestOffset(0)));
        };
        let differencing = self.footer.disk_type == DiskType::Differencing;
        let geometry = Geometry {
            capacity_bytes,
            block_bytes: header.block_bytes,
            sector_bytes: SECTOR_BYTES,
            end_bytes: window.length_bytes(),
            differencing,
        };
        let bat = Bat::new(window, header, differencing);
        Box::new(BlockExtents::new(bat, window, geometry))
    }

    fn layers(&self) -> Vec<Layer> {
        let [window] = &self.files;
        let Footer {
            origin, disk_type, ..
        } = &self.footer;
        let (cylinders, heads, sectors) = origin.geometry;
        let id = |id: &[u8; 16]| format!("{:032x}", u128::from_be_bytes(*id));
        let created = Duration::from_secs(EPOCH_SECONDS + u64::from(origin.created_seconds));
        let parent = self.differencing().map(|(header, _)| {
            let paths: Vec<String> = header.parent_paths.iter().map(|path| brief(path)).collect();
            json!({"unique_id": id(&header.parent_unique_id), "paths": paths})
        });
        let fields = json!({
            "capacity_bytes": self.footer.capacity_bytes,
            "kind": disk_type.as_str(),
            "block_bytes": self.header.as_ref().map(|header| header.block_bytes),
            "unique_id": id(&self.footer.unique_id),
            "creator": {
                "application": origin.application,
                "version": format!("{}.{}", origin.version >> 16, origin.version & 0xffff),
                "host": origin.host,
            },
            "created_at": timestamp(SystemTime::UNIX_EPOCH + created),
            "geometry": {"cylinders": cylinders, "heads": heads, "sectors": sectors},
            "saved_state": origin.saved_state,
            "footer_lost": origin.is_copy,
            "parent": parent,
        });
        vec![Layer::new(window, "vhd", fields)]
    }

    fn unpack(&self, unit: &Packed, _stored: &[u8], _out: &mut [u8]) -> Result<Unpacked> {
        let [window] = &self.files;
        nothing_packed(window, unit)
    }
}
