//! The log ([MS-VHDX] 2.3): what a writer that died had still to write, laid over the file in
//! memory. The file itself is never written.
use std::collections::BTreeMap;

use super::crc32c;
use super::header::{Guid, Header, field32, field64, guid};
use crate::disk::{MAX_CAPACITY_BYTES, Window, corrupt, unsupported};
use crate::error::{Error, Result};

const SECTOR_BYTES: usize = 4096;
const ENTRY_HEADER_BYTES: usize = 64;
const DESCRIPTOR_BYTES: usize = 32;
/// Writers make logs of 1 MiB. Of each sector that is to be written its place is held in memory.
const MAX_LOG_BYTES: u64 = 16 << 20;
/// Entries lie side by side, with the rests of older ones between them; what claims to be more of
/// them than this many times the log was made to keep us busy.
const MOST_READINGS: u64 = 16;

/// No file that holds a disk of the largest capacity is longer: an entry that says so is damaged.
const MAX_FILE_BYTES: u64 = 2 * MAX_CAPACITY_BYTES;

/// The file as it is after the replay, for reading structures.
#[derive(Debug)]
pub(super) struct Replayed {
    pub window: Window,
    /// By the offset of their first byte, none overlapping another.
    patches: BTreeMap<u64, Patch>,
    /// The file's length after the replay.
    pub length_bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Patch {
    end: u64,
    /// `None`: zeros.
    data: Option<DataSector>,
}

/// A sector in the log, and what the descriptor has of its bytes: the first and the last.
#[derive(Debug, Clone, Copy)]
struct DataSector {
    /// In the file.
    at: u64,
    leading: [u8; 8],
    trailing: [u8; 4],
}

/// An entry whose sum and fields are sound; offsets are within the log.
#[derive(Debug, Clone, Copy)]
struct Entry {
    at: u64,
    length_bytes: u64,
    tail: u64,
    sequence_number: u64,
    flushed_file_bytes: u64,
    last_file_bytes: u64,
}

impl Replayed {
    pub(super) fn new(window: Window, header: &Header) -> Result<Self> {
        let length_bytes = window.length_bytes();
        let mut replayed = Self {
            window,
            patches: BTreeMap::new(),
            length_bytes,
        };
        if let Some(log_guid) = header.log_guid {
            replayed.replay(header, log_guid)?;
        }
        Ok(replayed)
    }

    fn replay(&mut self, header: &Header, log_guid: Guid) -> Result<()> {
        if header.log_bytes > MAX_LOG_BYTES {
            let what = format!("replaying a log of {} bytes", header.log_bytes);
            return Err(unsupported(self.window.path(), what));
        }
        let log = Log {
            window: self.window.clone(),
            at: header.log_at,
            length_bytes: header.log_bytes,
            guid: log_guid,
        };
        let active = log.active()?;
        let Some(head) = active.last() else {
            let what = "the log has to be replayed, but no sequence of its entries is whole";
            return Err(corrupt(self.window.path(), what));
        };
        if self.window.length_bytes() < head.flushed_file_bytes {
            let what = format!(
                "truncated: its log says that it had {} bytes",
                head.flushed_file_bytes
            );
            return Err(corrupt(self.window.path(), what));
        }
        for entry in &active {
            let bytes = log.read(entry.at, entry.length_bytes)?;
            self.apply(&log, entry, &bytes);
        }
        self.length_bytes = self.length_bytes.max(head.last_file_bytes);
        Ok(())
    }

    /// Lays one entry, which is sound, over the file.
    fn apply(&mut self, log: &Log, entry: &Entry, bytes: &[u8]) {
        let sector_bytes = SECTOR_BYTES as u64;
        let mut next_data = entry.at + descriptor_sectors(bytes) as u64 * sector_bytes;
        for descriptor in descriptors(bytes) {
            let start = field64(descriptor, 16);
            let (length_bytes, data) = if descriptor.starts_with(b"zero") {
                (field64(descriptor, 8), None)
            } else {
                let data = DataSector {
                    at: log.at.saturating_add(next_data % log.length_bytes),
                    leading: field64(descriptor, 8).to_le_bytes(),
                    trailing: field32(descriptor, 4).to_le_bytes(),
                };
                next_data += sector_bytes;
                (sector_bytes, Some(data))
            };
            let end = start.saturating_add(length_bytes);
            if start < end {
                self.length_bytes = self.length_bytes.max(end);
                self.patch(start, Patch { end, data });
            }
        }
    }

    /// Later patches win. Only zeros are longer than a sector, and all lie on its borders, so what
    /// remains of an older patch is zeros.
    fn patch(&mut self, start: u64, patch: Patch) {
        let end = patch.end;
        if let Some((_, before)) = self.patches.range_mut(..start).next_back()
            && before.end > start
        {
            let rest = std::mem::replace(&mut before.end, start);
            if rest > end {
                let zeros = Patch {
                    end: rest,
                    data: None,
                };
                self.patches.insert(end, zeros);
            }
        }
        while let Some((&at, _)) = self.patches.range(start..end).next() {
            if let Some(old) = self.patches.remove(&at)
                && old.end > end
            {
                self.patches.insert(end, old);
            }
        }
        self.patches.insert(start, patch);
    }

    /// Whether the replay changes any of these bytes.
    pub(super) fn touches(&self, start: u64, end: u64) -> bool {
        let last = self.patches.range(..end).next_back();
        last.is_some_and(|(_, patch)| patch.end > start)
    }

    /// Reads `length_bytes`, which the caller has bounded.
    pub(super) fn read_vec(&self, offset_bytes: u64, length_bytes: usize) -> Result<Vec<u8>> {
        let end = offset_bytes.checked_add(length_bytes as u64);
        let Some(end) = end.filter(|end| *end <= self.length_bytes) else {
            return self.window.read_vec(offset_bytes, length_bytes);
        };
        let stored = self.window.length_bytes().min(end);
        let stored_bytes = stored.saturating_sub(offset_bytes) as usize;
        let mut bytes = match stored_bytes {
            0 => Vec::new(),
            _ => self.window.read_vec(offset_bytes, stored_bytes)?,
        };
        bytes.resize(length_bytes, 0);
        let first = self.patches.range(..offset_bytes).next_back();
        let first = first.map_or(offset_bytes, |(at, _)| *at);
        for (&at, patch) in self.patches.range(first..end) {
            let from = at.max(offset_bytes);
            let to = patch.end.min(end);
            // A patch that ends before the first byte leaves nothing to copy.
            let place = (from - offset_bytes) as usize..to.saturating_sub(offset_bytes) as usize;
            let Some(place) = bytes.get_mut(place).filter(|place| !place.is_empty()) else {
                continue;
            };
            let Some(data) = patch.data else {
                place.fill(0);
                continue;
            };
            let sector = self.sector(&data)?;
            let part = sector.get((from - at) as usize..(to - at) as usize);
            place.copy_from_slice(part.ok_or_else(|| {
                corrupt(self.window.path(), "the log has a sector of another size")
            })?);
        }
        Ok(bytes)
    }

    /// The bytes that are to be written, which the log keeps with others at both ends.
    fn sector(&self, data: &DataSector) -> Result<Vec<u8>> {
        let sector = self.window.read_vec(data.at, SECTOR_BYTES)?;
        let inner = sector.get(8..SECTOR_BYTES - 4).unwrap_or_default();
        Ok([&data.leading, inner, &data.trailing].concat())
    }
}

struct Log {
    window: Window,
    at: u64,
    length_bytes: u64,
    guid: Guid,
}

impl Log {
    /// The entries of the active sequence, in order; empty if there is none.
    fn active(&self) -> Result<Vec<Entry>> {
        let entries = self.entries()?;
        let entry_at = |at: u64| {
            let index = (at / SECTOR_BYTES as u64) as usize;
            entries.get(index).copied().flatten()
        };
        let after = |entry: &Entry| {
            let next = entry_at((entry.at + entry.length_bytes) % self.length_bytes)?;
            (entry.sequence_number.checked_add(1) == Some(next.sequence_number)).then_some(next)
        };
        let mut heads: Vec<Entry> = entries.iter().flatten().copied().collect();
        heads.sort_by_key(|entry| std::cmp::Reverse(entry.sequence_number));
        for head in heads {
            if after(&head).is_some() {
                continue;
            }
            // Sequence numbers rise with every step, so this ends.
            let mut sequence = Vec::new();
            let mut next = entry_at(head.tail);
            while let Some(entry) = next {
                sequence.push(entry);
                if entry.at == head.at {
                    return Ok(sequence);
                }
                next = after(&entry);
            }
        }
        Ok(Vec::new())
    }

    /// What begins at each sector of the log, if it is a sound entry of this log.
    fn entries(&self) -> Result<Vec<Option<Entry>>> {
        let mut left_bytes = self.length_bytes.saturating_mul(MOST_READINGS);
        let mut entries = Vec::new();
        for at in (0..self.length_bytes).step_by(SECTOR_BYTES) {
            entries.push(self.entry(at, &mut left_bytes)?);
        }
        Ok(entries)
    }

    fn entry(&self, at: u64, left_bytes: &mut u64) -> Result<Option<Entry>> {
        let head = self.read(at, ENTRY_HEADER_BYTES as u64)?;
        let entry = Entry {
            at,
            length_bytes: u64::from(field32(&head, 8)),
            tail: u64::from(field32(&head, 12)),
            sequence_number: field64(&head, 16),
            flushed_file_bytes: field64(&head, 48),
            last_file_bytes: field64(&head, 56),
        };
        let sector = SECTOR_BYTES as u64;
        let is_entry = head.starts_with(b"loge")
            && guid(&head, 32) == self.guid
            && entry.sequence_number > 0
            && (sector..=self.length_bytes).contains(&entry.length_bytes)
            && entry.length_bytes.is_multiple_of(sector)
            && entry.last_file_bytes <= MAX_FILE_BYTES
            && entry.tail < self.length_bytes
            && entry.tail.is_multiple_of(sector);
        if !is_entry {
            return Ok(None);
        }
        *left_bytes = left_bytes
            .checked_sub(entry.length_bytes)
            .ok_or_else(|| self.corrupt("the entries of the log lie on top of each other"))?;
        let bytes = self.read(at, entry.length_bytes)?;
        let is_sound = field32(&head, 4) == crc32c::of_structure(&bytes)
            && holds_together(&bytes, entry.sequence_number);
        Ok(is_sound.then_some(entry))
    }

    /// Reads from the ring; `length_bytes` is at most the log's.
    fn read(&self, at: u64, length_bytes: u64) -> Result<Vec<u8>> {
        let first_bytes = length_bytes.min(self.length_bytes.saturating_sub(at));
        let start = self.at.saturating_add(at);
        let mut bytes = self.window.read_vec(start, first_bytes as usize)?;
        if first_bytes < length_bytes {
            let rest_bytes = (length_bytes - first_bytes) as usize;
            bytes.extend(self.window.read_vec(self.at, rest_bytes)?);
        }
        Ok(bytes)
    }

    fn corrupt(&self, what: &str) -> Error {
        corrupt(self.window.path(), what)
    }
}

fn descriptors(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let count = field32(bytes, 24) as usize;
    let area = bytes.get(ENTRY_HEADER_BYTES..).unwrap_or_default();
    area.chunks_exact(DESCRIPTOR_BYTES).take(count)
}

/// How many sectors the header and the descriptors of an entry take.
fn descriptor_sectors(bytes: &[u8]) -> usize {
    let count = field32(bytes, 24) as usize;
    let used = count
        .saturating_mul(DESCRIPTOR_BYTES)
        .saturating_add(ENTRY_HEADER_BYTES);
    used.div_ceil(SECTOR_BYTES)
}

/// Whether an entry's descriptors and data sectors are there and of one sequence number.
fn holds_together(bytes: &[u8], sequence_number: u64) -> bool {
    let sectors = bytes.len() / SECTOR_BYTES;
    let first_data = descriptor_sectors(bytes);
    if first_data > sectors {
        return false;
    }
    let sector = SECTOR_BYTES as u64;
    let mut data_sectors = 0;
    for descriptor in descriptors(bytes) {
        let start = field64(descriptor, 16);
        let is_zero = descriptor.starts_with(b"zero");
        let length_bytes = if is_zero {
            field64(descriptor, 8)
        } else {
            sector
        };
        let fits = start.is_multiple_of(sector)
            && length_bytes.is_multiple_of(sector)
            && start
                .checked_add(length_bytes)
                .is_some_and(|end| end <= MAX_FILE_BYTES);
        let known = is_zero || descriptor.starts_with(b"desc");
        if !known || !fits || field64(descriptor, 24) != sequence_number {
            return false;
        }
        data_sectors += usize::from(!is_zero);
    }
    let is_data = |sector: &[u8]| {
        let number = u64::from(field32(sector, 4)) << 32 | u64::from(field32(sector, 4092));
        sector.starts_with(b"data") && number == sequence_number
    };
    let mut data = bytes.chunks_exact(SECTOR_BYTES).skip(first_data);
    first_data + data_sectors <= sectors && data.by_ref().take(data_sectors).all(is_data)
}
