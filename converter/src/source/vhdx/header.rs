//! The file type identifier and the two headers ([MS-VHDX] 2.2.1, 2.2.2), and the fields of all
//! structures: little endian, GUIDs in their binary form.
use super::crc32c;
use crate::disk::{Window, corrupt, unsupported};
use crate::error::Result;

pub(in crate::source) const SIGNATURE: &[u8; 8] = b"vhdxfile";
pub(super) const MIB: u64 = 1 << 20;
/// Identifier, headers and region tables.
pub(super) const HEADER_SECTION_BYTES: u64 = MIB;
const HEADERS_AT: [u64; 2] = [64 << 10, 128 << 10];
const HEADER_BYTES: usize = 4096;
const VERSION: u16 = 1;

pub(super) type Guid = [u8; 16];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    sequence_number: u64,
    pub file_write_guid: Guid,
    pub data_write_guid: Guid,
    /// `None`: nothing to replay.
    pub log_guid: Option<Guid>,
    log_version: u16,
    version: u16,
    pub log_bytes: u64,
    pub log_at: u64,
}

impl Header {
    /// The current one of the two headers, the log's place checked.
    pub(super) fn read(window: &Window) -> Result<Self> {
        let path = window.path();
        if !window.read_vec(0, SIGNATURE.len())?.starts_with(SIGNATURE) {
            return Err(corrupt(path, "it does not begin as a VHDX"));
        }
        let mut current: Option<Self> = None;
        for offset_bytes in HEADERS_AT {
            let bytes = window.read_vec(offset_bytes, HEADER_BYTES)?;
            let Some(header) = Self::parse(&bytes) else {
                continue;
            };
            if current
                .as_ref()
                .is_none_or(|other| header.sequence_number > other.sequence_number)
            {
                current = Some(header);
            }
        }
        let header =
            current.ok_or_else(|| corrupt(path, "neither of the two VHDX headers is sound"))?;
        if header.version != VERSION {
            return Err(unsupported(
                path,
                format!("VHDX version {}", header.version),
            ));
        }
        if header.log_guid.is_some() && header.log_version != 0 {
            let what = format!("VHDX log version {}", header.log_version);
            return Err(unsupported(path, what));
        }
        let end = header.log_at.checked_add(header.log_bytes);
        let is_inside = header.log_at >= HEADER_SECTION_BYTES
            && end.is_some_and(|end| end <= window.length_bytes());
        let is_aligned = header.log_at.is_multiple_of(MIB) && header.log_bytes.is_multiple_of(MIB);
        if !is_inside || !is_aligned {
            let what = format!(
                "the log of {} bytes at offset {} is not within the file of {} bytes",
                header.log_bytes,
                header.log_at,
                window.length_bytes()
            );
            return Err(corrupt(path, what));
        }
        Ok(header)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let is_sound =
            bytes.starts_with(b"head") && field32(bytes, 4) == crc32c::of_structure(bytes);
        is_sound.then(|| Self {
            sequence_number: field64(bytes, 8),
            file_write_guid: guid(bytes, 16),
            data_write_guid: guid(bytes, 32),
            log_guid: Some(guid(bytes, 48)).filter(|guid| *guid != [0; 16]),
            log_version: field16(bytes, 64),
            version: field16(bytes, 66),
            log_bytes: u64::from(field32(bytes, 68)),
            log_at: field64(bytes, 72),
        })
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk::<N>());
    field.copied().unwrap_or([0; N])
}

pub(super) fn field16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

pub(super) fn field32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub(super) fn field64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

pub(super) fn guid(bytes: &[u8], at: usize) -> Guid {
    array(bytes, at)
}

/// A GUID, as it is written, in binary form: its first three groups are little endian.
pub(super) const fn binary(first: u32, second: u16, third: u16, last: [u8; 8]) -> Guid {
    let [a, b, c, d] = first.to_le_bytes();
    let [e, f] = second.to_le_bytes();
    let [g, h] = third.to_le_bytes();
    let [i, j, k, l, m, n, o, p] = last;
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

/// As it is written, with braces, in lower case.
pub(super) fn written(guid: &Guid) -> String {
    let (first, second, third) = (field32(guid, 0), field16(guid, 4), field16(guid, 6));
    let last = u64::from_be_bytes(array(guid, 8));
    format!(
        "{{{first:08x}-{second:04x}-{third:04x}-{:04x}-{:012x}}}",
        last >> 48,
        last & 0xffff_ffff_ffff
    )
}
