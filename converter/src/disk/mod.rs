//! What every disk image is to the engine: a capacity, and a map from guest ranges to stored bytes.
//!
//! The traits live here, below those that implement them (source, qcow2) and the one that drives
//! them (convert). Nothing here knows a format.
mod aligned;
mod checksum;
mod digest;
mod layer;
mod reflink;
mod window;

pub use aligned::{Aligned, PAGE_BYTES};
pub use checksum::{Algorithm, Checksum};
pub use digest::{BlockHash, ContentDigest, hash_block, is_zero};
pub use layer::{Layer, brief};
pub use reflink::is_known as is_reflink_known;
pub use window::Window;

use std::ops::Range;
use std::path::Path;

use queue::job::Finding;

use crate::error::{Error, ErrorKind, Result};

/// The unit of zero detection and of the content digest, and the cluster of every qcow2 written.
pub const BLOCK_BYTES: u64 = 64 * 1024;
pub const SECTOR_BYTES: u64 = 512;
/// The largest virtual disk that is read: VHDX and VMFS end at 64 TiB and 62 TiB.
pub const MAX_CAPACITY_BYTES: u64 = 64 << 40;

/// A byte offset into the disk as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GuestOffset(pub u64);

/// A byte offset into an image file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostOffset(pub u64);

/// A range of the guest's disk and where its bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub start: GuestOffset,
    pub length_bytes: u64,
    pub stored: Stored,
}

/// Where the bytes of an extent are. `file` counts in `Image::files`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// Nothing is stored: zeros.
    Hole,
    /// The map says zeros.
    Zero,
    /// The bytes themselves.
    Plain { file: usize, offset: HostOffset },
    /// A part of a compressed unit that only `Image::unpack` understands.
    Packed { unit: Packed, skip_bytes: u64 },
}

/// One independently compressed unit: a grain of a streamOptimized VMDK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    pub file: usize,
    pub offset: HostOffset,
    /// At most this many stored bytes belong to the unit, its framing included.
    pub limit_bytes: u64,
    /// Where the unit's first byte lies in the guest.
    pub guest: GuestOffset,
    /// Inflated size; the tail past the capacity may be missing from the stream.
    pub unpacked_bytes: u64,
}

/// What `Image::unpack` found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// Stored bytes of the unit, its framing included.
    pub stored_bytes: u64,
    /// Where in `stored` the raw deflate stream (RFC 1951) of all its bytes is, if it is one with
    /// a checksum of its own that was verified.
    pub deflate: Option<Range<usize>>,
}

pub type Extents<'a> = Box<dyn Iterator<Item = Result<Extent>> + Send + 'a>;

/// A readable disk image, whatever its container.
pub trait Image: Send + Sync {
    /// A multiple of 512, at most `MAX_CAPACITY_BYTES`.
    fn capacity_bytes(&self) -> u64;

    /// The files that hold the bytes, in the container's order.
    fn files(&self) -> &[Window];

    /// The whole disk in guest order: adjacent, without gaps or overlaps, none of them empty.
    /// The iterator ends after its first error.
    fn extents(&self) -> Extents<'_>;

    /// The same of an image whose file still arrives: waits for what is not there yet.
    fn follow<'a>(&'a self, _waiter: &'a dyn Waiter) -> Extents<'a> {
        self.extents()
    }

    /// What the headers of the image and of those below it say, the topmost first.
    fn layers(&self) -> Vec<Layer> {
        Vec::new()
    }

    /// What the guest takes for a sector of this disk.
    fn sector_bytes(&self) -> u64 {
        SECTOR_BYTES
    }

    /// Inflates a unit into `out` (`unpacked_bytes` long) from `stored`, which begins at the
    /// unit's offset and holds `limit_bytes` or ends with the file.
    fn unpack(&self, unit: &Packed, stored: &[u8], out: &mut [u8]) -> Result<Unpacked>;
}

/// Places guest blocks in a target file, in ascending guest order; the bytes are written by others.
pub trait Layout: Send {
    /// Whether blocks are placed one behind the other, in whatever order the guest has them.
    fn is_dense(&self) -> bool {
        true
    }

    /// Where the non-zero block `index` (of `BLOCK_BYTES`) goes.
    fn place(&mut self, index: u64) -> Result<HostOffset>;

    /// Where the raw deflate stream of block `index` goes; it is shorter than a block.
    fn place_packed(&mut self, index: u64, length_bytes: u64) -> Result<HostOffset>;

    /// Writes what makes the placed blocks an image; afterwards the file has the returned size.
    fn finish(&mut self) -> Result<u64>;
}

/// Whoever waits for a file that still arrives.
pub trait Waiter: Sync {
    /// Asked now and then, with what is there of the file. False: wait no longer.
    fn go_on(&self, arrived_bytes: u64) -> Result<bool>;
}

/// Is told of the work that is done, and says when to stop.
pub trait Observer: Sync {
    /// `bytes` more are to be done than was known before.
    fn expect(&self, _bytes: u64) {}

    /// `bytes` more of the source's allocated bytes are done; 0 says that other work goes on.
    fn advance(&self, bytes: u64);

    /// `bytes` of them were done by an earlier attempt: they count, but tell nothing of the speed.
    fn resume(&self, bytes: u64) {
        self.advance(bytes);
    }

    /// The source still arrives (or does no longer): the work waits for it more than it works.
    fn follow(&self, _is_following: bool) {}

    /// Asked at least once per batch; true ends the work as `cancelled`.
    fn is_cancelled(&self) -> bool;

    /// Whether that end is a pause: the work will be gone on with.
    fn is_paused(&self) -> bool {
        false
    }

    /// Something that whoever looks into the job's log should know.
    fn tell(&self, _line: &str) {}

    /// Something was found of the guest that pollers should know at once.
    fn find(&self, _finding: &Finding) {}
}

/// For those who do not look.
pub struct Unobserved;

impl Observer for Unobserved {
    fn advance(&self, _bytes: u64) {}

    fn is_cancelled(&self) -> bool {
        false
    }
}

/// A `corrupt` error about a structure of the file at `path`.
pub fn corrupt(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{}: {what}", path.display()))
        .with_remedy("the file is damaged or was not copied whole; export or copy it again")
}

/// An `unsupported` error that names the feature.
pub fn unsupported(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("{}: {what} is not supported", path.display()),
    )
    .with_remedy("convert it to a raw image, a plain qcow2 or a sparse VMDK first")
}

/// Checks a capacity that a file claims, in bytes.
pub fn check_capacity(path: &Path, sectors: u64) -> Result<u64> {
    sectors
        .checked_mul(SECTOR_BYTES)
        .filter(|bytes| *bytes <= MAX_CAPACITY_BYTES)
        .ok_or_else(|| {
            corrupt(
                path,
                format!("the capacity of {sectors} sectors is more than 64 TiB"),
            )
        })
}
