//! The end of a growing disk: the small file `<disk>.end` that its producer puts beside it, written
//! aside and renamed, once the disk is whole or will never be.
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The largest one that is read, in bytes.
pub const MAX_BYTES: u64 = 64 * 1024;
/// Of a reason that somebody else wrote.
const MOST_REASON_CHARS: usize = 512;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum End {
    Aborted {
        /// Why: one line for people.
        aborted: String,
    },
    Whole {
        /// The disk file's length.
        bytes: u64,
        /// `sha256:<hex>` or `blake3:<hex>`, of the file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        checksum: Option<String>,
    },
}

/// The name of the file that declares the end of the disk `file`.
pub fn name_of(file: &str) -> String {
    format!("{file}.end")
}

impl End {
    /// `file` is the disk that it speaks of, for errors.
    pub fn parse(bytes: &[u8], file: &str) -> Result<Self> {
        let end = serde_json::from_slice(bytes).map_err(|error| {
            Error::invalid(format!("{} cannot be read", name_of(file)))
                .with_remedy("write {\"bytes\": <length>} or {\"aborted\": \"<why>\"}")
                .with_source(error)
        })?;
        Ok(match end {
            Self::Aborted { aborted } => Self::Aborted {
                aborted: one_line(&aborted),
            },
            whole @ Self::Whole { .. } => whole,
        })
    }

    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(self).map_err(|error| {
            Error::new(crate::error::ErrorKind::Internal, "cannot write JSON").with_source(error)
        })?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

fn one_line(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let line: String = text.chars().take(MOST_REASON_CHARS).map(plain).collect();
    let line = line.trim();
    match line {
        "" => "no reason was given".to_owned(),
        line => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_one_thing_or_the_other() {
        let parse = |text: &str| End::parse(text.as_bytes(), "a.vmdk");
        let whole = End::Whole {
            bytes: 7,
            checksum: Some("blake3:00".to_owned()),
        };
        assert_eq!(End::parse(&whole.to_bytes().unwrap(), "a").unwrap(), whole);
        let aborted = parse("{\"aborted\": \" lease lost\\nrm -rf \\u001b[2J\"}").unwrap();
        let aborted_reason = "lease lost rm -rf  [2J".to_owned();
        let expected = End::Aborted {
            aborted: aborted_reason,
        };
        assert_eq!(aborted, expected);
        // Whoever says both has aborted it.
        let both = parse("{\"bytes\": 1, \"aborted\": \"\"}").unwrap();
        assert!(matches!(both, End::Aborted { .. }));
        for text in ["", "{}", "[]", "{\"bytes\": -1}", "{\"bytes\": 1"] {
            let error = parse(text).unwrap_err();
            assert!(error.context.contains("a.vmdk.end"), "{error}");
        }
    }
}
