//! CRC-32C (Castagnoli), with which every structure of a VHDX is summed; a few KiB at a time.

/// The reversed polynomial 0x1edc6f41 (RFC 3720, 12.1).
const POLYNOMIAL: u32 = 0x82f6_3b78;
static TABLE: [u32; 256] = table();

#[allow(clippy::indexing_slicing)] // evaluated by the compiler, where a miss is an error
const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u32;
        let mut bit = 0;
        while bit < 8 {
            let mask = (value & 1).wrapping_neg();
            value = (value >> 1) ^ (POLYNOMIAL & mask);
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
}

fn update(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |crc, byte| {
        let index = (crc as u8 ^ byte) as usize;
        (crc >> 8) ^ TABLE.get(index).copied().unwrap_or_default()
    })
}

/// The sum of a structure, in which the four bytes from 4 on hold the sum and count as zeros.
pub(super) fn of_structure(bytes: &[u8]) -> u32 {
    let (front, rest) = bytes.split_at_checked(4).unwrap_or((bytes, &[]));
    let crc = update(update(!0, front), &[0; 4]);
    !update(crc, rest.get(4..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_the_sum_of_the_standard() {
        assert_eq!(!update(!0, b"123456789"), 0xe306_9283);
        assert_eq!(!update(!0, &[0; 32]), 0x8a91_36aa);
        assert_eq!(of_structure(&[0xff; 8]), {
            !update(!0, &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0])
        });
    }
}
