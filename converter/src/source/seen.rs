//! What the guest sees of an image, for the tests of formats.
use crate::disk::{Image, Stored};
use crate::error::{Error, Result};

/// More than any sample holds; a damaged one may claim any capacity.
const MOST_BYTES: u64 = 1 << 24;

/// All bytes of the disk; the map has to be without gaps and has to move.
pub(super) fn guest_bytes(image: &dyn Image) -> Result<Vec<u8>> {
    let mut guest = Vec::new();
    for extent in image.extents() {
        let extent = extent?;
        assert_eq!(extent.start.0, guest.len() as u64, "the map has gaps");
        assert!(extent.length_bytes > 0, "the map does not move");
        if extent.length_bytes > MOST_BYTES {
            return Err(Error::invalid("too large for a test"));
        }
        let at = guest.len();
        guest.resize(at + extent.length_bytes as usize, 0);
        if let Stored::Plain { file, offset } = extent.stored {
            image.files()[file].read_exact_at(&mut guest[at..], offset.0)?;
        }
    }
    assert_eq!(guest.len() as u64, image.capacity_bytes());
    Ok(guest)
}
