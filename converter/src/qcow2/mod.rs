//! qcow2 version 3, as QEMU's docs/interop/qcow2.txt defines it.
mod header;
mod image;
mod layout;

pub use image::{Backing, Qcow2Image, References};
pub use layout::{Qcow2Layout, size_bytes};

/// log2 of the cluster size: a cluster is the engine's block.
const CLUSTER_BITS: u32 = 16;
const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;
/// "QFI\xfb".
const MAGIC: u32 = 0x5146_49fb;
const VERSION: u32 = 3;
/// Of the header up to and including `header_length`; the compression type follows.
const HEADER_BYTES: usize = 104;
const COMPRESSION_TYPE_AT: usize = 104;
/// With the compression type, padded to a multiple of 8.
const LONG_HEADER_BYTES: usize = 112;
/// Incompatible feature bit 3: the header states the compression type.
const COMPRESSION_TYPE: u64 = 8;
/// log2 of the bits of a refcount.
const REFCOUNT_ORDER: u32 = 4;
/// Entries of an L1, L2 or refcount table per cluster.
const ENTRIES: u64 = CLUSTER_BYTES / 8;
/// Clusters that one refcount block counts.
const REFCOUNTS: u64 = CLUSTER_BYTES / 2;
/// Bit 63 of L1 and L2 entries: the refcount is exactly one.
const COPIED: u64 = 1 << 63;
/// Bit 62 of L2 entries: the cluster is compressed, the entry a byte offset and a sector count.
const PACKED: u64 = 1 << 62;
/// Where the count of further 512-byte sectors begins, for clusters of `CLUSTER_BITS`.
const PACKED_SECTORS_SHIFT: u32 = 62 - (CLUSTER_BITS - 8);
/// Of so much of the guest, packed blocks may begin at a page of the file.
pub const PACKED_SPAN_BYTES: u64 = 64 * CLUSTER_BYTES;
/// Guest bytes that one L2 table maps.
pub const L2_SPAN_BYTES: u64 = ENTRIES * CLUSTER_BYTES;

/// How the compressed clusters of an image are compressed; the values are the header's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Compression {
    /// Raw deflate streams.
    #[default]
    Zlib = 0,
    Zstd = 1,
}

impl Compression {
    /// Whether packed blocks of one `PACKED_SPAN_BYTES` share no page of the file with those of
    /// another: each span can be written by itself, past the page cache. zstd takes so long that
    /// nothing is won by that, and its images are to be the smallest.
    pub fn begins_at_pages(self) -> bool {
        self == Self::Zlib
    }
}
