//! Lays a qcow2 out while its guest blocks come in ascending order.
//!
//! The file grows from front to back and no byte of it is written twice: room for header, L1 table
//! and refcount table (sized for the worst case), then data with an L2 table before the first
//! block that it maps, and a refcount block as the first cluster of the range it counts. Only one
//! L2 table and refcount block is in memory; the header is written last: a torn file is no image.
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::{
    CLUSTER_BITS, CLUSTER_BYTES, COMPRESSION_TYPE, COPIED, Compression, ENTRIES, HEADER_BYTES,
    LONG_HEADER_BYTES, MAGIC, PACKED, PACKED_SECTORS_SHIFT, PACKED_SPAN_BYTES, REFCOUNT_ORDER,
    REFCOUNTS, VERSION,
};
use crate::disk::{BLOCK_BYTES, HostOffset, Layout, PAGE_BYTES, SECTOR_BYTES};
use crate::error::{Error, ErrorKind, Result};

const _: () = assert!(BLOCK_BYTES == CLUSTER_BYTES);

pub struct Qcow2Layout {
    file: Arc<File>,
    path: PathBuf,
    capacity_bytes: u64,
    compression: Compression,
    plan: Plan,
    l1: Vec<u64>,
    /// The refcount blocks' clusters; block n counts clusters n × REFCOUNTS on.
    refcount_blocks: Vec<u64>,
    /// The last refcount block; those before it are written.
    refcounts: Vec<u16>,
    l2: Option<L2>,
    next_cluster: u64,
    /// The end of the last packed block: the next one may follow it.
    packed_end: u64,
    /// The last packed block's number of `PACKED_SPAN_BYTES`.
    packed_span: u64,
}

/// The L2 table that is being filled.
struct L2 {
    index: u64,
    cluster: u64,
    entries: Vec<u64>,
}

/// Where the tables stand that are sized before the first block comes, in clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    l1_entries: u64,
    l1_clusters: u64,
    /// For an image without a single zero block.
    refcount_table_clusters: u64,
}

impl Plan {
    fn new(capacity_bytes: u64) -> Self {
        let data = capacity_bytes.div_ceil(CLUSTER_BYTES);
        let l1_entries = data.div_ceil(ENTRIES);
        let l1_clusters = l1_entries.div_ceil(ENTRIES).max(1);
        let (_, table) = refcount_clusters(1 + l1_clusters + data + l1_entries);
        Self {
            l1_entries,
            l1_clusters,
            refcount_table_clusters: table,
        }
    }

    fn l1_cluster(&self) -> u64 {
        1
    }

    fn refcount_table_cluster(&self) -> u64 {
        self.l1_cluster() + self.l1_clusters
    }

    fn first_free(&self) -> u64 {
        self.refcount_table_cluster() + self.refcount_table_clusters
    }
}

/// The refcount blocks and the clusters of their table that count `clusters` and themselves.
fn refcount_clusters(clusters: u64) -> (u64, u64) {
    let mut total = clusters;
    loop {
        let blocks = total.div_ceil(REFCOUNTS);
        let table = blocks.div_ceil(ENTRIES);
        let next = clusters + blocks + table;
        if next <= total {
            return (blocks, table);
        }
        total = next;
    }
}

/// The size of an image with this many data blocks, mapped by this many L2 tables.
pub fn size_bytes(capacity_bytes: u64, blocks: u64, tables: u64) -> u64 {
    let plan = Plan::new(capacity_bytes);
    let used = plan.first_free() + blocks + tables;
    let (refcount_blocks, _) = refcount_clusters(used);
    (used + refcount_blocks) * CLUSTER_BYTES
}

impl Qcow2Layout {
    /// `file` is empty and will be written by position; `path` is for errors; `compression` is
    /// that of the blocks that come packed.
    pub fn new(
        file: Arc<File>,
        path: PathBuf,
        capacity_bytes: u64,
        compression: Compression,
    ) -> Self {
        let plan = Plan::new(capacity_bytes);
        // The tables' clusters are the first; they always fit in the first block's range.
        let mut refcounts = vec![1; plan.first_free() as usize];
        refcounts.resize(REFCOUNTS as usize, 0);
        Self {
            file,
            path,
            capacity_bytes,
            compression,
            plan,
            l1: vec![0; plan.l1_entries as usize],
            refcount_blocks: Vec::new(),
            refcounts,
            l2: None,
            next_cluster: plan.first_free(),
            packed_end: 0,
            packed_span: 0,
        }
    }

    /// The next cluster of the file; refcount blocks take theirs on the way.
    fn allocate(&mut self) -> Result<u64> {
        if self.next_cluster / REFCOUNTS >= self.refcount_blocks.len() as u64 {
            self.write_refcounts()?;
            if !self.refcount_blocks.is_empty() {
                self.refcounts.fill(0);
            }
            let cluster = self.next_cluster;
            self.next_cluster += 1;
            self.refcount_blocks.push(cluster);
            self.refer(cluster)?;
        }
        let cluster = self.next_cluster;
        self.next_cluster += 1;
        Ok(cluster)
    }

    /// Counts one more use of a cluster in the current refcount block's range.
    fn refer(&mut self, cluster: u64) -> Result<()> {
        let count = self
            .refcounts
            .get_mut((cluster % REFCOUNTS) as usize)
            .filter(|count| **count < u16::MAX)
            .ok_or_else(|| out_of_order(cluster))?;
        *count += 1;
        Ok(())
    }

    fn write_refcounts(&self) -> Result<()> {
        let Some(cluster) = self.refcount_blocks.last() else {
            return Ok(());
        };
        let counts = self.refcounts.iter();
        let mut block = counts.flat_map(|count| count.to_be_bytes()).collect();
        self.write_clusters(&mut block, *cluster)
    }

    fn write_clusters(&self, bytes: &mut Vec<u8>, cluster: u64) -> Result<()> {
        let whole = bytes.len().next_multiple_of(CLUSTER_BYTES as usize);
        bytes.resize(whole, 0);
        self.file
            .write_all_at(bytes, cluster * CLUSTER_BYTES)
            .map_err(|error| Error::io("write", &self.path, error))
    }

    /// Writes the L2 table that is complete, now that blocks beyond it come.
    fn close_l2(&mut self) -> Result<()> {
        let Some(l2) = self.l2.take() else {
            return Ok(());
        };
        self.write_clusters(&mut big_endian(&l2.entries), l2.cluster)
    }

    fn open_l2(&mut self, index: u64) -> Result<()> {
        self.close_l2()?;
        let cluster = self.allocate()?;
        self.refer(cluster)?;
        let entry = self
            .l1
            .get_mut(index as usize)
            .filter(|entry| **entry == 0)
            .ok_or_else(|| out_of_order(index))?;
        *entry = (cluster * CLUSTER_BYTES) | COPIED;
        self.l2 = Some(L2 {
            index,
            cluster,
            entries: vec![0; ENTRIES as usize],
        });
        Ok(())
    }

    /// Sets the L2 entry of block `index`.
    fn map(&mut self, index: u64, mapping: u64) -> Result<()> {
        let entry = self
            .l2
            .as_mut()
            .filter(|l2| l2.index == index / ENTRIES)
            .and_then(|l2| l2.entries.get_mut((index % ENTRIES) as usize))
            .filter(|entry| **entry == 0)
            .ok_or_else(|| out_of_order(index))?;
        *entry = mapping;
        Ok(())
    }

    /// Makes the L2 table of block `index` the one that is filled.
    fn reach(&mut self, index: u64) -> Result<()> {
        let table = index / ENTRIES;
        if self.l2.as_ref().is_none_or(|l2| l2.index != table) {
            self.open_l2(table)?;
        }
        Ok(())
    }

    /// Room for `length_bytes` (less than a cluster) behind the last packed block, in a cluster
    /// of its own if they do not fit there.
    fn allocate_packed(&mut self, length_bytes: u64) -> Result<u64> {
        let open = self.packed_end.div_ceil(CLUSTER_BYTES);
        let fits = self.packed_end + length_bytes <= open * CLUSTER_BYTES;
        let start = if fits {
            self.packed_end
        } else {
            // A refcount block or anything else in between ends the run.
            let runs_on = self.next_cluster == open && !open.is_multiple_of(REFCOUNTS);
            let cluster = self.allocate()?;
            if runs_on {
                self.packed_end
            } else {
                cluster * CLUSTER_BYTES
            }
        };
        self.packed_end = start + length_bytes;
        for cluster in start / CLUSTER_BYTES..self.packed_end.div_ceil(CLUSTER_BYTES) {
            self.refer(cluster)?;
        }
        Ok(start)
    }

    fn header(&self) -> Vec<u8> {
        // Zlib is what an image without the field has: every reader of version 3 knows it.
        let (features, header_bytes) = match self.compression {
            Compression::Zlib => (0, HEADER_BYTES),
            Compression::Zstd => (COMPRESSION_TYPE, LONG_HEADER_BYTES),
        };
        let mut header = Vec::with_capacity(header_bytes);
        let mut word = |value: u32| header.extend(value.to_be_bytes());
        let high = |value: u64| (value >> 32) as u32;
        let low = |value: u64| value as u32;
        word(MAGIC);
        word(VERSION);
        word(0); // backing_file_offset
        word(0);
        word(0); // backing_file_size
        word(CLUSTER_BITS);
        word(high(self.capacity_bytes));
        word(low(self.capacity_bytes));
        word(0); // crypt_method
        word(low(self.plan.l1_entries));
        let l1 = self.plan.l1_cluster() * CLUSTER_BYTES;
        word(high(l1));
        word(low(l1));
        let refcount_table = self.plan.refcount_table_cluster() * CLUSTER_BYTES;
        word(high(refcount_table));
        word(low(refcount_table));
        word(low(self.plan.refcount_table_clusters));
        word(0); // nb_snapshots
        word(0); // snapshots_offset
        word(0);
        // Incompatible features; compatible and autoclear ones: none.
        word(high(features));
        word(low(features));
        (0..4).for_each(|_| word(0));
        word(REFCOUNT_ORDER);
        word(header_bytes as u32);
        if self.compression != Compression::Zlib {
            header.push(self.compression as u8);
            header.resize(header_bytes, 0);
        }
        // The end of the header extensions is a zero type: the cluster's own padding.
        header
    }
}

impl Layout for Qcow2Layout {
    fn place(&mut self, index: u64) -> Result<HostOffset> {
        self.reach(index)?;
        let cluster = self.allocate()?;
        self.refer(cluster)?;
        self.map(index, (cluster * CLUSTER_BYTES) | COPIED)?;
        Ok(HostOffset(cluster * CLUSTER_BYTES))
    }

    fn place_packed(&mut self, index: u64, length_bytes: u64) -> Result<HostOffset> {
        if length_bytes == 0 || length_bytes >= CLUSTER_BYTES {
            return Err(out_of_order(index));
        }
        self.reach(index)?;
        let span = index / (PACKED_SPAN_BYTES / CLUSTER_BYTES);
        if span != self.packed_span && self.compression.begins_at_pages() {
            self.packed_span = span;
            self.packed_end = self.packed_end.next_multiple_of(PAGE_BYTES);
        }
        let start = self.allocate_packed(length_bytes)?;
        let more_sectors = (start + length_bytes - 1) / SECTOR_BYTES - start / SECTOR_BYTES;
        self.map(
            index,
            start | (more_sectors << PACKED_SECTORS_SHIFT) | PACKED,
        )?;
        Ok(HostOffset(start))
    }

    fn finish(&mut self) -> Result<u64> {
        self.close_l2()?;
        if self.refcount_blocks.is_empty() {
            // Nothing was placed, but the tables themselves are counted.
            self.refcount_blocks.push(self.next_cluster);
            self.refer(self.next_cluster)?;
            self.next_cluster += 1;
        }
        self.write_clusters(&mut big_endian(&self.l1), self.plan.l1_cluster())?;
        self.write_refcounts()?;
        let blocks = self.refcount_blocks.iter();
        let table: Vec<u64> = blocks.map(|cluster| cluster * CLUSTER_BYTES).collect();
        self.write_clusters(&mut big_endian(&table), self.plan.refcount_table_cluster())?;
        let end_bytes = self.next_cluster * CLUSTER_BYTES;
        // The last packed block seldom fills its cluster.
        self.file
            .set_len(end_bytes)
            .map_err(|error| Error::io("set the length of", &self.path, error))?;
        self.write_clusters(&mut self.header(), 0)?;
        Ok(end_bytes)
    }
}

fn big_endian(entries: &[u64]) -> Vec<u8> {
    entries
        .iter()
        .flat_map(|entry| entry.to_be_bytes())
        .collect()
}

fn out_of_order(index: u64) -> Error {
    Error::new(
        ErrorKind::Internal,
        format!("qcow2 layout: block or table {index} came twice or out of order"),
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn packed_blocks_of_two_spans_share_no_page() {
        let path = Path::new("x.qcow2").to_path_buf();
        let file = Arc::new(tempfile::tempfile().unwrap());
        let mut layout = Qcow2Layout::new(file, path, 1 << 40, Compression::Zlib);
        let blocks = PACKED_SPAN_BYTES / CLUSTER_BYTES;
        let end = layout.place_packed(0, 1000).unwrap().0 + 1000;
        // Within a span they follow each other to the byte.
        assert_eq!(layout.place_packed(blocks - 1, 1000).unwrap().0, end);
        let end = end + 1000;
        let next = layout.place_packed(blocks, 1000).unwrap().0;
        assert_eq!(next, end.next_multiple_of(PAGE_BYTES));
        // A block that came as it is leaves the rest of the packed ones' cluster to them.
        layout.place(blocks + 1).unwrap();
        let after = layout.place_packed(3 * blocks, 1000).unwrap().0;
        assert_eq!(after, (next + 1000).next_multiple_of(PAGE_BYTES));
    }
}
