//! Writers of the sparse extents that ESXi makes for snapshots and qemu-img only reads.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is how a test fails

const SECTOR: usize = 512;
const TABLE_ENTRIES: usize = 4096;

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn sectors(bytes: usize) -> usize {
    bytes.div_ceil(SECTOR)
}

/// A VMFS sparse (COWD) extent that holds what of `disk` is not zero.
pub fn cowd(disk: &[u8], grain_sectors: usize) -> Vec<u8> {
    let grain_bytes = grain_sectors * SECTOR;
    let grains = disk.len().div_ceil(grain_bytes);
    let directory_entries = grains.div_ceil(TABLE_ENTRIES);
    let tables = 4 + sectors(directory_entries * 4);
    let mut bytes = vec![0; (tables + directory_entries * TABLE_ENTRIES * 4 / SECTOR) * SECTOR];
    put(&mut bytes, 0, b"COWD");
    for (at, value) in [
        (4, 1),
        (8, 3),
        (12, disk.len() / SECTOR),
        (16, grain_sectors),
        (20, 4),
        (24, directory_entries),
    ] {
        put(&mut bytes, at, &(value as u32).to_le_bytes());
    }
    for index in 0..directory_entries {
        let sector = tables + index * TABLE_ENTRIES * 4 / SECTOR;
        put(
            &mut bytes,
            4 * SECTOR + index * 4,
            &(sector as u32).to_le_bytes(),
        );
    }
    for (index, grain) in disk.chunks(grain_bytes).enumerate() {
        if grain.iter().any(|byte| *byte != 0) {
            let sector = (bytes.len() / SECTOR) as u32;
            put(
                &mut bytes,
                tables * SECTOR + index * 4,
                &sector.to_le_bytes(),
            );
            bytes.extend(grain);
            bytes.resize(bytes.len().next_multiple_of(grain_bytes), 0);
        }
    }
    put(
        &mut bytes,
        28,
        &((sectors(disk.len())) as u32).to_le_bytes(),
    );
    bytes
}

/// An SE sparse extent; its zeros are absent, unmapped and zero grains in turn if `own_zeros`.
pub fn se_sparse(disk: &[u8], own_zeros: bool) -> Vec<u8> {
    const GRAIN: usize = 8 * SECTOR;
    let grains = disk.len().div_ceil(GRAIN);
    let directory_entries = grains.div_ceil(TABLE_ENTRIES);
    let directory = 2;
    let tables = directory + sectors(directory_entries * 8);
    let data = tables + directory_entries * TABLE_ENTRIES * 8 / SECTOR;
    let mut bytes = vec![0; data * SECTOR];
    let fields = [
        (0, 0xcafe_babe),
        (1, 0x2_0000_0001),
        (2, disk.len() / SECTOR),
        (3, 8),
        (4, 64),
        (10, 1),
        (11, 1),
        (16, directory),
        (17, tables - directory),
        (18, tables),
        (19, data - tables),
        (24, data),
        (25, grains * 8),
        // The volatile header.
        (64, 0xcafe_cafe),
    ];
    for (index, value) in fields {
        put(&mut bytes, index * 8, &(value as u64).to_le_bytes());
    }
    for index in 0..directory_entries {
        let entry = 0x1000_0000_0000_0000 | index as u64;
        put(
            &mut bytes,
            directory * SECTOR + index * 8,
            &entry.to_le_bytes(),
        );
    }
    let mut next = 0;
    for (index, grain) in disk.chunks(GRAIN).enumerate() {
        let entry = if grain.iter().any(|byte| *byte != 0) {
            bytes.extend(grain);
            bytes.resize(bytes.len() + GRAIN - grain.len(), 0);
            next += 1;
            let number: u64 = next - 1;
            0x3000_0000_0000_0000 | (number & 0xfff) << 48 | number >> 12
        } else if own_zeros {
            (index as u64 % 3) << 60
        } else {
            0
        };
        put(
            &mut bytes,
            tables * SECTOR + index * 8,
            &entry.to_le_bytes(),
        );
    }
    bytes
}
