//! Copies a file with its holes while computing its checksum; never modifies the source.
//!
//! Data goes over by copy_file_range(2), which shares blocks where the file system can; holes are
//! found by SEEK_DATA and neither read nor written.
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::copy_file_range;
use nix::unistd::{Whence, lseek};

use super::{Algorithm, Hasher, MODE, Monitor, cancelled};
use crate::error::{Error, Result};

const CHUNK_BYTES: usize = 4 * 1024 * 1024;
/// Copies `source`, opened from `from`, to a new file at `to`. With an algorithm, returns the
/// checksum of the content, holes included.
pub fn copy(
    source: &File,
    from: &Path,
    to: &Path,
    algorithm: Option<Algorithm>,
    monitor: &dyn Monitor,
) -> Result<Option<String>> {
    let before = source
        .metadata()
        .map_err(|error| Error::io("stat", from, error))?;
    let target = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(to)
        .map_err(|error| Error::io("create", to, error))?;
    // Whatever the umask says: a copy that the converter cannot read is none.
    target
        .set_permissions(std::fs::Permissions::from_mode(MODE))
        .map_err(|error| Error::io("set the mode of", to, error))?;
    let mut copy = Copy {
        source,
        from,
        target: &target,
        to,
        hasher: algorithm.map(Hasher::new),
        buffer: vec![0; CHUNK_BYTES],
        in_kernel: true,
        monitor,
    };
    copy.run(before.len())?;
    let checksum = copy.hasher.take().map(Hasher::finish);
    target
        .set_len(before.len())
        .map_err(|error| Error::io("set the length of", to, error))?;
    let after = source
        .metadata()
        .map_err(|error| Error::io("stat", from, error))?;
    if (after.len(), after.modified().ok()) != (before.len(), before.modified().ok()) {
        return Err(
            Error::invalid(format!("{} changed while it was copied", from.display()))
                .with_remedy("power the VM off, or wait until the file is complete"),
        );
    }
    Ok(checksum)
}

struct Copy<'a> {
    source: &'a File,
    from: &'a Path,
    target: &'a File,
    to: &'a Path,
    hasher: Option<Hasher>,
    buffer: Vec<u8>,
    /// Until copy_file_range(2) turns out not to work between these two.
    in_kernel: bool,
    monitor: &'a dyn Monitor,
}

impl Copy<'_> {
    fn run(&mut self, size_bytes: u64) -> Result<()> {
        let mut offset = 0;
        while offset < size_bytes {
            let data = self.seek_data(offset, size_bytes)?;
            self.pass_hole(data.saturating_sub(offset))?;
            if data >= size_bytes {
                break;
            }
            let end = self.seek_hole(data, size_bytes)?;
            self.pass_data(data, end)?;
            offset = end;
        }
        Ok(())
    }

    fn seek_data(&self, offset: u64, size_bytes: u64) -> Result<u64> {
        // A file system without SEEK_DATA: everything is data.
        self.seek(offset, size_bytes, Whence::SeekData, offset)
    }

    fn seek_hole(&self, offset: u64, size_bytes: u64) -> Result<u64> {
        let hole = self.seek(offset, size_bytes, Whence::SeekHole, size_bytes)?;
        // The data may have become a hole just now; go on all the same.
        Ok(hole.max(offset.saturating_add(1)).min(size_bytes))
    }

    /// The next data or hole at or after `offset`, at most the file's end.
    fn seek(&self, offset: u64, size_bytes: u64, whence: Whence, unknown: u64) -> Result<u64> {
        let at = i64::try_from(offset).unwrap_or(i64::MAX);
        let found = match lseek(self.source, at, whence) {
            Ok(found) => u64::try_from(found).unwrap_or(size_bytes),
            Err(Errno::ENXIO) => size_bytes,
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => unknown,
            Err(errno) => return Err(Error::io("seek in", self.from, errno.into())),
        };
        Ok(found.clamp(offset, size_bytes))
    }

    fn pass_hole(&mut self, mut length: u64) -> Result<()> {
        if self.hasher.is_none() {
            self.monitor.advance(length);
            return Ok(());
        }
        self.buffer.fill(0);
        while length > 0 {
            self.check()?;
            let step = length.min(CHUNK_BYTES as u64);
            if let (Some(hasher), Some(zeros)) =
                (&mut self.hasher, self.buffer.get(..step as usize))
            {
                hasher.update(zeros);
            }
            self.monitor.advance(step);
            length -= step;
        }
        Ok(())
    }

    fn pass_data(&mut self, mut offset: u64, end: u64) -> Result<()> {
        while offset < end {
            self.check()?;
            let step = (end - offset).min(CHUNK_BYTES as u64) as usize;
            let copied = self.in_kernel && self.copy_in_kernel(offset, step)?;
            if self.hasher.is_some() || !copied {
                let chunk = self.buffer.get_mut(..step).unwrap_or_default();
                self.source
                    .read_exact_at(chunk, offset)
                    .map_err(|error| Error::io("read", self.from, error))?;
                if let Some(hasher) = &mut self.hasher {
                    hasher.update(chunk);
                }
                if !copied {
                    self.target
                        .write_all_at(chunk, offset)
                        .map_err(|error| Error::io("write", self.to, error))?;
                }
            }
            self.monitor.advance(step as u64);
            offset += step as u64;
        }
        Ok(())
    }

    /// Whether all of it went over; `false` where this pair of files cannot.
    fn copy_in_kernel(&mut self, offset: u64, length: usize) -> Result<bool> {
        let start = i64::try_from(offset).unwrap_or(i64::MAX);
        let (mut from, mut to) = (start, start);
        let mut left = length;
        while left > 0 {
            match copy_file_range(
                self.source,
                Some(&mut from),
                self.target,
                Some(&mut to),
                left,
            ) {
                Ok(0) => {
                    self.in_kernel = false;
                    return Ok(false);
                }
                Ok(copied) => left = left.saturating_sub(copied),
                Err(Errno::EINTR) => {}
                Err(errno @ (Errno::ENOSPC | Errno::EDQUOT | Errno::EIO)) => {
                    return Err(Error::io("write", self.to, errno.into()));
                }
                Err(_) => {
                    self.in_kernel = false;
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn check(&self) -> Result<()> {
        if self.monitor.is_cancelled() {
            return Err(cancelled());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Counter;
    use super::*;
    use crate::error::ErrorKind;
    use std::os::unix::fs::MetadataExt;
    use std::sync::atomic::Ordering;

    #[test]
    fn copies_data_and_holes_and_hashes_both() {
        let place = tempfile::tempdir().unwrap();
        let from = place.path().join("a.raw");
        let file = File::create(&from).unwrap();
        file.set_len((64 << 20) + 7).unwrap();
        file.write_all_at(b"first", 0).unwrap();
        file.write_all_at(&vec![7; 5 << 20], 20 << 20).unwrap();
        file.write_all_at(b"last", (64 << 20) + 3).unwrap();
        let content = std::fs::read(&from).unwrap();
        let source = File::open(&from).unwrap();
        let blake3 = format!("blake3:{}", blake3::hash(&content).to_hex());
        for (name, algorithm, checksum) in [
            ("none", None, None),
            ("blake3", Some(Algorithm::Blake3), Some(blake3)),
        ] {
            let to = place.path().join(name);
            let counter = Counter::default();
            assert_eq!(
                copy(&source, &from, &to, algorithm, &counter).unwrap(),
                checksum
            );
            assert_eq!(std::fs::read(&to).unwrap(), content);
            let metadata = std::fs::metadata(&to).unwrap();
            assert!(
                metadata.blocks() * 512 < 32 << 20,
                "{} blocks",
                metadata.blocks()
            );
            assert_eq!(metadata.mode() & 0o777, MODE);
            assert_eq!(counter.bytes.load(Ordering::Relaxed), content.len() as u64);
        }
        let taken = place.path().join("none");
        assert!(copy(&source, &from, &taken, None, &Counter::default()).is_err());
    }

    #[test]
    fn known_checksum_and_empty_file() {
        let place = tempfile::tempdir().unwrap();
        let from = place.path().join("empty");
        std::fs::write(&from, "").unwrap();
        let to = place.path().join("copy");
        let source = File::open(&from).unwrap();
        let sum = copy(
            &source,
            &from,
            &to,
            Some(Algorithm::Sha256),
            &Counter::default(),
        )
        .unwrap();
        assert_eq!(
            sum.unwrap(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    #[test]
    fn stops_when_asked() {
        let place = tempfile::tempdir().unwrap();
        let from = place.path().join("a");
        std::fs::write(&from, vec![1; 9 << 20]).unwrap();
        let counter = Counter {
            cancel_at: Some(1),
            ..Counter::default()
        };
        let source = File::open(&from).unwrap();
        let error = copy(&source, &from, &place.path().join("b"), None, &counter).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Cancelled);
    }
}
