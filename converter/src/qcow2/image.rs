//! Reads a qcow2: its own clusters, in an external data file if it has one.
//!
//! What lies below in a backing file is the caller's, and so is opening any file. Refcounts and
//! snapshots are not looked at: the active L1 table is all there is.
use std::cell::RefCell;

use libdeflater::Decompressor;
use serde_json::json;
use zstd::zstd_safe;

pub use super::header::{Backing, References};
use super::header::{DIRTY, Header, LAZY_REFCOUNTS};
use super::{COPIED, Compression, PACKED};
use crate::disk::{
    Extent, Extents, GuestOffset, HostOffset, Image, Layer, Packed, SECTOR_BYTES, Stored, Unpacked,
    Window, brief, corrupt,
};
use crate::error::Result;

/// Bits 9 to 55 of L1 and L2 entries.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const ZERO: u64 = 1;
/// L1 entries that are read at once.
const L1_STEP: u64 = 2048;

pub struct Qcow2Image {
    /// The image, and its data file if it has one.
    files: Vec<Window>,
    image: Window,
    header: Header,
    references: References,
}

impl Qcow2Image {
    /// Also returns what it names beside itself.
    pub fn open(window: Window) -> Result<(Self, References)> {
        let (header, references) = Header::read(&window)?;
        let image = Self {
            files: vec![window.clone()],
            image: window,
            header,
            references: references.clone(),
        };
        Ok((image, references))
    }

    /// The image with the file that its data clusters are in.
    pub fn with_data_file(mut self, window: Window) -> Self {
        self.files.push(window);
        self
    }

    fn window(&self) -> &Window {
        &self.image
    }

    /// Where data clusters are: the file and its number.
    fn data(&self) -> (usize, &Window) {
        match self.files.get(1) {
            Some(window) => (1, window),
            None => (0, &self.image),
        }
    }

    /// Decodes the L2 entry of a compressed cluster at guest byte `start`.
    fn packed(&self, entry: u64, start: u64) -> Result<Stored> {
        let path = self.window().path();
        let shift = 62 - (self.header.cluster_bytes.trailing_zeros() - 8);
        let offset = entry & ((1 << shift) - 1);
        let sectors = ((entry & (PACKED - 1)) >> shift) + 1;
        let file_bytes = self.window().length_bytes();
        if offset >= file_bytes {
            let what = format!("the compressed qcow2 cluster at {offset} is past the end");
            return Err(corrupt(path, what));
        }
        let unit = Packed {
            file: 0,
            offset: HostOffset(offset),
            limit_bytes: (sectors * SECTOR_BYTES - offset % SECTOR_BYTES).min(file_bytes - offset),
            guest: GuestOffset(start),
            unpacked_bytes: self.header.cluster_bytes,
        };
        Ok(Stored::Packed {
            unit,
            skip_bytes: 0,
        })
    }

    /// Each has a cluster of its own: a map that needs more of them leads to some many times.
    fn check_count(&self, window: &Window, count: u64, what: &str) -> Result<()> {
        let most = window.length_bytes().div_ceil(self.header.cluster_bytes);
        if count <= most {
            return Ok(());
        }
        let what = format!("the qcow2 maps more than the {most} {what} that the file can hold");
        Err(corrupt(window.path(), what))
    }

    /// A checked offset of a table or data cluster of which `length_bytes` are needed.
    fn locate(&self, window: &Window, entry: u64, length_bytes: u64, what: &str) -> Result<u64> {
        let offset = entry & OFFSET_MASK;
        let inside = offset + length_bytes <= window.length_bytes();
        if inside && offset.is_multiple_of(self.header.cluster_bytes) {
            return Ok(offset);
        }
        let what = format!("the qcow2 {what} at offset {offset} is past the end or not aligned");
        Err(corrupt(window.path(), what))
    }
}

impl Image for Qcow2Image {
    fn capacity_bytes(&self) -> u64 {
        self.header.capacity_bytes
    }

    fn files(&self) -> &[Window] {
        &self.files
    }

    fn extents(&self) -> Extents<'_> {
        Box::new(Clusters {
            image: self,
            next_bytes: 0,
            l1: Vec::new(),
            l1_first: 0,
            l2: Vec::new(),
            l2_index: None,
            tables: 0,
            present: 0,
        })
    }

    fn layers(&self) -> Vec<Layer> {
        let (header, references) = (&self.header, &self.references);
        let [incompatible, compatible, autoclear] = header.features;
        let backing = references.backing.as_ref().map(|backing| {
            json!({"name": brief(&backing.name), "format": backing.format.as_deref().map(brief)})
        });
        let fields = json!({
            "capacity_bytes": header.capacity_bytes,
            "version": header.version,
            "cluster_bytes": header.cluster_bytes,
            "refcount_bits": header.refcount_bits,
            "compression": match header.compression {
                Compression::Zlib => "zlib",
                Compression::Zstd => "zstd",
            },
            "dirty": incompatible & DIRTY != 0,
            "lazy_refcounts": compatible & LAZY_REFCOUNTS != 0,
            "autoclear_features": autoclear,
            "encrypted": false,
            "snapshots": references.snapshots,
            "l1_entries": header.l1_entries,
            "backing": backing,
            "data_file": references.data_file.as_deref().map(brief),
        });
        vec![Layer::new(self.window(), "qcow2", fields)]
    }

    fn unpack(&self, unit: &Packed, stored: &[u8], out: &mut [u8]) -> Result<Unpacked> {
        let whole = match self.header.compression {
            Compression::Zlib => inflate(stored, out),
            Compression::Zstd => expand(stored, out),
        };
        if !whole {
            let what = format!(
                "the compressed qcow2 cluster at {} is damaged",
                unit.offset.0
            );
            return Err(corrupt(self.window().path(), what));
        }
        Ok(Unpacked {
            stored_bytes: stored.len() as u64,
            deflate: None,
        })
    }
}

thread_local! {
    static INFLATER: RefCell<Decompressor> = RefCell::new(Decompressor::new());
    static EXPANDER: RefCell<zstd_safe::DCtx<'static>> = RefCell::new(zstd_safe::DCtx::create());
}

/// True if the deflate stream at the head of `stored` is exactly `out`.
fn inflate(stored: &[u8], out: &mut [u8]) -> bool {
    let inflated = INFLATER.with_borrow_mut(|inflater| inflater.deflate_decompress(stored, out));
    inflated == Ok(out.len())
}

/// True if the zstd frames at the head of `stored` are exactly `out`. In one call for each frame:
/// then no window is allocated, however large a frame claims it to be.
fn expand(mut stored: &[u8], mut out: &mut [u8]) -> bool {
    while !out.is_empty() {
        let frame = zstd_safe::find_frame_compressed_size(stored)
            .ok()
            .and_then(|length| stored.split_at_checked(length));
        let Some((frame, rest)) = frame else {
            return false;
        };
        let expand = |out: &mut [u8]| {
            EXPANDER.with_borrow_mut(|expander| expander.decompress(out, frame).ok())
        };
        let Some(room) = expand(out).and_then(|length| out.split_at_mut_checked(length)) else {
            return false;
        };
        (_, out) = room;
        stored = rest;
    }
    true
}

struct Clusters<'a> {
    image: &'a Qcow2Image,
    next_bytes: u64,
    /// L1 entries from `l1_first` on.
    l1: Vec<u64>,
    l1_first: u64,
    l2: Vec<u64>,
    l2_index: Option<u64>,
    /// L2 tables and data clusters so far: more than the files hold are a lie.
    tables: u64,
    present: u64,
}

impl Clusters<'_> {
    fn l1_entry(&mut self, index: u64) -> Result<u64> {
        let header = &self.image.header;
        let end = self.l1_first + self.l1.len() as u64;
        if index >= end || index < self.l1_first {
            let count = L1_STEP.min(header.l1_entries().saturating_sub(index));
            let offset = header.l1_offset.saturating_add(index * 8);
            let bytes = self.image.window().read_vec(offset, (count * 8) as usize)?;
            self.l1 = big_endian(&bytes);
            self.l1_first = index;
        }
        let entry = self.l1.get((index - self.l1_first) as usize);
        Ok(entry.copied().unwrap_or(0))
    }

    /// False if the L1 table has no L2 table there.
    fn load_l2(&mut self, index: u64) -> Result<bool> {
        if self.l2_index == Some(index) {
            return Ok(true);
        }
        let entry = self.l1_entry(index)?;
        if entry & OFFSET_MASK == 0 {
            return Ok(false);
        }
        let (image, window) = (self.image, self.image.window());
        let cluster_bytes = image.header.cluster_bytes;
        let offset = image.locate(window, entry, cluster_bytes, "L2 table")?;
        self.tables += 1;
        image.check_count(window, self.tables, "L2 tables")?;
        self.l2 = big_endian(&window.read_vec(offset, cluster_bytes as usize)?);
        self.l2_index = Some(index);
        Ok(true)
    }

    fn advance(&mut self) -> Result<Extent> {
        let header = &self.image.header;
        let start = self.next_bytes;
        let span = header.l2_span_bytes();
        let (end, stored) = if self.load_l2(start / span)? {
            let end = start
                .saturating_add(header.cluster_bytes)
                .min(header.capacity_bytes);
            let at = (start % span / header.cluster_bytes) as usize;
            let entry = self.l2.get(at).copied().unwrap_or(0);
            (end, self.stored(entry, start, end - start)?)
        } else {
            let end = (start / span + 1).saturating_mul(span);
            (end.min(header.capacity_bytes), Stored::Hole)
        };
        self.next_bytes = end;
        Ok(Extent {
            start: GuestOffset(start),
            length_bytes: end - start,
            stored,
        })
    }

    fn stored(&mut self, entry: u64, start: u64, length_bytes: u64) -> Result<Stored> {
        let image = self.image;
        if entry & PACKED != 0 {
            return image.packed(entry, start);
        }
        // Version 2 does not know the flag.
        if entry & ZERO != 0 && image.header.version > 2 {
            return Ok(Stored::Zero);
        }
        let (file, window) = image.data();
        // A data file's first cluster is at offset 0; only the flag tells it from nothing.
        if entry & OFFSET_MASK == 0 && (file == 0 || entry & COPIED == 0) {
            return Ok(Stored::Hole);
        }
        let offset = image.locate(window, entry, length_bytes, "cluster")?;
        self.present += 1;
        image.check_count(window, self.present, "clusters")?;
        Ok(Stored::Plain {
            file,
            offset: HostOffset(offset),
        })
    }
}

impl Iterator for Clusters<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next_bytes >= self.image.header.capacity_bytes {
            return None;
        }
        let extent = self.advance();
        if extent.is_err() {
            self.next_bytes = self.image.header.capacity_bytes;
        }
        Some(extent)
    }
}

fn big_endian(bytes: &[u8]) -> Vec<u64> {
    let (entries, _) = bytes.as_chunks::<8>();
    let entries = entries.iter();
    entries.map(|entry| u64::from_be_bytes(*entry)).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::disk::{BLOCK_BYTES, Layout};
    use crate::qcow2::Qcow2Layout;

    const CAPACITY_BYTES: u64 = 40 * BLOCK_BYTES + 512;

    /// An image of three blocks, the last of them cut by the capacity.
    fn image() -> File {
        use std::os::unix::fs::FileExt;
        let file = Arc::new(tempfile::tempfile().unwrap());
        let mut layout = Qcow2Layout::new(
            Arc::clone(&file),
            "x.qcow2".into(),
            CAPACITY_BYTES,
            Compression::Zlib,
        );
        for index in [0, 3, 40] {
            let place = layout.place(index).unwrap();
            let bytes = vec![index as u8 + 1; BLOCK_BYTES as usize];
            file.write_all_at(&bytes, place.0).unwrap();
        }
        layout.finish().unwrap();
        drop(layout);
        Arc::try_unwrap(file).unwrap()
    }

    fn stored(file: File) -> Result<Vec<(u64, u64)>> {
        let image = Qcow2Image::open(Window::whole(file, Path::new("x.qcow2"))?)?.0;
        let mut end = 0;
        let mut found = Vec::new();
        for extent in image.extents() {
            let extent = extent?;
            assert_eq!(extent.start.0, end, "the map has gaps");
            assert!(extent.length_bytes > 0, "the map does not move");
            end += extent.length_bytes;
            if matches!(extent.stored, Stored::Plain { .. }) {
                found.push((extent.start.0, extent.length_bytes));
            }
        }
        assert_eq!(end, image.capacity_bytes());
        Ok(found)
    }

    #[test]
    fn reads_what_the_layout_placed() {
        let block = BLOCK_BYTES;
        let expected = [(0, block), (3 * block, block), (40 * block, 512)];
        assert_eq!(stored(image()).unwrap(), expected);
    }
}
