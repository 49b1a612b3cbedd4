//! Holds files against the checksums that a manifest or a `.mf` states, while they are converted.
use sha1::Digest;

use crate::disk::corrupt;
use crate::error::Result;
use crate::source::{Algorithm, Checksum};

const CHUNK_BYTES: u64 = 1024 * 1024;

/// Reads the file and compares; `go_on` is asked before each MiB, and false ends it without a verdict.
pub(super) fn verify(checksum: &Checksum, go_on: &dyn Fn() -> bool) -> Result<()> {
    let hex = match checksum.algorithm {
        Algorithm::Sha1 => hash::<sha1::Sha1>(checksum, go_on)?,
        Algorithm::Sha256 => hash::<sha2::Sha256>(checksum, go_on)?,
        Algorithm::Sha512 => hash::<sha2::Sha512>(checksum, go_on)?,
        Algorithm::Blake3 => {
            let mut hasher = blake3::Hasher::new();
            let whole = each_chunk(checksum, go_on, |bytes| {
                hasher.update(bytes);
            })?;
            whole.then(|| hasher.finalize().to_hex().to_string())
        }
    };
    match hex {
        Some(hex) if hex != checksum.hex => Err(corrupt(
            checksum.window.path(),
            format!(
                "the checksum is {hex}, but {} says {}",
                checksum.stated_by, checksum.hex
            ),
        )),
        _ => Ok(()),
    }
}

fn hash<D: Digest>(checksum: &Checksum, go_on: &dyn Fn() -> bool) -> Result<Option<String>> {
    let mut hasher = D::new();
    let whole = each_chunk(checksum, go_on, |bytes| hasher.update(bytes))?;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(whole.then(|| hex(&hasher.finalize())))
}

/// False if it was told to stop.
fn each_chunk(
    checksum: &Checksum,
    go_on: &dyn Fn() -> bool,
    mut update: impl FnMut(&[u8]),
) -> Result<bool> {
    let length_bytes = checksum.window.length_bytes();
    let mut buffer = vec![0; CHUNK_BYTES.min(length_bytes) as usize];
    let mut offset_bytes = 0;
    while offset_bytes < length_bytes {
        if !go_on() {
            return Ok(false);
        }
        let count = CHUNK_BYTES.min(length_bytes - offset_bytes);
        buffer.truncate(count as usize);
        checksum.window.read_exact_at(&mut buffer, offset_bytes)?;
        update(&buffer);
        offset_bytes += count;
    }
    Ok(true)
}
