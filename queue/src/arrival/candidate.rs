//! Which names in the queue directory are looked at, and what their first bytes say they are.
use std::path::Path;

/// What a name promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Manifest,
    Ovf,
    Disk,
}

const DISKS: [&str; 11] = [
    "vmdk", "ova", "vhd", "avhd", "vhdx", "avhdx", "raw", "img", "ami", "qcow2", "vdi",
];
const WRAPPERS: [&str; 3] = ["gz", "xz", "zst"];
const UNFINISHED: [&str; 4] = [".part", ".tmp", ".filepart", ".crdownload"];

/// Whether the name is never looked at: hidden, marked unfinished by whoever writes it, or the file
/// system's own.
pub fn is_ignored(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    name.starts_with('.')
        || name == "lost+found"
        || UNFINISHED.iter().any(|ending| lower.ends_with(ending))
}

/// What a name promises by its extension; `None` for a name that is no drop.
pub fn classify(name: &str) -> Option<Class> {
    let lower = name.to_ascii_lowercase();
    let (stem, extension) = lower.rsplit_once('.')?;
    let extension = if WRAPPERS.contains(&extension) {
        let (_, inner) = stem.rsplit_once('.')?;
        // A disk alone in a tar archive, as clouds export it.
        let is_disk = DISKS.contains(&inner) || inner == "tar";
        return is_disk.then_some(Class::Disk);
    } else {
        extension
    };
    match extension {
        "json" => Some(Class::Manifest),
        "ovf" => Some(Class::Ovf),
        _ => DISKS.contains(&extension).then_some(Class::Disk),
    }
}

/// The name without its extensions: what a bare disk's VM is called.
pub fn stem(name: &str) -> &str {
    let inner = unwrapped(name);
    match inner.rsplit_once('.') {
        Some(("", _)) => name,
        Some((stem, _)) => stem,
        None => inner,
    }
}

/// The name without the extension of a wrapper.
pub fn unwrapped(name: &str) -> &str {
    let is_wrapper = |extension: &str| WRAPPERS.contains(&extension.to_ascii_lowercase().as_str());
    match name.rsplit_once('.') {
        Some((inner, extension)) if is_wrapper(extension) && !inner.is_empty() => inner,
        _ => name,
    }
}

/// What companions of one VM share: the stem without a trailing disk number.
/// `web-01-disk2.vmdk`, `web-01-1.vmdk` and `web-01.ovf` differ only in that.
pub fn family(name: &str) -> &str {
    let stem = stem(name).trim_end_matches(|c: char| c.is_ascii_digit());
    let stem = stem.strip_suffix("disk").unwrap_or(stem);
    stem.trim_end_matches(['-', '_'])
}

/// Whether a VMDK's name and first bytes say that it is an extent of somebody's descriptor:
/// `-flat`, `-sNNN`, `-fNNN`, `-delta`, `-sesparse`, `-ctk` before the extension, and no
/// descriptor of its own inside (VMware Virtual Disk Format 5.0, "The Descriptor File").
pub fn is_extent(name: &str, head: &[u8]) -> bool {
    let lower = name.to_ascii_lowercase();
    let Some(stem) = lower.strip_suffix(".vmdk") else {
        return false;
    };
    let numbered = |marker: &str| {
        stem.rsplit_once(marker).is_some_and(|(_, digits)| {
            digits.len() >= 3 && digits.bytes().all(|byte| byte.is_ascii_digit())
        })
    };
    let named = ["-flat", "-delta", "-sesparse", "-ctk"]
        .iter()
        .any(|end| stem.ends_with(end))
        || numbered("-s")
        || numbered("-f");
    named && !is_descriptor(head) && !has_embedded_descriptor(head)
}

/// Whether a disk's name and first bytes say that it is one of a VM whose OVF or manifest may still
/// come: `web-disk1.vmdk`, or a streamOptimized `web-1.vmdk`, which is how exports are written. Or
/// that it is a snapshot's, of which there may be later ones: `web-000001.vmdk`, `.avhdx`.
pub fn is_companion(name: &str, head: &[u8]) -> bool {
    let lower = stem(name).to_ascii_lowercase();
    let rest = lower.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = lower.get(rest.len()..).unwrap_or_default();
    let separated = |rest: &str| rest.len() > 1 && rest.ends_with(['-', '_', '.', ' ']);
    if [".avhd", ".avhdx"]
        .iter()
        .any(|end| name.to_ascii_lowercase().ends_with(end))
    {
        return true;
    }
    if number.is_empty() {
        return false;
    }
    if number.len() == 6 && rest.ends_with('-') && name.to_ascii_lowercase().ends_with(".vmdk") {
        return true;
    }
    if rest
        .trim_end_matches(['-', '_'])
        .strip_suffix("disk")
        .is_some_and(separated)
    {
        return true;
    }
    separated(rest) && number.len() <= 2 && !number.starts_with('0') && is_stream_optimized(head)
}

/// Whether the bytes are a sparse extent's header whose flags (bytes 8..12) say that its grains
/// are compressed.
fn is_stream_optimized(head: &[u8]) -> bool {
    const COMPRESSED: u32 = 1 << 16;
    let flags = head.get(8..12).and_then(|field| field.try_into().ok());
    head.starts_with(b"KDMV")
        && flags.is_some_and(|flags| u32::from_le_bytes(flags) & COMPRESSED != 0)
}

/// How much of a file's beginning `is_extent` looks at.
pub const HEAD_BYTES: u64 = 1024;

/// Whether the bytes begin a VMDK descriptor file.
pub fn is_descriptor(head: &[u8]) -> bool {
    const MARK: &[u8] = b"# disk descriptorfile";
    head.get(..MARK.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(MARK))
}

/// Whether the bytes are a sparse extent header with a descriptor where its descriptorOffset
/// (bytes 28..36, in sectors) says. qemu-img sets it in the extents of a split disk as well, and
/// leaves the place empty.
fn has_embedded_descriptor(head: &[u8]) -> bool {
    let Some(field) = head.get(28..36).and_then(|field| field.try_into().ok()) else {
        return false;
    };
    let sector = u64::from_le_bytes(field);
    let offset = usize::try_from(sector.saturating_mul(512)).unwrap_or(usize::MAX);
    let descriptor = head.get(offset..).filter(|rest| !rest.is_empty());
    // Beyond what was read there may well be one.
    head.starts_with(b"KDMV") && sector != 0 && descriptor.is_none_or(is_descriptor)
}

/// The last component of a path in text form.
pub fn file_name(path: &str) -> &str {
    Path::new(path)
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_select_candidates() {
        for (name, class) in [
            ("vm.vmdk", Some(Class::Disk)),
            ("VM.OVA", Some(Class::Disk)),
            ("a.raw.xz", Some(Class::Disk)),
            ("a.tar.gz", Some(Class::Disk)),
            ("a.tar", None),
            ("a.json.gz", None),
            ("manifest.json", Some(Class::Manifest)),
            ("x.ovf", Some(Class::Ovf)),
            ("x.mf", None),
            ("README", None),
        ] {
            assert_eq!(classify(name), class, "{name}");
        }
        for name in [
            ".x.vmdk",
            "a.vmdk.part",
            "a.TMP",
            "a.filepart",
            "a.crdownload",
        ] {
            assert!(is_ignored(name), "{name}");
        }
    }

    #[test]
    fn stems_and_families() {
        assert_eq!(stem("web-01.vmdk"), "web-01");
        assert_eq!(stem("db.2024.raw.zst"), "db.2024");
        for name in ["web-disk1.vmdk", "web-2.vmdk", "web.ovf", "web_disk10.vmdk"] {
            assert_eq!(family(name), "web", "{name}");
        }
    }

    #[test]
    fn companions_are_known_by_name_and_content() {
        let mut stream = b"KDMV".to_vec();
        stream.resize(HEAD_BYTES as usize, 0);
        assert!(!is_companion("web-1.vmdk", &stream));
        stream[10] = 1;
        for (name, is_one) in [
            ("web-disk1.vmdk", true),
            ("Web_Disk-002.vhd.gz", true),
            ("web-1.vmdk", true),
            ("web_12.vmdk", true),
            ("web-000002.vmdk", true),
            ("web_8A9F.avhdx", true),
            ("web-000002.raw", false),
            ("web-01.vmdk", false),
            ("web.vmdk", false),
            ("disk1.vmdk", false),
            ("webdisk1.vmdk", false),
            ("-1.vmdk", false),
        ] {
            assert_eq!(is_companion(name, &stream), is_one, "{name}");
        }
        assert!(!is_companion("web-1.raw", b"anything"));
    }

    #[test]
    fn extents_are_known_by_name_and_content() {
        let mut embedded = b"KDMV".to_vec();
        embedded.resize(HEAD_BYTES as usize, 0);
        assert!(is_extent("a-s001.vmdk", &embedded));
        embedded[28] = 1;
        assert!(
            is_extent("a-s001.vmdk", &embedded),
            "an offset, but nothing there"
        );
        embedded[512..533].copy_from_slice(b"# Disk DescriptorFile");
        assert!(!is_extent("a-s001.vmdk", &embedded));
        assert!(is_extent("a-flat.vmdk", &[0; 512]));
        assert!(!is_extent("a-flat.vmdk", b"# Disk DescriptorFile\n"));
        assert!(!is_extent("windows-server.vmdk", &[0; 512]));
    }
}
