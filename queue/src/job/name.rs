//! `VmName`: a VM's name as data, and its one encoding as a file name.
//!
//! Letters, digits, `.`, `_`, `-` and space stay; every other byte, and leading dots, become `%XX`.
//! At most 200 bytes: a longer name keeps its beginning and ends in `~` and eight hex digits of its
//! BLAKE3, so that two long names stay two. No name leaves its directory.
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The longest encoded name, in bytes: with `-disk12.qcow2` or `.error.json` it is in NAME_MAX.
pub const MAX_BYTES: usize = 200;

/// The name of the instance that has none: `hyper2kvm.service`.
pub const DEFAULT_INSTANCE: &str = "default";
/// The export service, whose configuration lies beside those of the instances.
pub const EXPORT_SERVICE: &str = "hypervisord";

/// An instance's name: letters, digits, `_`, `-` and inner dots, at most 64.
pub fn check_instance(name: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.bytes().all(plain) {
        return Err(Error::invalid(format!("{name:?} is not an instance name"))
            .with_remedy("use letters, digits, _, - and dots, not beginning with a dot"));
    }
    if name == EXPORT_SERVICE {
        return Err(
            Error::invalid(format!("{name} is the export service, not an instance"))
                .with_remedy("give the instance another name"),
        );
    }
    Ok(())
}

/// A VM's name in its encoded form, safe as one path component.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

/// What was encoded before, whoever wrote it down.
impl TryFrom<String> for VmName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ' ' | '%' | '~');
        if text.is_empty()
            || text.len() > MAX_BYTES
            || text.starts_with(['.', ' '])
            || !text.chars().all(plain)
        {
            return Err(Error::invalid(format!(
                "{text:?} is not an encoded VM name"
            )));
        }
        Ok(Self(text))
    }
}

impl From<VmName> for String {
    fn from(name: VmName) -> Self {
        name.0
    }
}

impl VmName {
    /// Encodes any text; fails only on an empty or blank one.
    pub fn new(text: &str) -> Result<Self> {
        if text.trim().is_empty() {
            return Err(Error::invalid("the VM's name is empty")
                .with_remedy("set source.vm_name in the manifest, or name the file"));
        }
        let mut encoded = String::with_capacity(text.len());
        for character in text.chars() {
            let leading = encoded.is_empty();
            if character.is_alphanumeric()
                || matches!(character, '_' | '-')
                || (matches!(character, '.' | ' ') && !leading)
            {
                encoded.push(character);
            } else {
                let mut bytes = [0; 4];
                for byte in character.encode_utf8(&mut bytes).bytes() {
                    encoded.push_str(&format!("%{byte:02X}"));
                }
            }
        }
        Ok(Self(shorten(encoded)))
    }

    /// The name of a VM whose source has none but a file's, which may be blank.
    pub fn of_file(text: &str) -> Self {
        Self::new(text).unwrap_or_else(|_| Self("unnamed".to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn shorten(mut encoded: String) -> String {
    if encoded.len() <= MAX_BYTES {
        return encoded;
    }
    let hash = blake3::hash(encoded.as_bytes()).to_hex();
    let mut keep = MAX_BYTES - 9;
    while !encoded.is_char_boundary(keep) {
        keep -= 1;
    }
    encoded.truncate(keep);
    encoded.push('~');
    encoded.push_str(hash.get(..8).unwrap_or_default());
    encoded
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_what_could_leave_the_directory() {
        for (text, encoded) in [
            ("web-01", "web-01"),
            ("Domain Controller 2.0", "Domain Controller 2.0"),
            ("../../etc/x", "%2E.%2F..%2Fetc%2Fx"),
            (".hidden", "%2Ehidden"),
            ("..", "%2E."),
            (" x", "%20x"),
            ("a%b", "a%25b"),
            ("a\0b\n", "a%00b%0A"),
            ("größe", "größe"),
            ("a~b", "a%7Eb"),
        ] {
            assert_eq!(VmName::new(text).unwrap().as_str(), encoded);
        }
        assert!(VmName::new("  ").is_err());
        let long = VmName::new(&"é".repeat(300)).unwrap();
        assert!(long.as_str().len() <= MAX_BYTES);
        assert_ne!(long, VmName::new(&"é".repeat(301)).unwrap());
    }

    #[test]
    fn only_encoded_names_are_read_back() {
        for bad in ["", "..", "../x", "a/b", ".x", " x", "a\\u0000"] {
            assert!(
                serde_json::from_str::<VmName>(&format!("\"{bad}\"")).is_err(),
                "{bad}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn every_name_is_one_safe_component(text in ".*") {
            if let Ok(name) = VmName::new(&text) {
                let path = std::path::Path::new(name.as_str());
                assert_eq!(path.components().count(), 1);
                assert_eq!(path.file_name().unwrap(), name.as_str());
                assert!(!name.as_str().starts_with('.') && name.as_str().len() <= MAX_BYTES);
                let told = serde_json::to_string(&name).unwrap();
                assert_eq!(serde_json::from_str::<VmName>(&told).unwrap(), name);
            }
        }
    }
}
