//! The parent that a differencing disk names: where each format keeps it, as far as a name beside
//! the disk can be made of it. Whether it is the right one, the engine checks by its identity.
//!
//! QCOW2 (qcow2.txt, "Header"), VHD 1.0 ("Dynamic Disk Header Format"), VHDX (MS-VHDX 2.6.2.6).
use std::fs::File;
use std::os::unix::fs::FileExt;

/// An embedded VMDK descriptor is no longer than this, by far.
const MAX_DESCRIPTOR_BYTES: u64 = 64 * 1024;
const SECTOR_BYTES: u64 = 512;
const MAX_ENTRIES: u64 = 2047;

/// The last part of the path that the disk names its parent by; `None` if it has no parent.
pub(super) fn parent_name(file: &File) -> Option<String> {
    last_part(&parent_path(file)?)
}

/// The path that the disk names its parent by, as its writer left it; `None` if it has no parent,
/// or is a descriptor file.
pub fn parent_path(file: &File) -> Option<String> {
    match &bytes_at::<8>(file, 0)? {
        b"conectix" => vhd(file),
        b"vhdxfile" => vhdx(file),
        head if head.starts_with(b"QFI\xfb") => qcow2(file),
        head if head.starts_with(b"KDMV") => {
            let offset_bytes = u64_le(file, 28)?.checked_mul(SECTOR_BYTES)?;
            let size_bytes = u64_le(file, 36)?.checked_mul(SECTOR_BYTES)?;
            let size_bytes = size_bytes.min(MAX_DESCRIPTOR_BYTES);
            // 0 says that there is no descriptor.
            let offset_bytes = Some(offset_bytes).filter(|offset| *offset > 0)?;
            path_in_descriptor(&String::from_utf8_lossy(&read(
                file,
                offset_bytes,
                size_bytes,
            )?))
        }
        _ => None,
    }
}

/// The name of the parent that a VMDK descriptor's text hints at.
pub(super) fn of_descriptor(text: &str) -> Option<String> {
    last_part(&path_in_descriptor(text)?)
}

/// The hint in a VMDK descriptor's text.
pub fn path_in_descriptor(text: &str) -> Option<String> {
    let mut lines = text.lines().map(str::trim_start);
    let line = lines.find_map(|line| line.strip_prefix("parentFileNameHint"))?;
    line.split('"').nth(1).map(str::to_owned)
}

/// Paths of other machines mean nothing here; what they end in does.
pub fn last_part(path: &str) -> Option<String> {
    let last = path.rsplit(['/', '\\']).next()?.trim_end_matches('\0');
    let is_name = !last.is_empty() && !last.starts_with('.') && !last.contains('\0');
    is_name.then(|| last.to_owned())
}

fn qcow2(file: &File) -> Option<String> {
    let offset = u64::from_be_bytes(bytes_at(file, 8)?);
    let size_bytes = u32::from_be_bytes(bytes_at(file, 16)?);
    if offset == 0 || size_bytes > 1023 {
        return None;
    }
    let path = String::from_utf8(read(file, offset, size_bytes.into())?).ok()?;
    // A protocol or a JSON description is no file of the queue; an absolute path leads out of it,
    // and unlike other formats' it is taken at its word.
    let is_path = !path.starts_with("json:") && !path.contains("://") && !path.starts_with('/');
    is_path.then_some(path)
}

/// A copy of the footer, then the dynamic disk header with the parent's name.
fn vhd(file: &File) -> Option<String> {
    const DIFFERENCING: u32 = 4;
    if u32::from_be_bytes(bytes_at(file, 60)?) != DIFFERENCING {
        return None;
    }
    let header = u64::from_be_bytes(bytes_at(file, 16)?);
    if &bytes_at::<8>(file, header)? != b"cxsparse" {
        return None;
    }
    let name = read(file, header.checked_add(64)?, 512)?;
    let units = name
        .chunks_exact(2)
        .filter_map(|pair| Some(u16::from_be_bytes(pair.try_into().ok()?)));
    String::from_utf16(&units.take_while(|unit| *unit != 0).collect::<Vec<_>>()).ok()
}

/// The GUIDs as they lie on the disk: the first three fields little-endian.
const METADATA_REGION: [u8; 16] = guid(0x8b7c_a206, 0x4790, 0x4b9a, 0xb8fe_575f_050f_886e);
const PARENT_LOCATOR: [u8; 16] = guid(0xa8d3_5f2d, 0xb30b, 0x454d, 0xabf7_d3d8_4834_ab0c);

const fn guid(a: u32, b: u16, c: u16, d: u64) -> [u8; 16] {
    let (a, b, c, d) = (
        a.to_le_bytes(),
        b.to_le_bytes(),
        c.to_le_bytes(),
        d.to_be_bytes(),
    );
    [
        a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6],
        d[7],
    ]
}

fn vhdx(file: &File) -> Option<String> {
    const REGION_TABLE: u64 = 192 * 1024;
    if &bytes_at::<4>(file, REGION_TABLE)? != b"regi" {
        return None;
    }
    let regions = u64::from(u32_le(file, REGION_TABLE + 8)?);
    let region = entry(file, REGION_TABLE + 16, regions, &METADATA_REGION)?;
    let metadata = u64_le(file, region + 16)?;
    if &bytes_at::<8>(file, metadata)? != b"metadata" {
        return None;
    }
    let items = u64::from(u16_le(file, metadata.checked_add(10)?)?);
    let item = entry(file, metadata.checked_add(32)?, items, &PARENT_LOCATOR)?;
    let locator = metadata.checked_add(u32_le(file, item + 16)?.into())?;
    let count = u16_le(file, locator.checked_add(18)?)?.min(64);
    let path = |number: u16| {
        let at = locator.checked_add(20 + 12 * u64::from(number))?;
        let text = |offset: u64, size: u64| {
            let from = locator.checked_add(u32_le(file, at.checked_add(offset)?)?.into())?;
            let bytes = read(file, from, u16_le(file, at.checked_add(size)?)?.into())?;
            let units = bytes
                .chunks_exact(2)
                .filter_map(|pair| Some(u16::from_le_bytes(pair.try_into().ok()?)));
            String::from_utf16(&units.collect::<Vec<_>>()).ok()
        };
        let key = text(0, 8)?;
        matches!(key.as_str(), "relative_path" | "absolute_win32_path").then(|| text(4, 10))?
    };
    (0..count).find_map(path)
}

/// Where the 32-byte entry lies that begins with this GUID.
fn entry(file: &File, table: u64, count: u64, guid: &[u8; 16]) -> Option<u64> {
    (0..count.min(MAX_ENTRIES))
        .map(|number| table.saturating_add(32 * number))
        .find(|at| bytes_at(file, *at).as_ref() == Some(guid))
        .filter(|at| *at < u64::MAX - 64)
}

fn bytes_at<const N: usize>(file: &File, offset: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

fn read(file: &File, offset: u64, size_bytes: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(size_bytes).ok()?];
    file.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

fn u16_le(file: &File, offset: u64) -> Option<u16> {
    bytes_at(file, offset).map(u16::from_le_bytes)
}

fn u32_le(file: &File, offset: u64) -> Option<u32> {
    bytes_at(file, offset).map(u32::from_le_bytes)
}

fn u64_le(file: &File, offset: u64) -> Option<u64> {
    bytes_at(file, offset).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(bytes: &mut Vec<u8>, at: usize, what: &[u8]) {
        if bytes.len() < at + what.len() {
            bytes.resize(at + what.len(), 0);
        }
        bytes[at..at + what.len()].copy_from_slice(what);
    }

    fn name_in(bytes: &[u8]) -> Option<String> {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("disk");
        std::fs::write(&path, bytes).unwrap();
        parent_name(&File::open(path).unwrap())
    }

    #[test]
    fn each_format_names_its_parent() {
        let mut qcow2 = vec![0; 512];
        put(&mut qcow2, 0, b"QFI\xfb");
        assert_eq!(name_in(&qcow2), None);
        put(&mut qcow2, 8, &300_u64.to_be_bytes());
        put(&mut qcow2, 16, &11_u32.to_be_bytes());
        put(&mut qcow2, 300, b"./dir/b.img");
        assert_eq!(name_in(&qcow2).as_deref(), Some("b.img"));
        for no_name_here in [b"json:{\"a\":1", b"/srv/base.i"] {
            put(&mut qcow2, 300, no_name_here);
            assert_eq!(name_in(&qcow2), None);
        }

        let mut vhd = vec![0; 2048];
        put(&mut vhd, 0, b"conectix");
        put(&mut vhd, 16, &512_u64.to_be_bytes());
        put(&mut vhd, 60, &4_u32.to_be_bytes());
        put(&mut vhd, 512, b"cxsparse");
        let utf16: Vec<u8> = "C:\\vm\\base.vhd"
            .encode_utf16()
            .flat_map(u16::to_be_bytes)
            .collect();
        put(&mut vhd, 576, &utf16);
        assert_eq!(name_in(&vhd).as_deref(), Some("base.vhd"));
        put(&mut vhd, 60, &3_u32.to_be_bytes());
        assert_eq!(name_in(&vhd), None);

        let mut vmdk = vec![0; 512];
        put(&mut vmdk, 0, b"KDMV");
        put(&mut vmdk, 28, &1_u64.to_le_bytes());
        put(&mut vmdk, 36, &1_u64.to_le_bytes());
        vmdk.resize(1024, 0);
        put(
            &mut vmdk,
            512,
            b"# Disk DescriptorFile\nparentFileNameHint=\"/vmfs/a.vmdk\"\n",
        );
        assert_eq!(name_in(&vmdk).as_deref(), Some("a.vmdk"));
        for size_bytes in 0..vmdk.len() {
            assert_eq!(name_in(&vmdk[..size_bytes]), None);
        }
    }

    #[test]
    fn a_vhdx_names_its_parent_in_its_locator() {
        let utf16 =
            |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
        let (region, metadata, locator) = (192 << 10, 256 << 10, (256 << 10) + 65536);
        let mut vhdx = Vec::new();
        put(&mut vhdx, 0, b"vhdxfile");
        put(&mut vhdx, region, b"regi");
        put(&mut vhdx, region + 8, &1_u32.to_le_bytes());
        put(&mut vhdx, region + 16, &METADATA_REGION);
        put(&mut vhdx, region + 32, &(metadata as u64).to_le_bytes());
        put(&mut vhdx, metadata, b"metadata");
        put(&mut vhdx, metadata + 10, &1_u16.to_le_bytes());
        put(&mut vhdx, metadata + 32, &PARENT_LOCATOR);
        put(&mut vhdx, metadata + 48, &65536_u32.to_le_bytes());
        put(&mut vhdx, locator + 18, &2_u16.to_le_bytes());
        let pairs = [("parent_linkage", "{1}"), ("relative_path", ".\\base.vhdx")];
        let mut text_at = 100;
        for (number, (key, value)) in pairs.into_iter().enumerate() {
            let (key, value) = (utf16(key), utf16(value));
            let entry = locator + 20 + 12 * number;
            put(&mut vhdx, entry, &(text_at as u32).to_le_bytes());
            put(
                &mut vhdx,
                entry + 4,
                &((text_at + key.len()) as u32).to_le_bytes(),
            );
            put(&mut vhdx, entry + 8, &(key.len() as u16).to_le_bytes());
            put(&mut vhdx, entry + 10, &(value.len() as u16).to_le_bytes());
            put(
                &mut vhdx,
                locator + text_at,
                &[key.clone(), value.clone()].concat(),
            );
            text_at += key.len() + value.len();
        }
        assert_eq!(name_in(&vhdx).as_deref(), Some("base.vhdx"));
        put(&mut vhdx, metadata, b"METADATA");
        assert_eq!(name_in(&vhdx), None);
    }
}
