//! A raw disk image: the file's bytes are the guest's; holes come from the file system.
use super::flat::FlatExtents;
use crate::disk::{
    Extent, Extents, GuestOffset, Image, Layer, MAX_CAPACITY_BYTES, Packed, SECTOR_BYTES, Stored,
    Unpacked, Window, corrupt, unsupported,
};
use crate::error::Result;

pub(super) struct RawImage {
    files: [Window; 1],
    capacity_bytes: u64,
}

impl RawImage {
    /// A length that is no multiple of 512 is rounded up, the missing bytes read as zeros.
    pub(super) fn open(window: Window) -> Result<Self> {
        let length_bytes = window.length_bytes();
        if length_bytes == 0 {
            return Err(corrupt(window.path(), "the file is empty"));
        }
        if length_bytes > MAX_CAPACITY_BYTES {
            return Err(unsupported(window.path(), "a disk of more than 64 TiB"));
        }
        Ok(Self {
            capacity_bytes: length_bytes.next_multiple_of(SECTOR_BYTES),
            files: [window],
        })
    }
}

impl Image for RawImage {
    fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    fn files(&self) -> &[Window] {
        &self.files
    }

    fn extents(&self) -> Extents<'_> {
        let [window] = &self.files;
        let stored = FlatExtents::new(window, 0, 0..window.length_bytes(), GuestOffset(0));
        let end = window.length_bytes();
        let padding = (end < self.capacity_bytes).then(|| {
            Ok(Extent {
                start: GuestOffset(end),
                length_bytes: self.capacity_bytes.saturating_sub(end),
                stored: Stored::Zero,
            })
        });
        Box::new(stored.chain(padding))
    }

    fn layers(&self) -> Vec<Layer> {
        let [window] = &self.files;
        let fields = serde_json::json!({
            "capacity_bytes": self.capacity_bytes,
            "file_bytes": window.length_bytes(),
        });
        vec![Layer::new(window, "raw", fields)]
    }

    fn unpack(&self, unit: &Packed, _stored: &[u8], _out: &mut [u8]) -> Result<Unpacked> {
        let [window] = &self.files;
        Err(corrupt(
            window.path(),
            format!("a packed unit at {} in a raw image", unit.offset.0),
        ))
    }
}
