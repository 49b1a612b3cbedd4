//! VHDXs that no tool writes, made of those that qemu-img does: one whose writer died, a child.
//! And the checksum that VHDX uses.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is how a test fails
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const LOG_AT: u64 = 1 << 20;

/// CRC-32C ([MS-VHDX] 2.2); the field that holds the sum has to be zeros.
pub fn crc32c(bytes: &[u8]) -> u32 {
    static TABLE: std::sync::OnceLock<[u32; 256]> = std::sync::OnceLock::new();
    let table = TABLE.get_or_init(|| {
        std::array::from_fn(|byte| {
            (0..8).fold(byte as u32, |crc, _| {
                (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
            })
        })
    });
    !bytes.iter().fold(!0, |crc, byte| {
        (crc >> 8) ^ table[usize::from(crc as u8 ^ byte)]
    })
}

/// Makes of a VHDX that qemu-io wrote what is left if it dies before it writes the BAT: the BAT is
/// empty, and the headers say that the log, which has it, is to be replayed.
pub fn lose_the_bat(path: &Path) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut entry = [0; 4096];
    file.read_exact_at(&mut entry, LOG_AT).unwrap();
    assert!(entry.starts_with(b"loge"), "qemu-io left no log entry");
    let bat_at = u64::from_le_bytes(entry[64 + 16..64 + 24].try_into().unwrap());
    let mut bat = [0; 4096];
    file.read_exact_at(&mut bat, bat_at).unwrap();
    assert_ne!(bat, [0; 4096], "the log's entry is not the BAT's");
    file.write_all_at(&[0; 4096], bat_at).unwrap();
    for header_at in [64 << 10, 128 << 10] {
        let mut header = [0; 4096];
        file.read_exact_at(&mut header, header_at).unwrap();
        header[48..64].copy_from_slice(&entry[32..48]);
        header[4..8].fill(0);
        let sum = crc32c(&header);
        header[4..8].copy_from_slice(&sum.to_le_bytes());
        file.write_all_at(&header, header_at).unwrap();
    }
}

/// Computes the sum of a structure again, after `change`.
pub fn resum(bytes: &mut [u8], range: std::ops::Range<usize>, change: impl FnOnce(&mut [u8])) {
    let structure = &mut bytes[range];
    change(structure);
    structure[4..8].fill(0);
    let sum = crc32c(structure);
    structure[4..8].copy_from_slice(&sum.to_le_bytes());
}

/// Makes of a dynamic VHDX without a log its own child's look-alike: it says that it is a child of
/// the disk at `path` whose data write GUID is `linkage`.
pub fn differencing(dynamic: &[u8], linkage: &str, path: &str) -> Vec<u8> {
    const REGION: usize = 192 << 10;
    let le = |at: usize, width: usize| {
        let field = dynamic[at..at + width].iter().rev();
        field.fold(0, |value, byte| value << 8 | usize::from(*byte))
    };
    let places = [REGION + 32, REGION + 64].map(|at| le(at, 8));
    let table = places
        .into_iter()
        .find(|at| dynamic[*at..].starts_with(b"metadata"))
        .unwrap();
    let mut bytes = dynamic.to_vec();
    // The item of the file parameters comes first with QEMU; bit 1 of its flags: has a parent.
    let parameters = (0..5).map(|item| table + 32 + item * 32);
    let parameters = parameters
        .into_iter()
        .find(|at| le(*at, 4) == 0xcaa1_6737)
        .unwrap();
    bytes[table + le(parameters + 16, 4) + 4] |= 2;
    // MS-VHDX 2.6.2.6: the locator's type, then keys and values in UTF-16.
    let mut locator = Vec::new();
    locator.extend(0xb04a_efb7u32.to_le_bytes());
    locator.extend(0xd19eu16.to_le_bytes());
    locator.extend(0x4a81u16.to_le_bytes());
    locator.extend(b"\xb7\x89\x25\xb8\xe9\x44\x59\x13\0\0\x02\0");
    let mut strings: Vec<u8> = Vec::new();
    for (key, value) in [("parent_linkage", linkage), ("relative_path", path)] {
        let mut place = |text: &str| {
            let at = 20 + 2 * 12 + strings.len();
            strings.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
            (at as u32, (text.len() * 2) as u16)
        };
        let ((key, key_bytes), (value, value_bytes)) = (place(key), place(value));
        locator.extend([key, value].iter().flat_map(|at| at.to_le_bytes()));
        locator.extend(
            [key_bytes, value_bytes]
                .iter()
                .flat_map(|length| length.to_le_bytes()),
        );
    }
    locator.extend(strings);
    let count = le(table + 10, 2);
    bytes[table + 10] += 1;
    let item = table + 32 + count * 32;
    let mut entry = Vec::new();
    entry.extend(0xa8d3_5f2du32.to_le_bytes());
    entry.extend(0xb30bu16.to_le_bytes());
    entry.extend(0x454du16.to_le_bytes());
    entry.extend(b"\xab\xf7\xd3\xd8\x48\x34\xab\x0c");
    entry.extend(0x2_0000u32.to_le_bytes());
    entry.extend((locator.len() as u32).to_le_bytes());
    entry.extend([4, 0, 0, 0]);
    bytes[item..item + entry.len()].copy_from_slice(&entry);
    let at = table + 0x2_0000;
    bytes[at..at + locator.len()].copy_from_slice(&locator);
    bytes
}

/// Gives the disk the data write GUID of `id` only, in both headers; its children's linkage.
pub fn identify(bytes: &mut [u8], id: u8) -> String {
    for at in [64 << 10, 128 << 10] {
        resum(bytes, at..at + 4096, |header| header[32..48].fill(id));
    }
    let hex = |bytes: usize| format!("{id:02X}").repeat(bytes);
    format!("{{{}-{}-{}-{}-{}}}", hex(4), hex(2), hex(2), hex(2), hex(6))
}
