//! A look at the beginnings of a disk and of its partitions, without an appliance: whether an
//! operating system may be on it, and whether one could be repaired.
//!
//! Reads master boot records, GUID partition tables (UEFI 2.10, 5.3) and superblocks. Pure: bytes
//! in, an answer out; hostile numbers are only compared, or where somebody may look for more.

/// What is to be read of a disk's beginning; a shorter disk is read whole.
pub const HEAD_BYTES: u64 = 128 * 1024;

const SECTOR: usize = 512;
const SIGNATURE: &[u8] = &[0x55, 0xaa];
/// The first of the four partition entries, each of 16 bytes, its type in the fifth.
const ENTRIES: usize = 446;
const LUKS: &[u8] = b"LUKS\xba\xbe";
/// Boot code of a disk's own, before the entries.
const BOOT_CODE: usize = 440;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Partitions, or a file system with a boot sector: an operating system may be there.
    MayBoot,
    /// A file system, LVM, RAID or encryption on the whole disk, and nothing that boots.
    Data,
    /// Nothing that is known.
    Nothing,
}

/// Judges a disk by its first `HEAD_BYTES`.
pub fn look(head: &[u8]) -> Look {
    if has_partitions(head) || (has_boot_code(head) && has_linux_root(head)) {
        return Look::MayBoot;
    }
    if is_known(head) {
        Look::Data
    } else {
        Look::Nothing
    }
}

/// A partition, where it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    /// As Linux counts: `1` of `/dev/sda1`; 0 is the whole disk.
    pub number: u32,
    pub start_bytes: u64,
}

/// What is to be read of a partition.
pub const VOLUME_BYTES: usize = SECTOR;

/// What the first sector of a partition shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volume {
    Luks,
    BitLocker,
    /// NTFS or ReFS.
    Windows,
    /// FAT or exFAT: no system has its root there.
    Fat,
    /// Anything, a Linux root among it.
    Other,
}

/// GPT's "Microsoft reserved": without a file system.
const RESERVED: &[u8] = b"\x16\xe3\xc9\xe3\x5c\x0b\xb8\x4d\x81\x7d\xf9\x2d\xf0\x02\x15\xae";
/// No table has more.
const MAX_PARTITIONS: u32 = 128;

/// The partitions of a disk by its first `HEAD_BYTES`; without any, the disk itself. Those within
/// an extended partition are not looked for: it is one.
pub fn partitions(head: &[u8]) -> Vec<Partition> {
    let gpt = [SECTOR, 4096]
        .into_iter()
        .find(|sector| at(head, *sector, b"EFI PART"));
    let found = match gpt {
        Some(sector) => gpt_partitions(head, sector),
        None if has_partitions(head) => mbr_partitions(head),
        None => Vec::new(),
    };
    if found.is_empty() {
        let (number, start_bytes) = (0, 0);
        return vec![Partition {
            number,
            start_bytes,
        }];
    }
    found
}

fn number<const N: usize>(bytes: &[u8], offset: usize) -> Option<u64> {
    let found: [u8; N] = bytes.get(offset..)?.first_chunk().copied()?;
    let digit = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
    Some(found.iter().rev().fold(0, digit))
}

fn gpt_partitions(head: &[u8], sector: usize) -> Vec<Partition> {
    let field = |offset: usize| sector.saturating_add(offset);
    let (Some(first), Some(count), Some(entry_bytes)) = (
        number::<8>(head, field(72)),
        number::<4>(head, field(80)),
        number::<4>(head, field(84)),
    ) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for index in 0..(count as u32).min(MAX_PARTITIONS) {
        let offset = first
            .saturating_mul(sector as u64)
            .saturating_add(entry_bytes.saturating_mul(u64::from(index)));
        let entry = usize::try_from(offset).ok().and_then(|at| head.get(at..));
        let Some((kind, start)) = entry.and_then(|it| Some((it.get(..16)?, number::<8>(it, 32)?)))
        else {
            break;
        };
        if kind.iter().any(|byte| *byte != 0) && kind != RESERVED {
            found.push(Partition {
                number: index + 1,
                start_bytes: start.saturating_mul(sector as u64),
            });
        }
    }
    found
}

fn mbr_partitions(head: &[u8]) -> Vec<Partition> {
    let entries = head.get(ENTRIES..SECTOR - 2).unwrap_or_default();
    let entries = (1..).zip(entries.as_chunks::<16>().0);
    let used = entries.filter(|(_, entry)| entry[4] != 0);
    used.filter_map(|(count, entry)| {
        Some(Partition {
            number: count,
            start_bytes: number::<4>(entry, 8)?.saturating_mul(SECTOR as u64),
        })
    })
    .collect()
}

/// Judges a partition by its first `VOLUME_BYTES`.
pub fn volume(sector: &[u8]) -> Volume {
    if at(sector, 0, LUKS) {
        Volume::Luks
    } else if at(sector, 3, b"-FVE-FS-") {
        Volume::BitLocker
    } else if at(sector, 3, b"NTFS    ") || at(sector, 3, b"ReFS\0\0\0\0") {
        Volume::Windows
    } else if is_volume(sector) {
        Volume::Fat
    } else {
        Volume::Other
    }
}

fn at(head: &[u8], offset: usize, magic: &[u8]) -> bool {
    head.get(offset..)
        .is_some_and(|rest| rest.starts_with(magic))
}

fn has_partitions(head: &[u8]) -> bool {
    if at(head, SECTOR, b"EFI PART") || at(head, 4096, b"EFI PART") {
        return true;
    }
    if !at(head, SECTOR - 2, SIGNATURE) || is_volume(head) {
        return false;
    }
    let entries = head.get(ENTRIES..SECTOR - 2).unwrap_or_default();
    // Boot flags are 0 or 0x80, a used entry has a type, a start and a length.
    entries
        .as_chunks::<16>()
        .0
        .iter()
        .all(|entry| entry[0] & 0x7f == 0)
        && entries.as_chunks::<16>().0.iter().any(|entry| {
            let is_set = |range: std::ops::Range<usize>| {
                entry
                    .get(range)
                    .is_some_and(|bytes| bytes.iter().any(|byte| *byte != 0))
            };
            entry[4] != 0 && is_set(8..12) && is_set(12..16)
        })
}

/// FAT and NTFS volumes end their first sector like a boot record does.
fn is_volume(head: &[u8]) -> bool {
    at(head, 3, b"NTFS    ")
        || at(head, 3, b"EXFAT   ")
        || at(head, 54, b"FAT")
        || at(head, 82, b"FAT32")
}

fn has_boot_code(head: &[u8]) -> bool {
    let code = head.get(..BOOT_CODE).unwrap_or_default();
    at(head, SECTOR - 2, SIGNATURE) && code.iter().any(|byte| *byte != 0)
}

/// ext2 to ext4, XFS, btrfs: their superblocks' magics.
fn has_linux_root(head: &[u8]) -> bool {
    at(head, 1024 + 56, &[0x53, 0xef]) || at(head, 0, b"XFSB") || at(head, 0x10040, b"_BHRfS_M")
}

fn is_known(head: &[u8]) -> bool {
    let lvm = (0..4).any(|sector| at(head, sector * SECTOR, b"LABELONE"));
    let raid = [0, 4096]
        .iter()
        .any(|offset| at(head, *offset, &[0xfc, 0x4e, 0x2b, 0xa9]));
    lvm || raid
        || has_linux_root(head)
        || is_volume(head)
        || at(head, 0, LUKS)
        || at(head, 4096 - 10, b"SWAPSPACE2")
        || at(head, 0x8001, b"CD001")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(marks: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; HEAD_BYTES as usize];
        for (offset, bytes) in marks {
            head[*offset..*offset + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    #[test]
    fn tells_systems_from_data() {
        let end = (510, SIGNATURE);
        let entry: &[u8] = &[0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0, 8, 0];
        let ext4: (usize, &[u8]) = (1080, &[0x53, 0xef]);
        let jump: (usize, &[u8]) = (0, &[0xeb, 0x3c, 0x90]);
        type Piece<'a> = (usize, &'a [u8]);
        let cases: [(&[Piece], Look); 10] = [
            (&[], Look::Nothing),
            (&[end, (446, entry)], Look::MayBoot),
            (&[(446, entry)], Look::Nothing),
            (&[end], Look::Nothing),
            (&[(512, b"EFI PART")], Look::MayBoot),
            (&[ext4], Look::Data),
            (&[ext4, end, jump], Look::MayBoot),
            (&[end, jump, (54, b"FAT16   "), (446, entry)], Look::Data),
            (&[(536 - 24, b"LABELONE")], Look::Data),
            (&[end, (446, &[0x41; 64])], Look::Nothing),
        ];
        for (number, (marks, expected)) in cases.iter().enumerate() {
            assert_eq!(look(&disk(marks)), *expected, "case {number}");
        }
        for length in [0, 1, 511, 512, 1081] {
            look(&vec![0xff; length]);
        }
    }

    fn gpt(sector: usize, entries: &[(&[u8], u64)]) -> Vec<u8> {
        let mut head = disk(&[(sector, b"EFI PART")]);
        let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
        put(sector + 72, &2_u64.to_le_bytes());
        put(sector + 80, &128_u32.to_le_bytes());
        put(sector + 84, &128_u32.to_le_bytes());
        for (index, (kind, start)) in entries.iter().enumerate() {
            put(2 * sector + 128 * index, kind);
            put(2 * sector + 128 * index + 32, &start.to_le_bytes());
        }
        head
    }

    #[test]
    fn partitions_are_where_the_tables_say() {
        let starts = |head: &[u8]| -> Vec<(u32, u64)> {
            let found = partitions(head).into_iter();
            found.map(|it| (it.number, it.start_bytes)).collect()
        };
        let linux: &[u8] = &[0xaf; 16];
        for sector in [512, 4096] {
            let unit = sector as u64;
            let head = gpt(sector, &[(linux, 256), (RESERVED, 9), (linux, 1 << 63)]);
            assert_eq!(starts(&head), [(1, 256 * unit), (3, u64::MAX)]);
        }
        let end = (510, SIGNATURE);
        let entry: &[u8] = &[0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0, 8, 0];
        assert_eq!(starts(&disk(&[end, (462, entry)])), [(2, 1 << 20)]);
        assert_eq!(starts(&disk(&[])), [(0, 0)]);
        let mut torn = gpt(512, &[(linux, 256)]);
        torn.truncate(1024 + 20);
        assert_eq!(starts(&torn), [(0, 0)]);
    }

    #[test]
    fn volumes_are_told_by_their_first_sector() {
        let cases: [(usize, &[u8], Volume); 7] = [
            (0, LUKS, Volume::Luks),
            (3, b"-FVE-FS-", Volume::BitLocker),
            (3, b"NTFS    ", Volume::Windows),
            (3, b"ReFS\0\0\0\0", Volume::Windows),
            (82, b"FAT32   ", Volume::Fat),
            (0, b"XFSB", Volume::Other),
            (0, b"", Volume::Other),
        ];
        for (offset, magic, expected) in cases {
            let sector = disk(&[(offset, magic)]);
            assert_eq!(volume(&sector[..VOLUME_BYTES]), expected, "{magic:?}");
        }
        assert_eq!(volume(b"LUK"), Volume::Other);
    }
}
