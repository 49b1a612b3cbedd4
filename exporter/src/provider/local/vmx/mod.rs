//! The text of a `.vmx`: `key = "value"` lines as VMware's products write them, from hostile hands.
//!
//! Takes bytes, opens nothing: a file name in it is data until `Place` confines it.
pub mod hardware;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::error::{Error, ErrorKind, Result};

/// The largest `.vmx` that is read, in bytes; real ones have some KiB.
pub const MAX_BYTES: u64 = 256 * 1024;
const MAX_KEYS: usize = 16 * 1024;

/// Keys in lower case: VMware does not tell their case apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vmx(BTreeMap<String, String>);

/// What the bytes of values mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Utf8,
    Windows1252,
}

impl Vmx {
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let mut raw: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for (line, number) in bytes.split(|byte| *byte == b'\n').zip(1..) {
            let Some((key, value)) = entry(line.trim_ascii(), number)? else {
                continue;
            };
            if raw.len() >= MAX_KEYS {
                return Err(bad(format!("it has more than {MAX_KEYS} keys")));
            }
            if raw.insert(key.clone(), value).is_some() {
                return Err(bad(format!("line {number}: {key:?} stands twice")));
            }
        }
        let encoding = encoding(raw.get(".encoding").map(Vec::as_slice))?;
        let mut values = BTreeMap::new();
        for (key, bytes) in raw {
            let value = decode(bytes, encoding).ok_or_else(|| {
                bad(format!(
                    "the value of {key:?} is not in the encoding of the file"
                ))
            })?;
            values.insert(key, value);
        }
        Ok(Self(values))
    }

    /// `None` for what is absent or empty.
    pub fn get(&self, key: &str) -> Option<&str> {
        let value = self.0.get(&key.to_ascii_lowercase())?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }

    pub fn flag(&self, key: &str) -> Option<bool> {
        let value = self.get(key)?;
        Some(["true", "yes", "y", "on", "1"].contains(&value.to_ascii_lowercase().as_str()))
    }

    /// In any order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// `None` for a comment or an empty line.
fn entry(line: &[u8], number: u32) -> Result<Option<(String, Vec<u8>)>> {
    if line.is_empty() || line.starts_with(b"#") {
        return Ok(None);
    }
    if line
        .iter()
        .any(|byte| byte.is_ascii_control() && *byte != b'\t')
    {
        return Err(bad(format!("line {number} holds a control character")));
    }
    let Some(at) = line.iter().position(|byte| *byte == b'=') else {
        return Err(bad(format!("line {number} is no `key = \"value\"`")));
    };
    let (key, value) = line.split_at(at);
    let key = key.trim_ascii();
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b".:_-".contains(byte);
    if key.is_empty() || !key.iter().all(is_plain) {
        return Err(bad(format!("line {number} has no plain key")));
    }
    let value = value.get(1..).unwrap_or_default().trim_ascii();
    let value = match value.strip_prefix(b"\"") {
        None => value,
        Some(quoted) => {
            let end = quoted.iter().position(|byte| *byte == b'"');
            let end = end.ok_or_else(|| bad(format!("line {number}: a quote is not closed")))?;
            quoted.get(..end).unwrap_or_default()
        }
    };
    let key = String::from_utf8_lossy(key).to_ascii_lowercase();
    Ok(Some((key, unescape(value))))
}

/// `|22` is a quote, `|0A` a new line: a byte by its two hexadecimal digits.
fn unescape(value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail
            .get(..2)
            .and_then(|pair| std::str::from_utf8(pair).ok());
        let is_hex = |text: &&str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let byte = digits
            .filter(|_| *first == b'|')
            .filter(is_hex)
            .and_then(|text| u8::from_str_radix(text, 16).ok());
        match byte {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

fn encoding(named: Option<&[u8]>) -> Result<Encoding> {
    let name = String::from_utf8_lossy(named.unwrap_or_default()).to_ascii_lowercase();
    match name.as_str() {
        "" | "utf-8" | "utf8" | "us-ascii" => Ok(Encoding::Utf8),
        "windows-1252" | "iso-8859-1" => Ok(Encoding::Windows1252),
        _ => Err(Error::new(
            ErrorKind::Unsupported,
            format!("its encoding {name:?} is not known"),
        )
        .with_remedy("save the .vmx as UTF-8, with .encoding = \"UTF-8\"")),
    }
}

/// ISO 8859-1 but for 0x80 to 0x9f; what Windows leaves undefined there stays a control character.
fn decode(bytes: Vec<u8>, encoding: Encoding) -> Option<String> {
    const HIGH: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž',
        '\u{8f}', '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}',
        'ž', 'Ÿ',
    ];
    match encoding {
        Encoding::Utf8 => String::from_utf8(bytes).ok(),
        Encoding::Windows1252 => {
            let character = |byte: u8| {
                let high = usize::from(byte).checked_sub(0x80);
                high.and_then(|at| HIGH.get(at).copied())
                    .unwrap_or(char::from(byte))
            };
            Some(bytes.into_iter().map(character).collect())
        }
    }
}

fn bad(cause: String) -> Error {
    Error::invalid(cause)
        .with_remedy("look at the .vmx: VMware itself does not start a VM with such a line")
}
