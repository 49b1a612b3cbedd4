//! Packs an export into one OVA: a ustar archive of the descriptor, its manifest of checksums, and
//! the disks in the descriptor's order (DSP0243, 5.3).
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::machine::{Delivered, Exported};
use crate::transfer::{Algorithm, Hasher, MODE, Monitor, cancelled};

const BLOCK: usize = 512;
const CHUNK: usize = 1024 * 1024;
/// The largest number of eleven octal digits; beyond it is base 256, as all tar programs read it.
const OCTAL_MAX: u64 = 0o777_7777_7777;

/// Replaces the files of the export in `directory` by `<name>.ova`.
pub fn pack(
    directory: &Path,
    name: &str,
    exported: &Exported,
    monitor: &dyn Monitor,
) -> Result<Delivered> {
    let descriptor = exported.descriptor.as_deref().ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            "an OVA needs the OVF descriptor, and there is none",
        )
        .with_remedy("export without --format ova")
    })?;
    let file = format!("{name}.ova");
    let to = directory.join(&file);
    let out = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(&to)
        .map_err(|error| Error::io("create", &to, error))?;
    out.set_permissions(std::fs::Permissions::from_mode(MODE))
        .map_err(|error| Error::io("set the mode of", &to, error))?;
    let sizes = exported.disks.iter().map(|disk| disk.size_bytes);
    monitor.begin(&file, sizes.sum());
    let mut archive = Archive {
        out,
        to: &to,
        hasher: Hasher::new(Algorithm::Sha256),
        size_bytes: 0,
        monitor,
    };
    let manifest = manifest(directory, descriptor, exported)?;
    archive.add_file(descriptor, &directory.join(descriptor))?;
    let stem = descriptor.strip_suffix(".ovf").unwrap_or(descriptor);
    archive.add(
        &format!("{stem}.mf"),
        manifest.len() as u64,
        &mut manifest.as_bytes(),
    )?;
    for disk in &exported.disks {
        archive.add_file(&disk.file, &directory.join(&disk.file))?;
    }
    archive.write(&[0; 2 * BLOCK])?;
    let Archive {
        hasher, size_bytes, ..
    } = archive;
    let packed = exported.disks.iter().map(|disk| disk.file.as_str());
    for name in packed.chain([descriptor]) {
        let path = directory.join(name);
        std::fs::remove_file(&path).map_err(|error| Error::io("remove", &path, error))?;
    }
    Ok(Delivered {
        id: name.to_owned(),
        file,
        format: "ova".to_owned(),
        size_bytes,
        checksum: hasher.finish(),
        pieces: Vec::new(),
    })
}

/// The `.mf`: the SHA-256 of every other file.
fn manifest(directory: &Path, descriptor: &str, exported: &Exported) -> Result<String> {
    let mut sums = vec![(descriptor, sum_of(&directory.join(descriptor))?)];
    for disk in &exported.disks {
        let sum = disk.checksum.strip_prefix("sha256:").ok_or_else(|| {
            Error::new(
                ErrorKind::Internal,
                "pack an OVA without SHA-256 of its disks",
            )
        })?;
        sums.push((&disk.file, sum.to_owned()));
    }
    let line = |(name, sum): &(&str, String)| format!("SHA256({name})= {sum}\n");
    Ok(sums.iter().map(line).collect())
}

fn sum_of(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|error| Error::io("read", path, error))?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(&bytes);
    Ok(hasher.finish().replacen("sha256:", "", 1))
}

struct Archive<'a> {
    out: File,
    to: &'a Path,
    hasher: Hasher,
    size_bytes: u64,
    monitor: &'a dyn Monitor,
}

impl Archive<'_> {
    fn add_file(&mut self, name: &str, path: &Path) -> Result<()> {
        let mut file = File::open(path).map_err(|error| Error::io("open", path, error))?;
        let metadata = file
            .metadata()
            .map_err(|error| Error::io("stat", path, error))?;
        self.add(name, metadata.len(), &mut file)
    }

    fn add(&mut self, name: &str, size_bytes: u64, content: &mut dyn Read) -> Result<()> {
        self.write(&header(name, size_bytes)?)?;
        let mut buffer = vec![0; CHUNK];
        let mut left = size_bytes;
        while left > 0 {
            if self.monitor.is_cancelled() {
                return Err(cancelled());
            }
            let want = left.min(CHUNK as u64) as usize;
            let chunk = buffer.get_mut(..want).unwrap_or_default();
            content
                .read_exact(chunk)
                .map_err(|error| Error::io("read", Path::new(name), error))?;
            self.write(buffer.get(..want).unwrap_or_default())?;
            self.monitor.advance(want as u64);
            left -= want as u64;
        }
        let odd = (size_bytes % BLOCK as u64) as usize;
        if odd > 0 {
            self.write(&vec![0; BLOCK - odd])?;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let to = self.to;
        self.out
            .write_all(bytes)
            .map_err(|error| Error::io("write", to, error))?;
        self.hasher.update(bytes);
        self.size_bytes += bytes.len() as u64;
        Ok(())
    }
}

/// A ustar header (POSIX.1-1988); its name fits, or is refused.
fn header(name: &str, size_bytes: u64) -> Result<[u8; BLOCK]> {
    let mut header = [0; BLOCK];
    let mut put = |offset: usize, bytes: &[u8]| {
        let field = header.get_mut(offset..offset + bytes.len());
        field
            .into_iter()
            .for_each(|field| field.copy_from_slice(bytes));
    };
    if name.len() > 100 {
        return Err(
            Error::invalid(format!("the name {name} is too long for an OVA"))
                .with_remedy("export without --format ova"),
        );
    }
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if size_bytes <= OCTAL_MAX {
        put(124, format!("{size_bytes:011o}\0").as_bytes());
    } else {
        put(124, &[0x80, 0, 0, 0]);
        put(128, &size_bytes.to_be_bytes());
    }
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    let digits = format!("{sum:06o}\0 ");
    if let Some(field) = header.get_mut(148..156) {
        field.copy_from_slice(digits.as_bytes());
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_small_and_large_files() {
        let small = header("web.ovf", 0o1234).unwrap();
        assert_eq!(&small[..8], b"web.ovf\0");
        assert_eq!(&small[124..136], b"00000001234\0");
        assert_eq!(&small[257..265], b"ustar\x0000");
        let large = header("d", 1 << 40).unwrap();
        assert_eq!(&large[124..136], [0x80, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
        assert!(header(&"x".repeat(101), 0).is_err());
    }
}
