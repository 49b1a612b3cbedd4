//! Reads a qcow2 back, without zstd, backing or data files: what this program wrote itself.
use std::cell::RefCell;
use std::path::Path;

use libdeflater::Decompressor;
use zstd::zstd_safe;

use super::{COMPRESSION_TYPE, COMPRESSION_TYPE_AT, Compression, MAGIC, PACKED};
use crate::disk::{
    Extent, Extents, GuestOffset, HostOffset, Image, Packed, SECTOR_BYTES, Stored, Unpacked,
    Window, check_capacity, corrupt, unsupported,
};
use crate::error::Result;

/// Of version 2; version 3 adds features from here on.
const HEADER_2_BYTES: usize = 72;
/// With the compression type, the last field that is looked at.
const MOST_HEADER_BYTES: u64 = COMPRESSION_TYPE_AT as u64 + 1;
/// Incompatible features: the image was not closed, and it is known to be damaged.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 2;
/// Bits 9 to 55 of L1 and L2 entries.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const ZERO: u64 = 1;

pub struct Qcow2Image {
    files: [Window; 1],
    capacity_bytes: u64,
    cluster_bytes: u64,
    l1_offset: u64,
    compression: Compression,
}

impl Qcow2Image {
    pub fn open(window: Window) -> Result<Self> {
        let path = window.path().to_path_buf();
        let length_bytes = MOST_HEADER_BYTES.min(window.length_bytes());
        let header = window.read_vec(0, length_bytes as usize)?;
        if header.len() < HEADER_2_BYTES || word(&header, 0) != MAGIC {
            return Err(corrupt(&path, "the file does not begin as a qcow2"));
        }
        let version = word(&header, 4);
        let features = if version == 3 { long(&header, 72) } else { 0 };
        check_features(&path, version, features, &header)?;
        let cluster_bits = word(&header, 20);
        if !(9..=21).contains(&cluster_bits) {
            let what = format!("the qcow2 header claims clusters of 2^{cluster_bits} bytes");
            return Err(corrupt(&path, what));
        }
        let size_bytes = long(&header, 24);
        let image = Self {
            capacity_bytes: check_capacity(&path, size_bytes.div_ceil(SECTOR_BYTES))?,
            cluster_bytes: 1 << cluster_bits,
            l1_offset: long(&header, 40),
            compression: compression(&path, features, &header)?,
            files: [window],
        };
        let (entries, needed) = (u64::from(word(&header, 36)), image.l1_entries());
        let end = image.l1_offset.checked_add(needed * 8);
        if entries < needed || end.is_none_or(|end| end > image.window().length_bytes()) {
            let what = format!(
                "the qcow2 L1 table of {entries} entries at offset {} does not hold the {needed} \
                 that are needed",
                image.l1_offset
            );
            return Err(corrupt(&path, what));
        }
        Ok(image)
    }

    fn window(&self) -> &Window {
        let [window] = &self.files;
        window
    }

    fn l2_span_bytes(&self) -> u64 {
        self.cluster_bytes * (self.cluster_bytes / 8)
    }

    fn l1_entries(&self) -> u64 {
        self.capacity_bytes.div_ceil(self.l2_span_bytes())
    }

    /// Decodes the L2 entry of a compressed cluster at guest byte `start`.
    fn packed(&self, entry: u64, start: u64) -> Result<Stored> {
        let path = self.window().path();
        let shift = 62 - (self.cluster_bytes.trailing_zeros() - 8);
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
            unpacked_bytes: self.cluster_bytes,
        };
        Ok(Stored::Packed {
            unit,
            skip_bytes: 0,
        })
    }

    /// A checked offset of a table or data cluster of which `length_bytes` are needed.
    fn locate(&self, entry: u64, length_bytes: u64, what: &str) -> Result<u64> {
        let offset = entry & OFFSET_MASK;
        let inside = offset + length_bytes <= self.window().length_bytes();
        if inside && offset.is_multiple_of(self.cluster_bytes) {
            return Ok(offset);
        }
        let what = format!("the qcow2 {what} at offset {offset} is past the end or not aligned");
        Err(corrupt(self.window().path(), what))
    }
}

fn check_features(path: &Path, version: u32, features: u64, header: &[u8]) -> Result<()> {
    if !(2..=3).contains(&version) {
        return Err(unsupported(path, format!("qcow2 version {version}")));
    }
    if features & CORRUPT != 0 {
        return Err(corrupt(path, "the qcow2 is marked as corrupt"));
    }
    let refused = features & !(DIRTY | COMPRESSION_TYPE);
    if refused != 0 {
        return Err(unsupported(path, format!("qcow2 feature {refused:#x}")));
    }
    if long(header, 8) != 0 {
        return Err(unsupported(path, "a qcow2 with a backing file"));
    }
    if word(header, 32) != 0 {
        return Err(unsupported(path, "an encrypted qcow2"));
    }
    Ok(())
}

/// Without its feature bit the field does not count.
fn compression(path: &Path, features: u64, header: &[u8]) -> Result<Compression> {
    if features & COMPRESSION_TYPE == 0 {
        return Ok(Compression::Zlib);
    }
    match header.get(COMPRESSION_TYPE_AT) {
        Some(0) => Ok(Compression::Zlib),
        Some(1) => Ok(Compression::Zstd),
        Some(other) => Err(unsupported(path, format!("qcow2 compression type {other}"))),
        None => Err(corrupt(
            path,
            "the qcow2 header ends before its compression type",
        )),
    }
}

impl Image for Qcow2Image {
    fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    fn files(&self) -> &[Window] {
        &self.files
    }

    fn extents(&self) -> Extents<'_> {
        Box::new(Clusters {
            image: self,
            next_bytes: 0,
            l2: Vec::new(),
            l2_index: None,
        })
    }

    fn unpack(&self, unit: &Packed, stored: &[u8], out: &mut [u8]) -> Result<Unpacked> {
        let whole = match self.compression {
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
    l2: Vec<u64>,
    l2_index: Option<u64>,
}

impl Clusters<'_> {
    /// False if the L1 table has no L2 table there.
    fn load_l2(&mut self, index: u64) -> Result<bool> {
        if self.l2_index == Some(index) {
            return Ok(true);
        }
        let (image, window) = (self.image, self.image.window());
        let entry = window.read_vec(image.l1_offset + index * 8, 8)?;
        let entry = long(&entry, 0);
        if entry & OFFSET_MASK == 0 {
            return Ok(false);
        }
        let offset = image.locate(entry, image.cluster_bytes, "L2 table")?;
        let bytes = window.read_vec(offset, image.cluster_bytes as usize)?;
        let (entries, _) = bytes.as_chunks::<8>();
        self.l2 = entries
            .iter()
            .map(|entry| u64::from_be_bytes(*entry))
            .collect();
        self.l2_index = Some(index);
        Ok(true)
    }

    fn advance(&mut self) -> Result<Extent> {
        let image = self.image;
        let start = self.next_bytes;
        let span = image.l2_span_bytes();
        let (end, stored) = if self.load_l2(start / span)? {
            let end = start
                .saturating_add(image.cluster_bytes)
                .min(image.capacity_bytes);
            let at = (start % span / image.cluster_bytes) as usize;
            let entry = self.l2.get(at).copied().unwrap_or(0);
            (end, self.stored(entry, start, end - start)?)
        } else {
            let end = (start / span + 1).saturating_mul(span);
            (end.min(image.capacity_bytes), Stored::Hole)
        };
        self.next_bytes = end;
        Ok(Extent {
            start: GuestOffset(start),
            length_bytes: end - start,
            stored,
        })
    }

    fn stored(&self, entry: u64, start: u64, length_bytes: u64) -> Result<Stored> {
        if entry & PACKED != 0 {
            return self.image.packed(entry, start);
        }
        if entry & ZERO != 0 {
            return Ok(Stored::Zero);
        }
        if entry & OFFSET_MASK == 0 {
            return Ok(Stored::Hole);
        }
        let offset = self.image.locate(entry, length_bytes, "cluster")?;
        Ok(Stored::Plain {
            file: 0,
            offset: HostOffset(offset),
        })
    }
}

impl Iterator for Clusters<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next_bytes >= self.image.capacity_bytes {
            return None;
        }
        let extent = self.advance();
        if extent.is_err() {
            self.next_bytes = self.image.capacity_bytes;
        }
        Some(extent)
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    u32::from_be_bytes(field.copied().unwrap_or_default())
}

fn long(bytes: &[u8], at: usize) -> u64 {
    (u64::from(word(bytes, at)) << 32) | u64::from(word(bytes, at + 4))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use proptest::prelude::*;

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
        let image = Qcow2Image::open(Window::whole(file, Path::new("x.qcow2"))?)?;
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Header, L1 and L2 tables may be anything: an error or a map, never a panic or a hang.
        #[test]
        fn mutations_do_no_harm(
            changes in prop::collection::vec((0u64..4, 0u64..120, any::<u8>()), 1..8),
        ) {
            use std::os::unix::fs::FileExt;
            let file = image();
            for (cluster, at, value) in changes {
                // Header, L1, refcount table, and the L2 table behind the refcount block.
                let cluster = if cluster == 3 { 4 } else { cluster };
                file.write_all_at(&[value], cluster * BLOCK_BYTES + at).unwrap();
            }
            let _ = stored(file);
        }
    }
}
