//! A VHDX in parts, and the entries of its log.
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::crc32c;
use super::super::header::{Guid, MIB, SIGNATURE, binary, written};
use crate::disk::Window;

pub const LOG: u64 = MIB;
pub const METADATA: u64 = 2 * MIB;
pub const BAT: u64 = 3 * MIB;
pub const BITMAP: u64 = 4 * MIB;
pub const PAYLOAD: u64 = 5 * MIB;
pub const BLOCK: usize = MIB as usize;
pub const CAPACITY: u64 = 4 * MIB + 512;
pub const LOG_GUID: Guid = [9; 16];
/// Places in the metadata region of the sample's items.
pub const PARAMETERS: usize = 0x1_0000;
pub const SIZE: usize = PARAMETERS + 16;
pub const SECTOR: usize = SIZE + 16;
pub const LOCATOR: usize = SECTOR + 16;

/// A VHDX whose parts a test may damage; sums are made at the end.
pub struct Sample {
    pub header: Vec<u8>,
    pub log: Vec<u8>,
    pub region: Vec<u8>,
    pub metadata: Vec<u8>,
    pub bat: Vec<u8>,
    pub bitmap: Vec<u8>,
    pub fill: u8,
    pub length_bytes: u64,
}

pub fn put(bytes: &mut [u8], at: usize, part: &[u8]) {
    bytes[at..at + part.len()].copy_from_slice(part);
}

pub fn put64(bytes: &mut [u8], at: usize, value: u64) {
    put(bytes, at, &value.to_le_bytes());
}

pub fn put32(bytes: &mut [u8], at: usize, value: u32) {
    put(bytes, at, &value.to_le_bytes());
}

impl Sample {
    /// Four blocks and a sector; number 2 is filled with `fill`.
    pub fn dynamic(id: u8, fill: u8) -> Self {
        let mut sample = Self {
            header: vec![0; 4096],
            log: Vec::new(),
            region: vec![0; 64 << 10],
            metadata: vec![0; 128 << 10],
            bat: vec![0; 5 * 8],
            bitmap: Vec::new(),
            fill,
            length_bytes: 6 * MIB,
        };
        put(&mut sample.header, 0, b"head");
        put64(&mut sample.header, 8, 2);
        put(&mut sample.header, 32, &[id; 16]);
        put(&mut sample.header, 66, &[1]);
        put32(&mut sample.header, 68, MIB as u32);
        put64(&mut sample.header, 72, LOG);
        put(&mut sample.region, 0, b"regi");
        let bat = binary(
            0x2dc2_7766,
            0xf623,
            0x4200,
            *b"\x9d\x64\x11\x5e\x9b\xfd\x4a\x08",
        );
        let metadata = binary(
            0x8b7c_a206,
            0x4790,
            0x4b9a,
            *b"\xb8\xfe\x57\x5f\x05\x0f\x88\x6e",
        );
        sample.add_region(&bat, BAT, MIB as u32, 1);
        sample.add_region(&metadata, METADATA, MIB as u32, 1);
        put(&mut sample.metadata, 0, b"metadata");
        let item = |first, second, third, last| binary(first, second, third, last);
        let parameters = item(
            0xcaa1_6737,
            0xfa36,
            0x4d43,
            *b"\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b",
        );
        let size = item(
            0x2fa5_4224,
            0xcd1b,
            0x4876,
            *b"\xb2\x11\x5d\xbe\xd8\x3b\xf4\xb8",
        );
        let sector = item(
            0x8141_bf1d,
            0xa96f,
            0x4709,
            *b"\xba\x47\xf2\x33\xa8\xfa\xab\x5f",
        );
        sample.add_item(&parameters, PARAMETERS, 8, 4);
        sample.add_item(&size, SIZE, 8, 4);
        sample.add_item(&sector, SECTOR, 4, 4);
        put32(&mut sample.metadata, PARAMETERS, MIB as u32);
        put64(&mut sample.metadata, SIZE, CAPACITY);
        put32(&mut sample.metadata, SECTOR, 512);
        put64(&mut sample.bat, 16, PAYLOAD | 6);
        sample
    }

    pub fn fixed(fill: u8) -> Self {
        let mut sample = Self::dynamic(1, fill);
        put32(&mut sample.metadata, PARAMETERS + 4, 1);
        sample
    }

    /// A child of the disk `parent`: of block 2 it has the second and the last sector only.
    pub fn differencing(id: u8, fill: u8, parent: u8, path: &str) -> Self {
        let mut sample = Self::dynamic(id, fill);
        put32(&mut sample.metadata, PARAMETERS + 4, 2);
        let item = binary(
            0xa8d3_5f2d,
            0xb30b,
            0x454d,
            *b"\xab\xf7\xd3\xd8\x48\x34\xab\x0c",
        );
        let kind = binary(
            0xb04a_efb7,
            0xd19e,
            0x4a81,
            *b"\xb7\x89\x25\xb8\xe9\x44\x59\x13",
        );
        let mut locator = [&kind[..], &[0, 0, 2, 0]].concat();
        let mut strings = Vec::new();
        let linkage = written(&[parent; 16]).to_uppercase();
        for (key, value) in [
            ("parent_linkage", linkage.as_str()),
            ("relative_path", path),
        ] {
            let mut place = |text: &str| {
                let at = 20 + 24 + strings.len() as u32;
                strings.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
                (at, (text.len() * 2) as u16)
            };
            let ((key, key_bytes), (value, value_bytes)) = (place(key), place(value));
            locator.extend(key.to_le_bytes());
            locator.extend(value.to_le_bytes());
            locator.extend(key_bytes.to_le_bytes());
            locator.extend(value_bytes.to_le_bytes());
        }
        locator.extend(strings);
        sample.add_item(&item, LOCATOR, locator.len() as u32, 4);
        put(&mut sample.metadata, LOCATOR, &locator);
        // The bitmap's entry is behind those of a chunk's 4096 blocks.
        sample.bat.resize(4097 * 8, 0);
        put64(&mut sample.bat, 16, PAYLOAD | 7);
        put64(&mut sample.bat, 4096 * 8, BITMAP | 6);
        sample.bitmap = vec![0; 3 * 256];
        sample.bitmap[2 * 256] = 0b10;
        sample.bitmap[3 * 256 - 1] = 0x80;
        sample
    }

    pub fn add_region(&mut self, id: &Guid, offset: u64, length: u32, required: u32) {
        let count = self.region[8];
        self.region[8] = count + 1;
        let at = 16 + usize::from(count) * 32;
        put(&mut self.region, at, id);
        put64(&mut self.region, at + 16, offset);
        put32(&mut self.region, at + 24, length);
        put32(&mut self.region, at + 28, required);
    }

    pub fn add_item(&mut self, id: &Guid, offset: usize, length: u32, flags: u32) {
        let count = self.metadata[10];
        self.metadata[10] = count + 1;
        let at = 32 + usize::from(count) * 32;
        put(&mut self.metadata, at, id);
        put32(&mut self.metadata, at + 16, offset as u32);
        put32(&mut self.metadata, at + 20, length);
        put32(&mut self.metadata, at + 24, flags);
    }

    /// Appends an entry to the log, which then has to be replayed.
    pub fn log(&mut self, entry: &Entry) {
        put(&mut self.header, 48, &LOG_GUID);
        self.log.extend(entry.build());
    }

    pub fn build(&self) -> Window {
        let file = tempfile::tempfile().unwrap();
        let write = |bytes: &[u8], at: u64| file.write_all_at(bytes, at).unwrap();
        write(SIGNATURE, 0);
        write(&summed(&self.header), 128 << 10);
        write(&summed(&self.region), 256 << 10);
        write(&self.log, LOG);
        write(&self.metadata, METADATA);
        write(&self.bat, BAT);
        write(&self.bitmap, BITMAP);
        write(&vec![self.fill; BLOCK], PAYLOAD);
        file.set_len(self.length_bytes).unwrap();
        Window::whole(file, Path::new("x.vhdx")).unwrap()
    }
}

pub fn summed(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let sum = crc32c::of_structure(&bytes);
    put32(&mut bytes, 4, sum);
    bytes
}

/// A log entry: zeros first, then one sector each.
#[derive(Clone, Default)]
pub struct Entry {
    pub sequence_number: u64,
    pub tail: u32,
    pub zeros: Vec<(u64, u64)>,
    pub sectors: Vec<(u64, Vec<u8>)>,
    pub flushed: u64,
    pub last: u64,
    pub guid: Option<Guid>,
}

impl Entry {
    pub fn new(sequence_number: u64, tail: u32) -> Self {
        Self {
            sequence_number,
            tail,
            ..Self::default()
        }
    }

    pub fn sector(mut self, at: u64, bytes: &[u8]) -> Self {
        let mut sector = bytes.to_vec();
        sector.resize(4096, 0);
        self.sectors.push((at, sector));
        self
    }

    pub fn build(&self) -> Vec<u8> {
        let mut bytes = vec![0; 4096 * (1 + self.sectors.len())];
        let length = bytes.len() as u32;
        put(&mut bytes, 0, b"loge");
        put32(&mut bytes, 8, length);
        put32(&mut bytes, 12, self.tail);
        put64(&mut bytes, 16, self.sequence_number);
        put32(
            &mut bytes,
            24,
            (self.zeros.len() + self.sectors.len()) as u32,
        );
        put(&mut bytes, 32, &self.guid.unwrap_or(LOG_GUID));
        put64(&mut bytes, 48, self.flushed);
        put64(&mut bytes, 56, self.last);
        let mut at = 64;
        for (start, length) in &self.zeros {
            put(&mut bytes, at, b"zero");
            put64(&mut bytes, at + 8, *length);
            put64(&mut bytes, at + 16, *start);
            put64(&mut bytes, at + 24, self.sequence_number);
            at += 32;
        }
        for (number, (start, sector)) in self.sectors.iter().enumerate() {
            put(&mut bytes, at, b"desc");
            put(&mut bytes, at + 4, &sector[4092..]);
            put(&mut bytes, at + 8, &sector[..8]);
            put64(&mut bytes, at + 16, *start);
            put64(&mut bytes, at + 24, self.sequence_number);
            at += 32;
            let data = 4096 * (1 + number);
            put(&mut bytes, data, sector);
            put(&mut bytes, data, b"data");
            put32(&mut bytes, data + 4, (self.sequence_number >> 32) as u32);
            put32(&mut bytes, data + 4092, self.sequence_number as u32);
        }
        summed(&bytes)
    }
}

impl Sample {
    pub fn copy(&self) -> Self {
        Self {
            header: self.header.clone(),
            log: self.log.clone(),
            region: self.region.clone(),
            metadata: self.metadata.clone(),
            bat: self.bat.clone(),
            bitmap: self.bitmap.clone(),
            ..*self
        }
    }
}
