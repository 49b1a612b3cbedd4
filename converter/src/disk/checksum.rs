//! What a manifest or a `.mf` says that a file hashes to, and the check of it.
use sha1::Digest;

use super::{Window, corrupt};
use crate::error::Result;

const CHUNK_BYTES: u64 = 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Sha1,
    Sha256,
    Sha512,
    Blake3,
}

#[derive(Debug, Clone)]
pub struct Checksum {
    pub window: Window,
    pub algorithm: Algorithm,
    /// Lower case.
    pub hex: String,
    /// The file that says so.
    pub stated_by: String,
}

impl Checksum {
    /// Reads the whole file; a mismatch is `corrupt`. `go_on` is asked before each MiB, and false
    /// ends it without a verdict.
    pub fn verify(&self, go_on: &dyn Fn() -> bool) -> Result<()> {
        let hex = match self.algorithm {
            Algorithm::Sha1 => self.hash::<sha1::Sha1>(go_on)?,
            Algorithm::Sha256 => self.hash::<sha2::Sha256>(go_on)?,
            Algorithm::Sha512 => self.hash::<sha2::Sha512>(go_on)?,
            Algorithm::Blake3 => {
                let mut hasher = blake3::Hasher::new();
                let whole = self.each_chunk(go_on, |bytes| {
                    hasher.update(bytes);
                })?;
                whole.then(|| hasher.finalize().to_hex().to_string())
            }
        };
        hex.map_or(Ok(()), |hex| self.check(&hex))
    }

    /// What the whole file was found to hash to; a mismatch is `corrupt`.
    pub fn check(&self, hex: &str) -> Result<()> {
        if hex == self.hex {
            return Ok(());
        }
        Err(corrupt(
            self.window.path(),
            format!(
                "the checksum is {}, but {} says {}",
                shown(hex),
                self.stated_by,
                shown(&self.hex)
            ),
        ))
    }

    fn hash<D: Digest>(&self, go_on: &dyn Fn() -> bool) -> Result<Option<String>> {
        let mut hasher = D::new();
        let whole = self.each_chunk(go_on, |bytes| hasher.update(bytes))?;
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(whole.then(|| hex(&hasher.finalize())))
    }

    /// False if it was told to stop.
    fn each_chunk(&self, go_on: &dyn Fn() -> bool, mut update: impl FnMut(&[u8])) -> Result<bool> {
        let length_bytes = self.window.length_bytes();
        let mut buffer = vec![0; CHUNK_BYTES.min(length_bytes) as usize];
        let mut offset_bytes = 0;
        while offset_bytes < length_bytes {
            if !go_on() {
                return Ok(false);
            }
            let count = CHUNK_BYTES.min(length_bytes - offset_bytes);
            buffer.truncate(count as usize);
            self.window.read_exact_at(&mut buffer, offset_bytes)?;
            update(&buffer);
            offset_bytes += count;
        }
        Ok(true)
    }
}

/// Enough of a checksum to know it again.
fn shown(hex: &str) -> String {
    match hex.get(..16) {
        Some(start) if hex.len() > 16 => format!("{start}…"),
        _ => hex.to_owned(),
    }
}
