//! Tells a file's format by its content and holds it against what its name or manifest says.
//!
//! Only the content chooses the reader. A disk whose first bytes look like another format is never
//! read as raw: a guest could have written them to reach other files through a backing file.
use std::fmt;
use std::path::Path;

use super::vmdk::{descriptor, header, vmfs};
use super::{Lookup, SourceDisk, qcow, raw, vhd, vhdx, vmdk};
use crate::disk::{Window, corrupt, unsupported};
use crate::error::{Error, Result};

/// What is looked at to tell the content.
const HEAD_BYTES: u64 = 4096;
const FOOTER_BYTES: u64 = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    VmdkSparse,
    VmdkDescriptor,
    VmdkCowd,
    VmdkSeSparse,
    Vhd,
    Vhdx,
    Qcow,
    Vdi,
    Tar,
    Ovf,
    Gzip,
    Xz,
    Zstd,
    /// Nothing known: a raw disk, or rubbish.
    Unknown,
}

impl Content {
    pub(super) fn of(window: &Window) -> Result<Self> {
        let length_bytes = window.length_bytes();
        if length_bytes == 0 {
            return Err(corrupt(window.path(), "the file is empty"));
        }
        let head = window.read_vec(0, HEAD_BYTES.min(length_bytes) as usize)?;
        let tail_bytes = FOOTER_BYTES.min(length_bytes);
        let tail = window.read_vec(length_bytes - tail_bytes, tail_bytes as usize)?;
        Ok(Self::sniff(&head, &tail))
    }

    fn sniff(head: &[u8], tail: &[u8]) -> Self {
        let at = |offset: usize, magic: &[u8]| {
            head.get(offset..)
                .is_some_and(|rest| rest.starts_with(magic))
        };
        let is_text = |start: &str| {
            let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
            text.trim_ascii_start().starts_with(start.as_bytes())
        };
        // Each: the format's own magic, from its specification.
        let known: [(bool, Self); 13] = [
            (at(0, &header::MAGIC), Self::VmdkSparse),
            (is_text(descriptor::SIGNATURE), Self::VmdkDescriptor),
            (at(0, &vmfs::COWD_MAGIC), Self::VmdkCowd),
            (at(0, &vmfs::SE_MAGIC), Self::VmdkSeSparse),
            (at(0, vhdx::SIGNATURE), Self::Vhdx),
            (at(0, vhd::COOKIE) || ends_with_footer(tail), Self::Vhd),
            (at(0, b"QFI\xfb"), Self::Qcow),
            (at(0x40, &0xbeda_107f_u32.to_le_bytes()), Self::Vdi),
            (at(257, b"ustar"), Self::Tar),
            (is_text("<?xml") || is_text("<Envelope"), Self::Ovf),
            (at(0, b"\x1f\x8b\x08"), Self::Gzip),
            (at(0, b"\xfd7zXZ\0"), Self::Xz),
            (at(0, b"\x28\xb5\x2f\xfd"), Self::Zstd),
        ];
        known
            .into_iter()
            .find_map(|(matches, content)| matches.then_some(content))
            .unwrap_or(Self::Unknown)
    }

    /// The family, as extensions and manifests name it.
    fn family(self) -> &'static str {
        match self {
            Self::VmdkSparse | Self::VmdkDescriptor | Self::VmdkCowd | Self::VmdkSeSparse => "vmdk",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Qcow => "qcow2",
            Self::Vdi => "vdi",
            Self::Tar => "ova",
            Self::Ovf => "ovf",
            Self::Gzip => "gz",
            Self::Xz => "xz",
            Self::Zstd => "zst",
            Self::Unknown => "raw",
        }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::VmdkSparse => "a sparse VMDK",
            Self::VmdkDescriptor => "a VMDK descriptor",
            Self::VmdkCowd => "a VMFS sparse (COWD) VMDK",
            Self::VmdkSeSparse => "an SE sparse VMDK",
            Self::Vhd => "a VHD",
            Self::Vhdx => "a VHDX",
            Self::Qcow => "a qcow2",
            Self::Vdi => "a VDI",
            Self::Tar => "a tar archive (OVA)",
            Self::Ovf => "an XML file (OVF)",
            Self::Gzip => "a gzip file",
            Self::Xz => "an xz file",
            Self::Zstd => "a zstd file",
            Self::Unknown => "of no known format",
        })
    }
}

/// What a name or a manifest says that a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Claim {
    /// A family, and who says so.
    Family { family: &'static str, by: String },
    /// A name that may hold a raw disk or any other format (`.ami`).
    Anything,
    /// Nothing: then raw data is not a disk.
    None,
}

impl Claim {
    pub(super) fn by_name(name: &str) -> Self {
        let extension = Path::new(name).extension().unwrap_or_default();
        let extension = extension.to_string_lossy().to_ascii_lowercase();
        if extension == "ami" {
            return Self::Anything;
        }
        match family(&extension) {
            Some(family) => Self::Family {
                family,
                by: format!("its name {name:?}"),
            },
            None => Self::None,
        }
    }

    /// What a manifest's `source_format` says; one that is not known is an error.
    pub(super) fn by_manifest(source_format: &str, manifest: &Path) -> Result<Self> {
        Self::by_statement("source_format", source_format, manifest)
    }

    /// What the file at `path` says in its `field` that another one is.
    pub(super) fn by_statement(field: &str, source_format: &str, path: &Path) -> Result<Self> {
        let name = source_format.to_ascii_lowercase();
        let family = family(&name)
            .filter(|family| !matches!(*family, "ova" | "ovf" | "gz" | "xz" | "zst"))
            .ok_or_else(|| {
                Error::invalid(format!(
                    "{}: {field} {source_format:?} is not known",
                    path.display()
                ))
                .with_remedy("write vmdk, vhd, vhdx, raw, qcow2 or vdi")
            })?;
        Ok(Self::Family {
            family,
            by: format!("{field} in {}", path.display()),
        })
    }

    /// An error that says both if `content` contradicts what is claimed.
    pub(super) fn check(&self, content: Content, path: &Path) -> Result<()> {
        match self {
            Self::Family { family, by } if *family != content.family() => {
                let (path, article) = (path.display(), article(family));
                Err(Error::invalid(format!(
                    "{path} should be {article} {family} by {by}, but its content is {content}"
                ))
                .with_remedy("name the file after what it is, or export it again"))
            }
            Self::None if content == Content::Unknown => Err(Error::invalid(format!(
                "{} is no disk image that this program knows",
                path.display()
            ))
            .with_remedy("a raw disk needs the extension .raw or .img")),
            _ => Ok(()),
        }
    }
}

fn family(extension: &str) -> Option<&'static str> {
    Some(match extension {
        "vmdk" => "vmdk",
        "vhd" | "avhd" | "vpc" => "vhd",
        "vhdx" | "avhdx" => "vhdx",
        "qcow2" => "qcow2",
        "vdi" => "vdi",
        "raw" | "img" => "raw",
        "ova" => "ova",
        "ovf" => "ovf",
        "gz" => "gz",
        "xz" => "xz",
        "zst" => "zst",
        _ => return None,
    })
}

/// A VHD's footer is the last sector; Virtual PC before 2004 wrote it a byte short.
fn ends_with_footer(tail: &[u8]) -> bool {
    let is_footer = |bytes: &[u8]| bytes.starts_with(vhd::COOKIE);
    is_footer(tail) || tail.get(1..).is_some_and(is_footer)
}

fn article(family: &str) -> &'static str {
    if matches!(family, "ova" | "ovf" | "xz") {
        "an"
    } else {
        "a"
    }
}

/// Opens one disk. `name` is how its owner names it; `lookup` finds the files that it names.
pub(super) fn open_disk(
    window: Window,
    name: &str,
    claim: &Claim,
    lookup: Lookup<'_>,
) -> Result<SourceDisk> {
    let content = Content::of(&window)?;
    claim.check(content, window.path())?;
    let what = match content {
        Content::VmdkSparse | Content::VmdkDescriptor => {
            let text = (content == Content::VmdkDescriptor).then(|| window.clone());
            let (image, create_type) = vmdk::open(window, lookup)?;
            let known = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            let shown: String = create_type.chars().filter(|c| known(*c)).take(40).collect();
            let mut disk = SourceDisk::new(name, format!("vmdk ({shown})"), image);
            let text_bytes = text.map_or(0, |text| text.length_bytes());
            disk.source_bytes = disk.source_bytes.saturating_add(text_bytes);
            return Ok(disk);
        }
        Content::Qcow => {
            let (image, notes) = qcow::open(window, lookup)?;
            let mut disk = SourceDisk::new(name, "qcow2".to_owned(), image);
            disk.notes = notes;
            return Ok(disk);
        }
        Content::VmdkCowd | Content::VmdkSeSparse => {
            return Err(vmdk::no_descriptor(window.path()));
        }
        Content::Vhd => {
            let (image, kind) = vhd::open(window, lookup)?;
            return Ok(SourceDisk::new(name, format!("vhd ({kind})"), image));
        }
        Content::Vhdx => {
            let (image, kind) = vhdx::open(window, lookup)?;
            return Ok(SourceDisk::new(name, format!("vhdx ({kind})"), image));
        }
        Content::Unknown => {
            let image = raw::RawImage::open(window)?;
            return Ok(SourceDisk::new(name, "raw".to_owned(), Box::new(image)));
        }
        Content::Tar | Content::Ovf => {
            return Err(Error::invalid(format!(
                "{} is {content}, where a disk is expected",
                window.path().display()
            )));
        }
        other => other,
    };
    Err(
        unsupported(window.path(), format!("the file is {what}, which"))
            .with_remedy("convert it to a sparse VMDK or a raw image first"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn tells_formats_by_their_magic() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        let mut vdi = vec![0; 512];
        vdi[0x40..0x44].copy_from_slice(&[0x7f, 0x10, 0xda, 0xbe]);
        let cases: [(&[u8], &[u8], Content); 11] = [
            (b"KDMV\x01", b"", Content::VmdkSparse),
            (b"\n# Disk DescriptorFile\n", b"", Content::VmdkDescriptor),
            (b"COWD", b"", Content::VmdkCowd),
            (b"\xbe\xba\xfe\xca\0\0\0\0", b"", Content::VmdkSeSparse),
            (b"\0\0", b"conectix", Content::Vhd),
            (b"QFI\xfb", b"", Content::Qcow),
            (&vdi, b"", Content::Vdi),
            (&tar, b"", Content::Tar),
            (b"\xef\xbb\xbf<?xml version", b"", Content::Ovf),
            (b"\x1f\x8b\x08", b"", Content::Gzip),
            (b"", b"", Content::Unknown),
        ];
        for (head, tail, content) in cases {
            assert_eq!(Content::sniff(head, tail), content);
        }
    }

    #[test]
    fn a_contradiction_says_both() {
        let path = Path::new("vm.img");
        let error = Claim::by_name("vm.img")
            .check(Content::Qcow, path)
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        let text = error.to_string();
        assert!(text.contains("raw") && text.contains("qcow2"), "{text}");
        assert!(
            Claim::by_name("vm.img")
                .check(Content::Unknown, path)
                .is_ok()
        );
        assert!(
            Claim::by_name("vm.ami")
                .check(Content::Unknown, path)
                .is_ok()
        );
        assert!(
            Claim::by_name("vm.ami")
                .check(Content::VmdkSparse, path)
                .is_ok()
        );
        assert!(
            Claim::by_name("vm.dat")
                .check(Content::Unknown, path)
                .is_err()
        );
        assert!(
            Claim::by_name("vm.dat")
                .check(Content::VmdkSparse, path)
                .is_ok()
        );
        assert!(
            Claim::by_name("VM.VMDK")
                .check(Content::Unknown, path)
                .is_err()
        );
        let manifest = Path::new("manifest.json");
        assert!(Claim::by_manifest("exe", manifest).is_err());
        let raw = Claim::by_manifest("RAW", manifest).unwrap();
        assert!(raw.check(Content::Unknown, Path::new("disk.bin")).is_ok());
    }
}
