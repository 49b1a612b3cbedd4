//! Quantities with units, as DSP0004 annex C ("programmatic units") and older writers put them.
//!
//! `byte * 2^30`, `byte * 1024`, `MegaBytes`; every product is checked for overflow.

/// How many bytes one `unit` has; `None` if it is not a unit of bytes or does not fit.
pub fn bytes_per_unit(unit: &str) -> Option<u64> {
    let mut factors = unit.split('*').map(str::trim);
    let mut bytes = word(factors.next()?)?;
    for factor in factors {
        let value = match factor.split_once('^') {
            Some((base, exponent)) => number(base)?.checked_pow(exponent.trim().parse().ok()?)?,
            None => number(factor)?,
        };
        bytes = bytes.checked_mul(value)?;
    }
    (bytes > 0).then_some(bytes)
}

/// `quantity` of `unit` in bytes.
pub fn to_bytes(quantity: u64, unit: &str) -> Option<u64> {
    quantity.checked_mul(bytes_per_unit(unit)?)
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

fn word(text: &str) -> Option<u64> {
    let power = match text.to_ascii_lowercase().as_str() {
        "byte" | "bytes" | "b" => 0,
        "kilobyte" | "kilobytes" | "kb" | "kib" => 1,
        "megabyte" | "megabytes" | "mb" | "mib" => 2,
        "gigabyte" | "gigabytes" | "gb" | "gib" => 3,
        "terabyte" | "terabytes" | "tb" | "tib" => 4,
        _ => return None,
    };
    1024_u64.checked_pow(power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_units_and_refuses_overflow() {
        for (quantity, unit, bytes) in [
            (16, "byte * 2^30", Some(16 << 30)),
            (16, "byte*2^30", Some(16 << 30)),
            (8, "bytes * 2^20", Some(8 << 20)),
            (5, "byte * 10^9", Some(5_000_000_000)),
            (2, "byte * 1024 * 1024", Some(2 << 20)),
            (4096, "MegaBytes", Some(4 << 30)),
            (1, "GB", Some(1 << 30)),
            (7, "byte", Some(7)),
            (1, "byte * 2^64", None),
            (2, "byte * 2^63", None),
            (1, "byte * 0", None),
            (1, "byte * 2^-1", None),
            (1, "hertz * 10^6", None),
            (1, "", None),
        ] {
            assert_eq!(to_bytes(quantity, unit), bytes, "{quantity} {unit}");
        }
    }
}
