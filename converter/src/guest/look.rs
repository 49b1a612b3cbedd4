//! A look at a disk's first bytes, without an appliance: whether an operating system may be on it.
//!
//! Reads master boot records, GUID partition tables (UEFI 2.10, 5.3) and the superblocks of whole
//! disks. Pure: bytes in, an answer out; hostile numbers are only compared.

/// What is to be read of a disk's beginning; a shorter disk is read whole.
pub const HEAD_BYTES: u64 = 128 * 1024;

const SECTOR: usize = 512;
const SIGNATURE: &[u8] = &[0x55, 0xaa];
/// The first of the four partition entries, each of 16 bytes, its type in the fifth.
const ENTRIES: usize = 446;
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
        || at(head, 0, b"LUKS\xba\xbe")
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
}
