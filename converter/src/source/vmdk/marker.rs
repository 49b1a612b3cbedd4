//! Markers of a compressed sparse extent (Virtual Disk Format 5.0, "Stream-Optimized Compressed
//! Sparse Extents"): what follows at an offset of the stream, in the order of its writing.
use crate::disk::SECTOR_BYTES;

/// Of a marker, what has to be read: value, size, type.
pub(super) const MARKER_BYTES: usize = 16;
/// Behind a grain's value and size its stream begins.
pub(super) const GRAIN_HEAD_BYTES: u64 = 12;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marker {
    /// A compressed grain that begins at this sector of the guest.
    Grain {
        sector: u64,
        stream_bytes: u32,
    },
    /// A grain table, the grain directory or the footer.
    Structure {
        bytes: u64,
    },
    EndOfStream,
    Unknown,
}

impl Marker {
    pub fn parse(bytes: &[u8; MARKER_BYTES]) -> Self {
        let [a, b, c, d, e, f, g, h, size @ .., i, j, k, l] = *bytes;
        let value = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let stream_bytes = u32::from_le_bytes(size);
        match (stream_bytes, u32::from_le_bytes([i, j, k, l])) {
            (1.., _) => Self::Grain {
                sector: value,
                stream_bytes,
            },
            (0, 0) if value == 0 => Self::EndOfStream,
            (0, 1..=3) => Self::Structure {
                bytes: value.saturating_mul(SECTOR_BYTES),
            },
            _ => Self::Unknown,
        }
    }

    /// Where the next marker is, if this one is at `offset_bytes`.
    pub fn next_offset(&self, offset_bytes: u64) -> u64 {
        let length_bytes = match self {
            Self::Grain { stream_bytes, .. } => GRAIN_HEAD_BYTES + u64::from(*stream_bytes),
            Self::Structure { bytes } => bytes.saturating_add(SECTOR_BYTES),
            Self::EndOfStream | Self::Unknown => SECTOR_BYTES,
        };
        let end = offset_bytes.saturating_add(length_bytes);
        end.checked_next_multiple_of(SECTOR_BYTES).unwrap_or(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows() {
        let marker = |value: u64, size: u32, kind: u32| {
            let mut bytes = value.to_le_bytes().to_vec();
            bytes.extend([size.to_le_bytes(), kind.to_le_bytes()].concat());
            Marker::parse(&bytes.try_into().unwrap())
        };
        // A grain's stream begins where the type of others is.
        let grain = marker(128, 500, 0xdead);
        let expected = Marker::Grain {
            sector: 128,
            stream_bytes: 500,
        };
        assert_eq!(grain, expected);
        assert_eq!(grain.next_offset(1024), 1024 + 512);
        assert_eq!(marker(128, 501, 0).next_offset(1024), 1024 + 1024);
        let table = marker(4, 0, 1);
        assert_eq!(table, Marker::Structure { bytes: 2048 });
        assert_eq!(table.next_offset(512), 512 + 512 + 2048);
        assert_eq!(marker(1, 0, 3), Marker::Structure { bytes: 512 });
        assert_eq!(marker(0, 0, 0), Marker::EndOfStream);
        assert_eq!(marker(1, 0, 0), Marker::Unknown);
        assert_eq!(marker(1, 0, 4), Marker::Unknown);
        let huge = marker(u64::MAX, 0, 2);
        assert_eq!(huge.next_offset(512), u64::MAX);
    }
}
