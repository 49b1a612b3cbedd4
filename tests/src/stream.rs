//! Writes streamOptimized VMDKs as VMware's servers do (Virtual Disk Format 5.0): grains in guest
//! order, each grain table behind its grains, the directory and the footer at the end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a panic is how a test fails
use std::io::{Read, Write};

use flate2::{Compression, read::ZlibEncoder};

const SECTOR: usize = 512;
pub const GRAIN_BYTES: usize = 65_536;
const GRAIN_SECTORS: u64 = 128;
const TABLE_ENTRIES: usize = 512;
const OVERHEAD_SECTORS: u64 = 128;

pub struct StreamWriter<W> {
    out: W,
    sectors: u64,
    at: u64,
    table: Vec<u32>,
    table_index: usize,
    directory: Vec<u32>,
    level: Compression,
}

/// Takes a compressed grain's bytes.
pub fn packed(sector: u64, bytes: &[u8], level: Compression) -> Vec<u8> {
    let mut stream = Vec::new();
    ZlibEncoder::new(bytes, level)
        .read_to_end(&mut stream)
        .unwrap();
    let mut grain = sector.to_le_bytes().to_vec();
    grain.extend((stream.len() as u32).to_le_bytes());
    grain.extend(stream);
    grain.resize(grain.len().next_multiple_of(SECTOR), 0);
    grain
}

/// Before the metadata that it announces.
pub fn marker(sectors: u64, kind: u32) -> Vec<u8> {
    let mut marker = sectors.to_le_bytes().to_vec();
    marker.extend([0; 4]);
    marker.extend(kind.to_le_bytes());
    marker.resize(SECTOR, 0);
    marker
}

impl<W: Write> StreamWriter<W> {
    /// For a disk of `size_bytes`, a multiple of 512.
    pub fn new(out: W, size_bytes: u64) -> Self {
        let sectors = size_bytes / SECTOR as u64;
        let grains = sectors.div_ceil(GRAIN_SECTORS) as usize;
        let mut writer = Self {
            out,
            sectors,
            at: 0,
            table: vec![0; TABLE_ENTRIES],
            table_index: 0,
            directory: vec![0; grains.div_ceil(TABLE_ENTRIES)],
            level: Compression::fast(),
        };
        let mut head = writer.header(u64::MAX);
        let text = format!(
            "# Disk DescriptorFile\nversion=1\nCID=7e5b8b3a\nparentCID=ffffffff\n\
             createType=\"streamOptimized\"\nRW {sectors} SPARSE \"vm.vmdk\"\n\
             ddb.adapterType = \"lsilogic\"\n"
        );
        head.extend(text.as_bytes());
        head.resize(OVERHEAD_SECTORS as usize * SECTOR, 0);
        writer.put(&head);
        writer
    }

    pub fn level(self, level: u32) -> Self {
        let level = Compression::new(level);
        Self { level, ..self }
    }

    /// What was written so far.
    pub fn length_bytes(&self) -> u64 {
        self.at
    }

    fn header(&self, directory_sector: u64) -> Vec<u8> {
        let mut header = b"KDMV".to_vec();
        header.extend(3_u32.to_le_bytes());
        header.extend(0x3_0001_u32.to_le_bytes());
        let fields = [self.sectors, GRAIN_SECTORS, 1, 20];
        header.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
        header.extend(512_u32.to_le_bytes());
        let fields = [0, directory_sector, OVERHEAD_SECTORS];
        header.extend(fields.iter().flat_map(|field: &u64| field.to_le_bytes()));
        header.extend(b"\0\n \r\n\x01\0");
        header.resize(SECTOR, 0);
        header
    }

    fn put(&mut self, bytes: &[u8]) {
        self.out.write_all(bytes).unwrap();
        self.at += bytes.len() as u64;
    }

    fn sector(&self) -> u32 {
        (self.at / SECTOR as u64) as u32
    }

    /// Adds grain `index`, higher than those before.
    pub fn grain(&mut self, index: usize, bytes: &[u8]) {
        self.reach(index / TABLE_ENTRIES);
        self.table[index % TABLE_ENTRIES] = self.sector();
        let grain = packed(index as u64 * GRAIN_SECTORS, bytes, self.level);
        self.put(&grain);
    }

    /// Adds bytes that are not in any table.
    pub fn stray(&mut self, bytes: &[u8]) {
        self.put(bytes);
    }

    /// Names grain `index` at another place than its own, or (0) nowhere.
    pub fn rename(&mut self, index: usize, sector: u32) {
        self.table[index % TABLE_ENTRIES] = sector;
    }

    /// The sector at which a table names grain `index`.
    pub fn place_of(&self, index: usize) -> u32 {
        self.table[index % TABLE_ENTRIES]
    }

    fn reach(&mut self, table_index: usize) {
        if table_index != self.table_index {
            self.close_table();
            self.table_index = table_index;
        }
    }

    fn close_table(&mut self) {
        if self.table.iter().any(|entry| *entry != 0) {
            self.put(&marker(4, 1));
            self.directory[self.table_index] = self.sector();
            let table: Vec<u8> = self.table.drain(..).flat_map(u32::to_le_bytes).collect();
            self.put(&table);
            self.table = vec![0; TABLE_ENTRIES];
        }
    }

    /// Writes what makes it whole.
    pub fn finish(mut self) -> W {
        self.close_table();
        let directory = std::mem::take(&mut self.directory);
        let mut directory: Vec<u8> = directory.into_iter().flat_map(u32::to_le_bytes).collect();
        directory.resize(directory.len().next_multiple_of(SECTOR), 0);
        self.put(&marker((directory.len() / SECTOR) as u64, 2));
        let directory_sector = u64::from(self.sector());
        self.put(&directory);
        self.put(&marker(1, 3));
        let footer = self.header(directory_sector);
        self.put(&footer);
        self.put(&[0; SECTOR]);
        self.out
    }
}

/// A raw disk as a stream; grains of zeros are left out.
pub fn of_raw(raw: &[u8]) -> Vec<u8> {
    let mut writer = StreamWriter::new(Vec::new(), raw.len() as u64);
    for (index, grain) in raw.chunks(GRAIN_BYTES).enumerate() {
        if grain.iter().any(|byte| *byte != 0) {
            writer.grain(index, grain);
        }
    }
    writer.finish()
}
