//! Grains: the two-level map of a sparse extent, and the compressed grains of streamOptimized.
//!
//! Directory and tables are read piece by piece while the map is walked; nothing is sized by what
//! the file claims.
use std::cell::RefCell;

use libdeflater::{DecompressionError, Decompressor};

use super::header::{Directory, Entry, HEADER_BYTES, Header};
use crate::disk::{
    Extent, GuestOffset, HostOffset, Packed, SECTOR_BYTES, Stored, Unpacked, Window, corrupt,
};
use crate::error::{Error, Result};

/// A grain marker: the guest's sector (u64), the stream's bytes (u32).
const MARKER_BYTES: usize = 12;
/// Directory entries that are read at once.
const DIRECTORY_STEP: u64 = 2048;

/// A sparse extent whose header was checked, with its grain directory found.
pub(super) struct Sparse {
    /// Position in the image's files.
    pub file: usize,
    pub window: Window,
    pub header: Header,
    /// Where the extent begins in the guest's disk, and how much of it is the disk's.
    pub start: GuestOffset,
    pub length_bytes: u64,
}

/// The extents of one sparse extent in guest order; like neighbours are joined.
pub(super) struct Grains<'a> {
    sparse: &'a Sparse,
    grain: u64,
    /// Directory entries from `directory_first` on.
    directory: Vec<u64>,
    directory_first: u64,
    table: Vec<u64>,
    table_index: Option<u64>,
    table_offset: u64,
    /// Tables and grains so far: what is more than the file has room for lies on top of others.
    tables: u64,
    present: u64,
    failed: bool,
}

impl Sparse {
    pub(super) fn extents(&self) -> Grains<'_> {
        Grains {
            sparse: self,
            grain: 0,
            directory: Vec::new(),
            directory_first: 0,
            table: Vec::new(),
            table_index: None,
            table_offset: 0,
            tables: 0,
            present: 0,
            failed: false,
        }
    }

    /// What a whole grain takes in the file at least: a compressed one has a sector.
    fn least_bytes(&self) -> u64 {
        if self.header.compressed {
            SECTOR_BYTES
        } else {
            self.header.grain_bytes
        }
    }

    fn grains(&self) -> u64 {
        self.length_bytes.div_ceil(self.header.grain_bytes)
    }

    /// The bytes of the disk from grain `first` up to grain `end`.
    fn span(&self, first: u64, end: u64) -> (u64, u64) {
        let grain_bytes = self.header.grain_bytes;
        let start = first.saturating_mul(grain_bytes);
        let end = end.saturating_mul(grain_bytes).min(self.length_bytes);
        (start, end.saturating_sub(start))
    }

    /// What is stored of a grain at the offset that its table says, checked.
    fn locate(&self, grain: u64, offset_bytes: u64) -> Result<Stored> {
        let (start, length_bytes) = self.span(grain, grain + 1);
        let least_bytes = if self.header.compressed {
            MARKER_BYTES as u64
        } else {
            length_bytes
        };
        let end = offset_bytes.saturating_add(least_bytes);
        if end > self.window.length_bytes() {
            return Err(self.corrupt(format!(
                "truncated: grain {grain} at offset {offset_bytes} lies past the end at {}",
                self.window.length_bytes()
            )));
        }
        if self.header.overlaps_structure(offset_bytes, least_bytes) {
            return Err(self.corrupt(format!(
                "grain {grain} at offset {offset_bytes} lies in the header or grain directory"
            )));
        }
        let offset = HostOffset(offset_bytes);
        if !self.header.compressed {
            return Ok(Stored::Plain {
                file: self.file,
                offset,
            });
        }
        // Deflate never needs as much; twice a grain is where QEMU stops reading, too.
        let most_bytes = MARKER_BYTES as u64 + 2 * self.header.grain_bytes;
        Ok(Stored::Packed {
            unit: Packed {
                file: self.file,
                offset,
                limit_bytes: most_bytes.min(self.window.length_bytes() - offset_bytes),
                guest: GuestOffset(self.start.0.saturating_add(start)),
                unpacked_bytes: length_bytes,
            },
            skip_bytes: 0,
        })
    }

    /// Inflates the grain at the head of `stored`; the bytes past `out` may be missing or zeros.
    pub(super) fn unpack(&self, unit: &Packed, stored: &[u8], out: &mut [u8]) -> Result<Unpacked> {
        let at = unit.offset.0;
        let truncated = || self.corrupt(format!("truncated: the grain at offset {at} is cut"));
        let (marker, rest) = stored
            .split_first_chunk::<MARKER_BYTES>()
            .ok_or_else(truncated)?;
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *marker;
        let sector = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let length_bytes = u32::from_le_bytes([i, j, k, l]);
        let expected = unit.guest.0.saturating_sub(self.start.0) / SECTOR_BYTES;
        if sector != expected {
            return Err(self.corrupt(format!(
                "the grain at offset {at} is marked as sector {sector}, the grain table says \
                 {expected}"
            )));
        }
        let grain_bytes = self.header.grain_bytes;
        if length_bytes == 0 || u64::from(length_bytes) > 2 * grain_bytes {
            return Err(self.corrupt(format!(
                "the grain at offset {at} claims {length_bytes} compressed bytes"
            )));
        }
        let stream = rest.get(..length_bytes as usize).ok_or_else(truncated)?;
        self.inflate(stream, out, at)?;
        // Its zlib frame (RFC 1950) is sound: two bytes before the deflate stream, four after.
        let end = MARKER_BYTES + length_bytes as usize;
        Ok(Unpacked {
            stored_bytes: end as u64,
            deflate: Some(MARKER_BYTES + 2..end - 4),
        })
    }

    fn inflate(&self, stream: &[u8], out: &mut [u8], at: u64) -> Result<()> {
        let damaged = |what: &str| self.corrupt(format!("the grain at offset {at} {what}"));
        let grain_bytes = self.header.grain_bytes as usize;
        let inflate = |out: &mut [u8]| {
            INFLATER
                .with_borrow_mut(|inflater| inflater.zlib_decompress(stream, out))
                .map_err(|error| match error {
                    DecompressionError::BadData => damaged("does not inflate"),
                    DecompressionError::InsufficientSpace => damaged("inflates beyond its size"),
                })
        };
        let needed = out.len();
        let inflated = if needed == grain_bytes {
            inflate(out)?
        } else {
            // The last grain: some writers store all of it, some only what the disk has.
            let mut whole = vec![0; grain_bytes];
            let inflated = inflate(&mut whole)?;
            let part = whole.get(..needed).ok_or_else(|| damaged("is too long"))?;
            out.copy_from_slice(part);
            inflated
        };
        if inflated < needed {
            return Err(damaged(&format!(
                "inflates to {inflated} of {needed} bytes"
            )));
        }
        Ok(())
    }

    fn corrupt(&self, what: String) -> Error {
        corrupt(self.window.path(), what)
    }
}

thread_local! {
    static INFLATER: RefCell<Decompressor> = RefCell::new(Decompressor::new());
}

impl Grains<'_> {
    /// The directory's entry for table `index`.
    fn directory_entry(&mut self, index: u64) -> Result<u64> {
        let Directory::At {
            offset_bytes,
            entries,
        } = self.sparse.header.directory
        else {
            return Err(self
                .sparse
                .corrupt("the grain directory was not found".to_owned()));
        };
        let entry_bytes = self.sparse.header.entry_bytes();
        let read = self.directory_first + self.directory.len() as u64;
        if index >= read || index < self.directory_first {
            let count = DIRECTORY_STEP.min(entries.saturating_sub(index));
            let bytes = self.sparse.window.read_vec(
                offset_bytes + index * entry_bytes,
                (count * entry_bytes) as usize,
            )?;
            self.directory = little_endian(&bytes, entry_bytes);
            self.directory_first = index;
        }
        let entry = self.directory.get((index - self.directory_first) as usize);
        entry.copied().ok_or_else(|| {
            let what = format!("the grain directory ends before grain table {index}");
            self.sparse.corrupt(what)
        })
    }

    /// Loads table `index` unless it is loaded; false if the directory has none.
    fn load_table(&mut self, index: u64) -> Result<bool> {
        if self.table_index == Some(index) {
            return Ok(true);
        }
        let entry = self.directory_entry(index)?;
        let (sparse, header) = (self.sparse, &self.sparse.header);
        let offset_bytes = match header.table(entry) {
            Entry::Nothing => return Ok(false),
            Entry::At(offset_bytes) => offset_bytes,
            Entry::Zero | Entry::Nonsense => {
                let what = format!("the grain directory's entry {index} is {entry:#x}");
                return Err(sparse.corrupt(what));
            }
        };
        if header.overlaps_structure(offset_bytes, header.table_bytes()) {
            return Err(sparse.corrupt(format!(
                "grain table {index} at offset {offset_bytes} lies in the header or the grain \
                 directory"
            )));
        }
        self.tables += 1;
        if self.tables > sparse.window.length_bytes() / header.table_bytes() {
            return Err(sparse.corrupt(format!(
                "grain tables lie on top of each other: with table {index} at offset \
                 {offset_bytes} they are more than the file can hold"
            )));
        }
        let length_bytes = header.table_bytes() as usize;
        let bytes = sparse.window.read_vec(offset_bytes, length_bytes)?;
        self.table_offset = offset_bytes;
        self.table = little_endian(&bytes, header.entry_bytes());
        self.table_index = Some(index);
        Ok(true)
    }

    /// What grain `self.grain` is, and the first grain after it that may be something else.
    fn look(&mut self) -> Result<(Stored, u64)> {
        let sparse = self.sparse;
        let table_entries = sparse.header.table_entries;
        let index = self.grain / table_entries;
        let table_end = (index + 1) * table_entries;
        if !self.load_table(index)? {
            return Ok((Stored::Hole, table_end));
        }
        let rest = (self.grain % table_entries) as usize;
        let entries = self.table.get(rest..).unwrap_or_default();
        let entry = entries.first().copied().unwrap_or(0);
        let alike = entries.iter().take_while(|next| **next == entry).count() as u64;
        match sparse.header.grain(entry) {
            Entry::Nothing => Ok((Stored::Hole, self.grain + alike)),
            Entry::Zero => Ok((Stored::Zero, self.grain + alike)),
            Entry::At(offset_bytes) => {
                let stored = sparse.locate(self.grain, offset_bytes)?;
                Ok((stored, self.grain + 1))
            }
            Entry::Nonsense => {
                let grain = self.grain;
                Err(sparse.corrupt(format!(
                    "the grain table's entry of grain {grain} is {entry:#x}"
                )))
            }
        }
    }

    /// A grain does not lie in its own table, and all grains together fit into the file: what is
    /// read and written for them stays in proportion to it.
    fn check_place(&mut self, grain: u64, offset_bytes: u64) -> Result<()> {
        let sparse = self.sparse;
        let least_bytes = sparse.least_bytes();
        let table_end = self.table_offset + sparse.header.table_bytes();
        if offset_bytes < table_end && offset_bytes + least_bytes > self.table_offset {
            return Err(sparse.corrupt(format!(
                "grain {grain} at offset {offset_bytes} lies in its grain table at {}",
                self.table_offset
            )));
        }
        self.present += 1;
        if self.present > sparse.window.length_bytes().div_ceil(least_bytes) {
            return Err(sparse.corrupt(format!(
                "grains lie on top of each other: with grain {grain} at offset {offset_bytes} \
                 they are more than the file can hold"
            )));
        }
        Ok(())
    }

    fn advance(&mut self) -> Result<Extent> {
        let sparse = self.sparse;
        let first = self.grain;
        let (stored, mut end) = self.look()?;
        if let Stored::Plain { offset, .. }
        | Stored::Packed {
            unit: Packed { offset, .. },
            ..
        } = stored
        {
            self.check_place(first, offset.0)?;
        }
        self.grain = end;
        if matches!(stored, Stored::Hole | Stored::Zero) {
            // Whole empty tables follow each other on a sparse disk: one extent for all.
            while self.grain < sparse.grains() {
                let (next, next_end) = self.look()?;
                if next != stored {
                    break;
                }
                self.grain = next_end;
                end = next_end;
            }
        }
        let (start, length_bytes) = sparse.span(first, end);
        Ok(Extent {
            start: GuestOffset(sparse.start.0.saturating_add(start)),
            length_bytes,
            stored,
        })
    }
}

impl Iterator for Grains<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.grain >= self.sparse.grains() {
            return None;
        }
        let extent = self.advance();
        self.failed = extent.is_err();
        Some(extent)
    }
}

fn little_endian(bytes: &[u8], entry_bytes: u64) -> Vec<u64> {
    let entry = |bytes: &[u8]| {
        let bytes = bytes.iter().rev();
        bytes.fold(0, |entry, byte| (entry << 8) | u64::from(*byte))
    };
    bytes
        .chunks_exact(entry_bytes as usize)
        .map(entry)
        .collect()
}

/// The bytes of a header, as an array.
pub(super) fn header_bytes(window: &Window, offset_bytes: u64) -> Result<[u8; HEADER_BYTES]> {
    let mut bytes = [0; HEADER_BYTES];
    window.read_exact_at(&mut bytes, offset_bytes)?;
    Ok(bytes)
}
