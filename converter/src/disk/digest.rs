//! The content digest: the same for the same guest-visible content, whatever the container.
//!
//! BLAKE3 over: the capacity in bytes (u64, little endian), then for each 64 KiB block that is not
//! all zeros, in ascending order, its index (u64, little endian) and the BLAKE3 hash of its bytes.
//! A last block that is cut by the capacity counts as if zeros followed up to 64 KiB. Hashing the
//! blocks by themselves lets all cores work; the order of the outer hash keeps the result one.
use super::BLOCK_BYTES;

pub type BlockHash = [u8; 32];

static ZEROS: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];

/// Whether all of `bytes` are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes
        .chunks(ZEROS.len())
        .all(|chunk| ZEROS.get(..chunk.len()) == Some(chunk))
}

/// The inner hash of one whole block.
pub fn hash_block(block: &[u8]) -> BlockHash {
    blake3::hash(block).into()
}

/// The outer hash; blocks are added in ascending order.
pub struct ContentDigest {
    hasher: blake3::Hasher,
}

impl ContentDigest {
    pub fn new(capacity_bytes: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&capacity_bytes.to_le_bytes());
        Self { hasher }
    }

    pub fn add(&mut self, index: u64, hash: &BlockHash) {
        self.hasher.update(&index.to_le_bytes());
        self.hasher.update(hash);
    }

    /// `blake3:<hex>`.
    pub fn finish(&self) -> String {
        format!("blake3:{}", self.hasher.finalize().to_hex())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_zeros_of_any_length() {
        let mut bytes = vec![0; 3 * BLOCK_BYTES as usize + 5];
        assert!(is_zero(&bytes));
        assert!(is_zero(&[]));
        *bytes.last_mut().unwrap() = 1;
        assert!(!is_zero(&bytes));
    }

    #[test]
    fn is_what_the_definition_says() {
        let block = [7; BLOCK_BYTES as usize];
        let mut digest = ContentDigest::new(1 << 20);
        digest.add(3, &hash_block(&block));
        let mut text = (1u64 << 20).to_le_bytes().to_vec();
        text.extend(3u64.to_le_bytes());
        text.extend(blake3::hash(&block).as_bytes());
        assert_eq!(
            digest.finish(),
            format!("blake3:{}", blake3::hash(&text).to_hex())
        );
    }
}
