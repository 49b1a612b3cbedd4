//! Differencing VHDs, made of the dynamic ones that qemu-img writes: it makes no children itself.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is how a test fails

const FOOTER: usize = 512;
/// The dynamic disk header follows the copy of the footer.
const HEADER: std::ops::Range<usize> = 512..1536;

pub fn be(bytes: &[u8], at: usize, width: usize) -> usize {
    let field = bytes[at..at + width].iter();
    field.fold(0, |value, byte| value << 8 | usize::from(*byte))
}

/// A child, known as `id`, of the disk `dynamic`, which is found by `path`: of the first block
/// that the parent has, some sectors are the child's own.
pub fn differencing(dynamic: &[u8], id: u8, path: &str) -> Vec<u8> {
    let mut footer = dynamic[..FOOTER].to_vec();
    footer[60..64].copy_from_slice(&4u32.to_be_bytes());
    footer[68..84].fill(id);
    sum(&mut footer, 64);
    let mut bytes = dynamic[..dynamic.len() - FOOTER].to_vec();
    bytes[..FOOTER].copy_from_slice(&footer);
    let parent: Vec<u8> = path.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let locator = HEADER.start + 576;
    let at = bytes.len() as u64;
    bytes[HEADER.start + 40..HEADER.start + 56].copy_from_slice(&dynamic[68..84]);
    bytes[locator..locator + 4].copy_from_slice(b"W2ru");
    bytes[locator + 8..locator + 12].copy_from_slice(&(parent.len() as u32).to_be_bytes());
    bytes[locator + 16..locator + 24].copy_from_slice(&at.to_be_bytes());
    sum(&mut bytes[HEADER], 36);
    let table = be(dynamic, HEADER.start + 16, 8);
    let entries = (table..).step_by(4).map(|at| be(dynamic, at, 4));
    let block = entries
        .into_iter()
        .find(|entry| *entry != 0xffff_ffff)
        .unwrap()
        * 512;
    bytes[block..block + 512].fill(0x5a);
    bytes.extend(parent);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes.extend(footer);
    bytes
}

/// The one's complement of the sum of all bytes but its own four at `at`.
pub fn sum(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let sum = bytes
        .iter()
        .fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    bytes[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}
