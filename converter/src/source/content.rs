//! Tells a file's format by its content and holds it against what its name or manifest says.
//!
//! Only the content chooses the reader. A disk whose first bytes look like another format is never
//! read as raw: a guest could have written them to reach other files through a backing file.
use std::fmt;
use std::path::Path;

use queue::arrival::candidate;

use super::vmdk::{descriptor, header, vmfs};
use super::wrapper::{Opened, Unpacker, Wrapper, is_skippable};
use super::{Lookup, SourceDisk, package, qcow, raw, vhd, vhdx, vmdk};
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
    /// Compressed as a whole.
    Wrapped(Wrapper),
    /// No container, but the beginning of a disk: a partition table, a boot sector, a file system.
    Disk,
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
        let wrapped = |wrapper: Wrapper| (at(0, wrapper.magic()), Self::Wrapped(wrapper));
        let known: [(bool, Self); 15] = [
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
            wrapped(Wrapper::Gzip),
            wrapped(Wrapper::Xz),
            wrapped(Wrapper::Zstd),
            (is_skippable(head), Self::Wrapped(Wrapper::Zstd)),
            (is_disk(at), Self::Disk),
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
            Self::Wrapped(Wrapper::Gzip) => "gz",
            Self::Wrapped(Wrapper::Xz) => "xz",
            Self::Wrapped(Wrapper::Zstd) => "zst",
            Self::Disk | Self::Unknown => "raw",
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
            Self::Wrapped(Wrapper::Gzip) => "a gzip file",
            Self::Wrapped(Wrapper::Xz) => "an xz file",
            Self::Wrapped(Wrapper::Zstd) => "a zstd file",
            Self::Disk => "a raw disk",
            Self::Unknown => "of no known format",
        })
    }
}

/// What a name or a manifest says that a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Claim {
    /// A family, and who says so.
    Family { family: &'static str, by: String },
    /// A name that may hold a raw disk or any other format (`.img`, `.ami`): one that stands for
    /// itself. A guest may have written the first bytes of its raw disk, and what they name would
    /// be other people's files.
    Anything,
    /// Nothing: then raw data has to look like a disk. What it may name, as above.
    None,
}

impl Claim {
    pub(super) fn by_name(name: &str) -> Self {
        let extension = Path::new(name).extension().unwrap_or_default();
        let extension = extension.to_string_lossy().to_ascii_lowercase();
        if matches!(extension.as_str(), "ami" | "img") {
            return Self::Anything;
        }
        match family(&extension) {
            Some(family) => Self::Family {
                family,
                by: "its name".to_owned(),
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
        let name = if name == "img" { "raw" } else { name.as_str() };
        let family = family(name)
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

    pub(super) fn is_family(&self) -> bool {
        matches!(self, Self::Family { .. })
    }

    /// An error that says both if `content` contradicts what is claimed.
    pub(super) fn check(&self, content: Content, path: &Path) -> Result<()> {
        match self {
            Self::Family { family, by } if *family != content.family() => Err(Error::invalid(
                format!("{} is {content}, but {by} says {family}", path.display()),
            )
            .with_remedy("name the file after what it is, or export it again")),
            Self::None if content == Content::Unknown => Err(Error::invalid(format!(
                "{} is no disk image that this program knows",
                path.display()
            ))
            .with_remedy("a raw disk without a partition table needs the extension .raw or .img")),
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
        "raw" => "raw",
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

/// An extent holds a part of a disk: alone it is none.
fn check_whole_disk(window: &Window) -> Result<()> {
    let head_bytes = candidate::HEAD_BYTES.min(window.length_bytes());
    let head = window.read_vec(0, head_bytes as usize)?;
    let name = window.path().file_name().unwrap_or_default();
    if candidate::is_extent(&name.to_string_lossy(), &head) {
        let path = window.path().display();
        return Err(
            Error::invalid(format!("{path} is only an extent of a disk"))
                .with_remedy("name the descriptor instead: the small .vmdk beside it"),
        );
    }
    Ok(())
}

/// What raw disks begin with. `at` tells whether the bytes at an offset are these.
fn is_disk(at: impl Fn(usize, &[u8]) -> bool) -> bool {
    // An MBR or boot sector, a GPT, LVM, XFS, and ext2 to ext4.
    let known: [(usize, &[u8]); 5] = [
        (510, b"\x55\xaa"),
        (512, b"EFI PART"),
        (512, b"LABELONE"),
        (0, b"XFSB"),
        (1024 + 56, b"\x53\xef"),
    ];
    known.into_iter().any(|(offset, magic)| at(offset, magic))
}

/// Opens one disk, unpacking it first if it is compressed as a whole. `name` is how its owner names
/// it, and what it is without a `claim`; `lookup` finds the files that it names.
pub(super) fn open_disk(
    window: Window,
    name: &str,
    claim: Option<&Claim>,
    lookup: Lookup<'_>,
    unpacker: &Unpacker<'_>,
) -> Result<SourceDisk> {
    let opened = unpacker.open(window, name)?;
    let by_name = Claim::by_name(&opened.name);
    open_opened(opened, name, claim.unwrap_or(&by_name), lookup, unpacker)
}

/// Opens the disk in a file that can be read by position.
pub(super) fn open_opened(
    opened: Opened,
    name: &str,
    claim: &Claim,
    lookup: Lookup<'_>,
    unpacker: &Unpacker<'_>,
) -> Result<SourceDisk> {
    let mut disk = match opened.content {
        Content::Tar if opened.wrapper.is_some() || !claim.is_family() => {
            package::open_lone_disk(&opened.window, unpacker)?
        }
        _ => open_plain(opened.window, &opened.name, claim, lookup)?,
    };
    if let Some((wrapper, stored)) = opened.wrapper {
        disk.format = format!("{} in {wrapper}", disk.format);
        disk.source_bytes = stored.length_bytes();
        disk.wrapper = Some(wrapper.to_string());
    }
    name.clone_into(&mut disk.name);
    Ok(disk)
}

/// Opens one disk that is not compressed as a whole.
pub(super) fn open_plain(
    window: Window,
    name: &str,
    claim: &Claim,
    lookup: Lookup<'_>,
) -> Result<SourceDisk> {
    let content = Content::of(&window)?;
    check_whole_disk(&window)?;
    claim.check(content, window.path())?;
    let path = window.path().to_path_buf();
    let nothing = |reference: &str| Err(names_others(&path, content, reference));
    let lookup: Lookup<'_> = if claim.is_family() { lookup } else { &nothing };
    let disk = match content {
        Content::VmdkSparse | Content::VmdkDescriptor => {
            let text = (content == Content::VmdkDescriptor).then(|| window.clone());
            let (image, create_type) = vmdk::open(window, lookup)?;
            let format = format!("vmdk ({})", shown(&create_type));
            let mut disk = SourceDisk::new(name, format, image);
            let text_bytes = text.map_or(0, |text| text.length_bytes());
            disk.source_bytes = disk.source_bytes.saturating_add(text_bytes);
            disk
        }
        Content::Qcow => {
            let (image, notes) = qcow::open(window, lookup)?;
            let mut disk = SourceDisk::new(name, "qcow2".to_owned(), image);
            disk.notes = notes;
            disk
        }
        Content::VmdkCowd | Content::VmdkSeSparse => return Err(vmdk::no_descriptor(&path)),
        Content::Vhd => {
            let (image, kind) = vhd::open(window, lookup)?;
            SourceDisk::new(name, format!("vhd ({kind})"), image)
        }
        Content::Vhdx => {
            let (image, kind) = vhdx::open(window, lookup)?;
            SourceDisk::new(name, format!("vhdx ({kind})"), image)
        }
        Content::Disk | Content::Unknown => {
            let image = raw::RawImage::open(window)?;
            SourceDisk::new(name, "raw".to_owned(), Box::new(image))
        }
        Content::Tar | Content::Ovf => {
            let path = path.display();
            return Err(
                Error::invalid(format!("{path} is {content}, where a disk is expected"))
                    .with_remedy("name the disk itself, or give the appliance as a whole"),
            );
        }
        Content::Vdi | Content::Wrapped(_) => {
            let remedy = match content {
                Content::Vdi => "convert it to a sparse VMDK or a raw image first",
                _ => "unpack it first",
            };
            let what = format!("the file is {content}, which");
            return Err(unsupported(&path, what).with_remedy(remedy));
        }
    };
    Ok(disk)
}

/// A `createType` as far as it is a word.
pub(super) fn shown(create_type: &str) -> String {
    let known = |c: &char| c.is_ascii_alphanumeric() || *c == '_' || *c == '-';
    create_type.chars().filter(known).take(40).collect()
}

fn names_others(path: &Path, content: Content, reference: &str) -> Error {
    let path = path.display();
    Error::invalid(format!(
        "{path} is {content} that names another file, {reference:?}, but its own name does not \
         say its format"
    ))
    .with_remedy("give it the extension of its format")
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
        let mut mbr = vec![0; 512];
        mbr[510..].copy_from_slice(&[0x55, 0xaa]);
        let cases: [(&[u8], &[u8], Content); 14] = [
            (b"KDMV\x01", b"", Content::VmdkSparse),
            (b"\n# Disk DescriptorFile\n", b"", Content::VmdkDescriptor),
            (b"COWD", b"", Content::VmdkCowd),
            (b"\xbe\xba\xfe\xca\0\0\0\0", b"", Content::VmdkSeSparse),
            (b"\0\0", b"conectix", Content::Vhd),
            (b"QFI\xfb", b"", Content::Qcow),
            (&vdi, b"", Content::Vdi),
            (&tar, b"", Content::Tar),
            (b"\xef\xbb\xbf<?xml version", b"", Content::Ovf),
            (b"\x1f\x8b\x08", b"", Content::Wrapped(Wrapper::Gzip)),
            (b"\xfd7zXZ\0", b"", Content::Wrapped(Wrapper::Xz)),
            (b"\x50\x2a\x4d\x18", b"", Content::Wrapped(Wrapper::Zstd)),
            (&mbr, b"", Content::Disk),
            (b"", b"", Content::Unknown),
        ];
        for (head, tail, content) in cases {
            assert_eq!(Content::sniff(head, tail), content);
        }
    }

    #[test]
    fn a_contradiction_says_both() {
        let check = |name: &str, content| Claim::by_name(name).check(content, Path::new(name));
        let error = check("vm.raw", Content::Qcow).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        let text = error.to_string();
        assert!(text.contains("raw") && text.contains("qcow2"), "{text}");
        for (name, content, is_fine) in [
            ("vm.img", Content::Unknown, true),
            ("vm.img", Content::Vhd, true),
            ("vm.ami", Content::Unknown, true),
            ("vm.ami", Content::VmdkSparse, true),
            ("vm.dat", Content::Unknown, false),
            ("vm.dat", Content::VmdkSparse, true),
            ("vm", Content::Disk, true),
            ("vm.raw", Content::Disk, true),
            ("VM.VMDK", Content::Unknown, false),
            ("VM.VMDK", Content::Disk, false),
            ("vm.vmdk", Content::Wrapped(Wrapper::Gzip), false),
            ("vm.vmdk.gz", Content::Wrapped(Wrapper::Gzip), true),
            ("vm.vmdk.gz", Content::Wrapped(Wrapper::Xz), false),
        ] {
            assert_eq!(check(name, content).is_ok(), is_fine, "{name} {content}");
        }
        let manifest = Path::new("manifest.json");
        assert!(Claim::by_manifest("exe", manifest).is_err());
        let raw = Claim::by_manifest("RAW", manifest).unwrap();
        assert!(raw.check(Content::Unknown, Path::new("disk.bin")).is_ok());
    }
}
