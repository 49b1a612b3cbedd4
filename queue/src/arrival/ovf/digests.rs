//! The manifest of an OVF package (`.mf`): `SHA256(name)= hex`, one line per file.
//!
//! DSP0243 section 6.1. The names are data; who opens them confines them.
use std::collections::HashMap;

use crate::error::{Error, ErrorKind, Result};

/// The largest `.mf` that is read, in bytes.
pub const MAX_BYTES: usize = 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    Sha1,
    Sha256,
    Sha512,
}

impl Algorithm {
    fn from_name(name: &str) -> Option<Self> {
        match name.trim().to_ascii_uppercase().replace('-', "").as_str() {
            "SHA1" => Some(Self::Sha1),
            "SHA256" => Some(Self::Sha256),
            "SHA512" => Some(Self::Sha512),
            _ => None,
        }
    }

    fn hex_digits(self) -> usize {
        match self {
            Self::Sha1 => 40,
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberDigest {
    pub name: String,
    pub algorithm: Algorithm,
    /// Lower case.
    pub hex: String,
}

/// Reads a whole `.mf`. A line it cannot read is an error: a digest left out is a check left out.
pub fn parse_digests(bytes: &[u8]) -> Result<Vec<MemberDigest>> {
    if bytes.len() > MAX_BYTES {
        return Err(Error::invalid(format!(
            "the package's manifest (.mf) has {} bytes, more than {MAX_BYTES}",
            bytes.len()
        ))
        .with_remedy("export the VM again"));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| unreadable("is not UTF-8 text".to_owned()).with_source(error))?;
    let mut digests: Vec<MemberDigest> = Vec::new();
    let mut seen: HashMap<(String, Algorithm), String> = HashMap::new();
    for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let digest = parse_line(line).map_err(|what| {
            let number = index.saturating_add(1);
            match what {
                Bad::Algorithm(name) => Error::new(
                    ErrorKind::Unsupported,
                    format!("line {number} of the package's manifest (.mf) uses {name:?}"),
                )
                .with_remedy("export with SHA1, SHA256 or SHA512"),
                Bad::Form => unreadable(format!("cannot be read at line {number}")),
            }
        })?;
        let key = (digest.name.clone(), digest.algorithm);
        match seen.insert(key, digest.hex.clone()) {
            None => digests.push(digest),
            Some(earlier) if earlier == digest.hex => {}
            Some(_) => {
                let name = digest.name.escape_debug();
                return Err(unreadable(format!("gives two digests for \"{name}\"")));
            }
        }
    }
    Ok(digests)
}

fn unreadable(what: String) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("the package's manifest (.mf) {what}"),
    )
    .with_remedy("copy the .mf file again, or remove it to convert without this check")
}

enum Bad {
    Form,
    Algorithm(String),
}

/// The name may hold parentheses itself; the digest never does.
fn parse_line(line: &str) -> std::result::Result<MemberDigest, Bad> {
    let (algorithm, rest) = line.split_once('(').ok_or(Bad::Form)?;
    let (name, value) = rest.rsplit_once(')').ok_or(Bad::Form)?;
    let hex = value.trim_start().strip_prefix('=').ok_or(Bad::Form)?;
    let hex = hex.trim().to_ascii_lowercase();
    let plain = |text: &str| {
        !text.trim().is_empty()
            && text.len() <= 16
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b' '))
    };
    if !plain(algorithm) || name.is_empty() || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Bad::Form);
    }
    let algorithm = Algorithm::from_name(algorithm)
        .ok_or_else(|| Bad::Algorithm(algorithm.trim().to_owned()))?;
    if hex.len() != algorithm.hex_digits() {
        return Err(Bad::Form);
    }
    Ok(MemberDigest {
        name: name.to_owned(),
        algorithm,
        hex,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_forms_that_writers_use() {
        let (one, two, five) = ("a".repeat(40), "B1".repeat(32), "0".repeat(128));
        for (line, name, algorithm) in [
            (
                format!("SHA1(vm-disk1.vmdk)= {one}"),
                "vm-disk1.vmdk",
                Algorithm::Sha1,
            ),
            (format!("SHA1 (vm.ovf) = {one}"), "vm.ovf", Algorithm::Sha1),
            (
                format!("SHA256(vm (old).ovf)= {two}"),
                "vm (old).ovf",
                Algorithm::Sha256,
            ),
            (format!("sha-512(x)={five}"), "x", Algorithm::Sha512),
        ] {
            let digests = parse_digests(format!("{line}\r\n\r\n").as_bytes()).unwrap();
            assert_eq!(digests.len(), 1, "{line}");
            assert_eq!(
                (digests[0].name.as_str(), digests[0].algorithm),
                (name, algorithm)
            );
            assert_eq!(digests[0].hex, digests[0].hex.to_ascii_lowercase());
        }
        assert!(parse_digests(b"").unwrap().is_empty());
    }

    #[test]
    fn refuses_what_it_cannot_read() {
        let hex = "a".repeat(40);
        let other = "b".repeat(40);
        for (text, kind) in [
            ("garbage".to_owned(), ErrorKind::Corrupt),
            (format!("SHA1(a)= {}", "a".repeat(39)), ErrorKind::Corrupt),
            (format!("SHA256(a)= {hex}"), ErrorKind::Corrupt),
            (format!("SHA1()= {hex}"), ErrorKind::Corrupt),
            (format!("SHA1(a) {hex}"), ErrorKind::Corrupt),
            (
                format!("SHA1(a)= {hex}\nSHA1(a)= {other}"),
                ErrorKind::Corrupt,
            ),
            ("MD5(a)= 0123".to_owned(), ErrorKind::Unsupported),
        ] {
            assert_eq!(
                parse_digests(text.as_bytes()).unwrap_err().kind,
                kind,
                "{text}"
            );
        }
        assert!(parse_digests(&vec![b'\n'; MAX_BYTES + 1]).is_err());
    }
}
