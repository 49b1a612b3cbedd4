//! Memory that begins at a page: what a file that is opened with O_DIRECT is written from.
use std::ops::{Deref, DerefMut};

/// Of addresses, offsets and lengths: no logical block is larger on the disks that there are.
pub const PAGE_BYTES: u64 = 4096;

/// Bytes of a fixed number, zeros at first.
pub struct Aligned {
    bytes: Vec<u8>,
    from: usize,
    length_bytes: usize,
}

impl Aligned {
    pub fn zeros(length_bytes: usize) -> Self {
        let bytes = vec![0; length_bytes + PAGE_BYTES as usize];
        // At most a page: an address that cannot be aligned only costs the direct way.
        let from = bytes.as_ptr().align_offset(PAGE_BYTES as usize);
        Self {
            from: from.min(PAGE_BYTES as usize),
            bytes,
            length_bytes,
        }
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let bytes = self.bytes.get(self.from..);
        let bytes = bytes.and_then(|bytes| bytes.get(..self.length_bytes));
        bytes.unwrap_or_default()
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        let bytes = self.bytes.get_mut(self.from..);
        let bytes = bytes.and_then(|bytes| bytes.get_mut(..self.length_bytes));
        bytes.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_at_a_page() {
        for length in [0, 1, 4096, 1 << 20] {
            let bytes = Aligned::zeros(length);
            assert_eq!(bytes.len(), length);
            assert!(bytes.as_ptr().addr().is_multiple_of(PAGE_BYTES as usize));
        }
    }
}
