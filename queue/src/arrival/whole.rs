//! Whether a file's structure is complete, as far as its head and tail tell, and whether somebody
//! still writes it.
//!
//! Cheap by design: a few reads per file. What passes here is still checked in full by the engine.
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::arrival::{candidate, pieces};

const SECTOR_BYTES: u64 = 512;
/// How far back the end of an .xz file is looked for behind zeros: tapes pad by whole records.
const MAX_XZ_PADDING_BYTES: u64 = 1 << 20;

/// Whether the structure of the file at `path` is complete. Formats without an end that could be
/// looked for count as complete: stillness must do.
pub fn is_complete(path: &Path) -> std::io::Result<bool> {
    let file = pieces::open(path)?;
    let size_bytes = file.metadata()?.len();
    let mut head = [0; 512];
    let Ok(()) = file.read_exact_at(&mut head, 0) else {
        // Nothing real is smaller than a sector, except a descriptor.
        return Ok(size_bytes > 0);
    };
    if head.starts_with(b"KDMV") {
        return Ok(sparse_vmdk(&file, &head, size_bytes));
    }
    if head.get(257..262) == Some(b"ustar") {
        return Ok(tar(&file, size_bytes));
    }
    let name = path.to_string_lossy().to_ascii_lowercase();
    if name.ends_with(".vhd") || name.ends_with(".avhd") {
        return Ok(tail_starts_with(&file, size_bytes, 512, b"conectix")
            || tail_starts_with(&file, size_bytes, 511, b"conectix"));
    }
    if head.starts_with(&[0xfd, b'7', b'z', b'X', b'Z', 0]) {
        return Ok(xz(&file, size_bytes));
    }
    Ok(true)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    if let Some(found) = bytes.get(at..at + 8) {
        field.copy_from_slice(found);
    }
    u64::from_le_bytes(field)
}

/// VMDK sparse extent: one whose grain directory is at the end (gdOffset, bytes 56..64) ends in an
/// end-of-stream marker of one sector; another, also a compressed one whose directory comes first
/// as qemu-img writes it, reaches at least to its overHead.
fn sparse_vmdk(file: &File, head: &[u8], size_bytes: u64) -> bool {
    const GD_AT_END: u64 = u64::MAX;
    let overhead_bytes = u64_at(head, 64).saturating_mul(SECTOR_BYTES);
    if u64_at(head, 56) != GD_AT_END {
        return size_bytes >= overhead_bytes;
    }
    read_tail(file, size_bytes, SECTOR_BYTES).is_some_and(|tail| tail.iter().all(|b| *b == 0))
}

/// POSIX tar ends in two zero blocks.
fn tar(file: &File, size_bytes: u64) -> bool {
    size_bytes.is_multiple_of(SECTOR_BYTES)
        && read_tail(file, size_bytes, 2 * SECTOR_BYTES)
            .is_some_and(|tail| tail.iter().all(|b| *b == 0))
}

/// The .xz format ends in the magic of its footer; zeros may pad it.
fn xz(file: &File, size_bytes: u64) -> bool {
    let ends = |tail_bytes: u64| {
        let tail = read_tail(file, size_bytes, tail_bytes.min(size_bytes));
        let tail = tail.as_deref().unwrap_or_default();
        let padding = tail.iter().rev().take_while(|byte| **byte == 0).count();
        let sound = tail.len().saturating_sub(padding);
        tail.get(..sound).is_some_and(|tail| tail.ends_with(b"YZ"))
    };
    ends(2) || ends(MAX_XZ_PADDING_BYTES)
}

fn read_tail(file: &File, size_bytes: u64, tail_bytes: u64) -> Option<Vec<u8>> {
    let mut tail = vec![0; usize::try_from(tail_bytes).ok()?];
    file.read_exact_at(&mut tail, size_bytes.checked_sub(tail_bytes)?)
        .ok()?;
    Some(tail)
}

fn tail_starts_with(file: &File, size_bytes: u64, tail_bytes: u64, magic: &[u8]) -> bool {
    read_tail(file, size_bytes, tail_bytes).is_some_and(|tail| tail.starts_with(magic))
}

/// Whether a process holds the file open for writing, as far as the kernel lets us ask: a read
/// lease (fcntl(2), F_SETLEASE) is granted only if nobody does. Leases need the file's owner or
/// CAP_LEASE; where they cannot be had the answer is no, and stillness must do.
pub fn is_open_for_writing(path: &Path) -> bool {
    let Ok(file) = pieces::open(path) else {
        return false;
    };
    // The lease goes with the descriptor, at once.
    try_lease(&file) == Err(nix::errno::Errno::EAGAIN)
        // NFSv4 without a delegation and CIFS without an oplock refuse every lease with EAGAIN.
        && !crate::instance::is_network_file(&file)
}

/// A writer that comes while the lease is held breaks it by a signal: SIGURG, which is ignored
/// unless it is handled, since the default, SIGIO, would end this process.
fn try_lease(file: &File) -> nix::Result<()> {
    use nix::libc::{F_RDLCK, F_SETLEASE, SIGURG, fcntl};
    // linux/fcntl.h; the libc crate does not name it for glibc.
    const F_SETSIG: i32 = 10;
    for (command, argument) in [(F_SETSIG, SIGURG), (F_SETLEASE, F_RDLCK)] {
        // SAFETY: fcntl on a descriptor that is open, with an integer argument.
        nix::errno::Errno::result(unsafe { fcntl(file.as_raw_fd(), command, argument) })?;
    }
    Ok(())
}

/// Whether the JSON file at `path` is complete: it parses.
pub fn is_complete_json(path: &Path) -> bool {
    let limit_bytes = crate::job::manifest::MAX_BYTES + 1;
    pieces::head(path, limit_bytes).is_ok_and(|bytes| {
        bytes.len() as u64 == limit_bytes || crate::job::Manifest::is_whole_json(&bytes)
    })
}

/// Whether a JSON file means to be an Artifact Manifest.
pub fn looks_like_manifest(path: &Path) -> bool {
    let name = candidate::file_name(path.to_str().unwrap_or_default());
    if crate::job::manifest::FIXED_NAMES.contains(&name) {
        return true;
    }
    let Ok(bytes) = pieces::head(path, crate::job::manifest::MAX_BYTES) else {
        return true;
    };
    match serde_json::from_slice::<serde_json::Value>(&bytes) {
        Ok(value) => value.get("manifest_version").is_some() || value.get("disks").is_some(),
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    #[test]
    fn ends_are_looked_for() {
        let top = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = top.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let mut stream = vec![0; 1024];
        stream[..4].copy_from_slice(b"KDMV");
        stream[56..64].fill(0xff); // gdOffset: at the end
        assert!(is_complete(&write("a.vmdk", &stream)).unwrap());
        stream.extend([1; 512]);
        assert!(!is_complete(&write("a.vmdk", &stream)).unwrap());
        let mut tar = vec![0; 2048];
        tar[257..262].copy_from_slice(b"ustar");
        assert!(is_complete(&write("a.ova", &tar)).unwrap());
        tar.truncate(1536);
        tar[1100] = 1;
        assert!(!is_complete(&write("a.ova", &tar)).unwrap());
        assert!(!is_complete(&write("a.vhd", &[1; 2048])).unwrap());
        let mut xz = b"\xfd7zXZ\0".to_vec();
        xz.extend([1; 1024]);
        assert!(!is_complete(&write("a.raw.xz", &xz)).unwrap());
        xz.extend(b"YZ");
        assert!(is_complete(&write("a.raw.xz", &xz)).unwrap());
        xz.extend([0; 4096]);
        assert!(is_complete(&write("a.raw.xz", &xz)).unwrap());
        xz.push(1);
        assert!(!is_complete(&write("a.raw.xz", &xz)).unwrap());
        assert!(!is_complete(&write("a.raw", b"")).unwrap());
        assert!(is_complete(&write("a.raw", &[1; 4096])).unwrap());
    }

    #[test]
    fn a_writer_is_seen() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("a.raw");
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(b"x").unwrap();
        assert!(is_open_for_writing(&path));
        std::mem::drop(file);
        assert!(!is_open_for_writing(&path));
    }

    #[test]
    fn a_writer_that_comes_meanwhile_does_no_harm() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("a.raw");
        std::fs::write(&path, "x").unwrap();
        let leased = File::open(&path).unwrap();
        try_lease(&leased).unwrap();
        let mut nonblocking = std::fs::OpenOptions::new();
        nonblocking.write(true).custom_flags(nix::libc::O_NONBLOCK);
        // Breaks the lease: with SIGIO this process would be gone.
        let refused = nonblocking.open(&path).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(nix::libc::EAGAIN));
        std::mem::drop(leased);
        nonblocking.open(&path).unwrap();
    }
}
