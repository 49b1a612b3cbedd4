//! The text descriptor of a VMDK (Virtual Disk Format 5.0, "The Descriptor File").
//!
//! Takes bytes and opens nothing: what an extent line names is data until `Roots` has judged it.
use std::collections::BTreeMap;
use std::path::Path;

use crate::disk::{brief, corrupt, unsupported};
use crate::error::{Error, Result};

/// How a descriptor begins, apart from white space.
pub(crate) const SIGNATURE: &str = "# Disk DescriptorFile";
/// A 64 TiB disk in 2 GiB pieces has 32768; no more files than this are opened.
const MAX_EXTENTS: usize = 4096;
/// Entries of the disk database that are kept.
const MAX_DATABASE: usize = 64;
/// `parentCID` of a disk that has no parent.
const NO_PARENT: u32 = u32::MAX;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub create_type: String,
    pub extents: Vec<ExtentLine>,
    /// Changes when the content does: a child names that of its parent.
    pub content_id: Option<u32>,
    /// `None`: it stands for itself.
    pub parent: Option<Parent>,
    pub version: Option<u32>,
    pub encoding: Option<String>,
    /// The disk database: `adapterType`, `geometry.heads` …, without `ddb.` before them.
    pub database: BTreeMap<String, String>,
}

/// What a delta disk says of the disk below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parent {
    pub content_id: u32,
    pub hint: String,
}

/// `RW 4192256 SPARSE "disk-s001.vmdk"`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExtentLine {
    /// `RW`, `RDONLY`, `NOACCESS`.
    pub access: String,
    pub sectors: u64,
    pub kind: ExtentKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ExtentKind {
    Zero,
    Flat { file: String, offset_sectors: u64 },
    Sparse { file: String },
}

impl Descriptor {
    pub(crate) fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let end = bytes.iter().position(|byte| *byte == 0);
        let text =
            String::from_utf8_lossy(bytes.get(..end.unwrap_or(bytes.len())).unwrap_or(bytes));
        if !text.trim_start().starts_with(SIGNATURE) {
            return Err(corrupt(path, "the VMDK descriptor does not begin as one"));
        }
        let mut descriptor = Self {
            create_type: String::new(),
            extents: Vec::new(),
            content_id: None,
            parent: None,
            version: None,
            encoding: None,
            database: BTreeMap::new(),
        };
        let (mut parent_id, mut hint) = (NO_PARENT, String::new());
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            if is_extent(line) {
                let extent = parse_extent(number, line, path)?;
                descriptor.extents.push(extent);
            } else if let Some((key, value)) = line.split_once('=') {
                let value = value.trim().trim_matches('"');
                match key.trim().to_ascii_lowercase().as_str() {
                    "createtype" => value.clone_into(&mut descriptor.create_type),
                    "cid" => descriptor.content_id = u32::from_str_radix(value, 16).ok(),
                    "parentcid" => parent_id = content_id(value, path)?,
                    "parentfilenamehint" => value.clone_into(&mut hint),
                    "version" => descriptor.version = value.parse().ok(),
                    "encoding" => descriptor.encoding = Some(brief(value)),
                    "encryptionkeys" => return Err(unsupported(path, "an encrypted VMDK")),
                    _ => descriptor.remember(key.trim(), value),
                }
            }
        }
        if descriptor.extents.is_empty() || descriptor.extents.len() > MAX_EXTENTS {
            let count = descriptor.extents.len();
            return Err(corrupt(
                path,
                format!("the VMDK descriptor has {count} extents"),
            ));
        }
        if parent_id != NO_PARENT {
            descriptor.parent = Some(Parent {
                content_id: parent_id,
                hint,
            });
        }
        Ok(descriptor)
    }

    fn remember(&mut self, key: &str, value: &str) {
        if let Some(key) = key.strip_prefix("ddb.")
            && self.database.len() < MAX_DATABASE
        {
            self.database.insert(brief(key), brief(value));
        }
    }

    /// Cylinders, heads and sectors, if the disk database has them.
    pub(super) fn geometry(&self) -> Option<[u64; 3]> {
        let number = |key: &str| self.database.get(key)?.parse().ok();
        Some([
            number("geometry.cylinders")?,
            number("geometry.heads")?,
            number("geometry.sectors")?,
        ])
    }
}

fn content_id(text: &str, path: &Path) -> Result<u32> {
    u32::from_str_radix(text, 16).map_err(|_| {
        corrupt(
            path,
            format!("the VMDK's parentCID {text:?} cannot be read"),
        )
    })
}

fn is_extent(line: &str) -> bool {
    let access = line.split_ascii_whitespace().next().unwrap_or_default();
    matches!(access, "RW" | "RDONLY" | "NOACCESS")
}

fn parse_extent(number: usize, line: &str, path: &Path) -> Result<ExtentLine> {
    let bad = || {
        corrupt(
            path,
            format!(
                "line {number} of the VMDK descriptor, {:?}, cannot be read",
                brief(line)
            ),
        )
    };
    let (fields, quoted) = match line.split_once('"') {
        Some((fields, rest)) => (fields, Some(rest.rsplit_once('"').ok_or_else(bad)?)),
        None => (line, None),
    };
    let mut fields = fields.split_ascii_whitespace();
    let access = fields.next().ok_or_else(bad)?.to_owned();
    let sectors = fields
        .next()
        .and_then(|text| text.parse().ok())
        .ok_or_else(bad)?;
    let kind = fields.next().ok_or_else(bad)?.to_ascii_uppercase();
    let file = || quoted.map(|(file, _)| file.to_owned()).ok_or_else(bad);
    let kind = match kind.as_str() {
        "ZERO" => ExtentKind::Zero,
        "SPARSE" | "VMFSSPARSE" | "SESPARSE" => ExtentKind::Sparse { file: file()? },
        "FLAT" | "VMFS" => {
            let after = quoted.map(|(_, after)| after.trim()).unwrap_or_default();
            let offset = after.split_ascii_whitespace().next().unwrap_or("0");
            ExtentKind::Flat {
                file: file()?,
                offset_sectors: offset.parse().map_err(|_| bad())?,
            }
        }
        "VMFSRDM" | "VMFSRAW" | "PARTITIONEDDEVICE" | "FULLDEVICE" => {
            return Err(raw_device(path));
        }
        _ => {
            let what = format!("a VMDK extent of type {kind:?} (line {number})");
            return Err(unsupported(path, what));
        }
    };
    Ok(ExtentLine {
        access,
        sectors,
        kind,
    })
}

fn raw_device(path: &Path) -> Error {
    unsupported(path, "a VMDK extent on a raw device")
        .with_remedy("devices are never read; export the VM with its disk's content")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn parse(lines: &str) -> Result<Descriptor> {
        let text = format!("{SIGNATURE}\nversion=1\nparentCID=ffffffff\n{lines}\n");
        Descriptor::parse(text.as_bytes(), Path::new("x.vmdk"))
    }

    #[test]
    fn reads_extents_with_names_that_hold_spaces_and_quotes() {
        let descriptor = parse(
            "createType=\"twoGbMaxExtentFlat\"\n\
             RW 4192256 FLAT \"a b-f001.vmdk\" 63\n\
             RW 8 VMFS \"x\"y.vmdk\"\n RDONLY 2 SPARSE \"s.vmdk\"\nRW 5 ZERO\n",
        )
        .unwrap();
        assert_eq!(descriptor.create_type, "twoGbMaxExtentFlat");
        let kinds: Vec<_> = descriptor
            .extents
            .iter()
            .map(|extent| (extent.sectors, extent.kind.clone()))
            .collect();
        let flat = |file: &str, offset_sectors| ExtentKind::Flat {
            file: file.to_owned(),
            offset_sectors,
        };
        assert_eq!(
            kinds,
            [
                (4_192_256, flat("a b-f001.vmdk", 63)),
                (8, flat("x\"y.vmdk", 0)),
                (
                    2,
                    ExtentKind::Sparse {
                        file: "s.vmdk".to_owned()
                    }
                ),
                (5, ExtentKind::Zero),
            ]
        );
    }

    #[test]
    fn refuses_what_it_cannot_read() {
        let cases = [
            ("", ErrorKind::Corrupt),
            ("RW x FLAT \"a\" 0", ErrorKind::Corrupt),
            ("RW 1 FLAT a 0", ErrorKind::Corrupt),
            ("RW 1 FLAT \"a\" -1", ErrorKind::Corrupt),
            ("RW 1 FLAT \"a", ErrorKind::Corrupt),
            ("RW 1", ErrorKind::Corrupt),
            ("RW 1 VMFSRDM \"a\"", ErrorKind::Unsupported),
            ("RW 1 MYSTERY \"a\"", ErrorKind::Unsupported),
            ("parentCID=x\nRW 1 SPARSE \"a\"", ErrorKind::Corrupt),
            ("encryptionKeys=\"x\"\nRW 1 ZERO", ErrorKind::Unsupported),
        ];
        for (lines, kind) in cases {
            assert_eq!(parse(lines).unwrap_err().kind, kind, "{lines}");
        }
        let many = "RW 1 ZERO\n".repeat(MAX_EXTENTS + 1);
        assert_eq!(parse(&many).unwrap_err().kind, ErrorKind::Corrupt);
        let error = Descriptor::parse(b"KDMV", Path::new("x")).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupt);
    }
}
