//! `HostVolume`: the real file system, by plain system calls.
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};

use super::{Entry, EntryKind, Lock, Stat, Volume};
use crate::error::{Error, Result};

pub(super) const FILE_MODE: u32 = 0o640;

#[derive(Debug, Clone, Copy, Default)]
pub struct HostVolume;

impl From<fs::FileType> for EntryKind {
    fn from(kind: fs::FileType) -> Self {
        if kind.is_file() {
            Self::File
        } else if kind.is_dir() {
            Self::Directory
        } else if kind.is_symlink() {
            Self::Symlink
        } else {
            Self::Other
        }
    }
}

/// `Ok(None)` for an entry that is not there.
fn found<T>(result: io::Result<T>, doing: &str, path: &Path) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(Error::io(doing, path, error)),
    }
}

impl Volume for HostVolume {
    fn visit_dir(&self, dir: &Path, each: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        let listing = |error| Error::io("list", dir, error);
        for entry in fs::read_dir(dir).map_err(listing)? {
            let entry = entry.map_err(listing)?;
            // An entry may vanish between readdir and lstat: it is then not there.
            if let Some(kind) = found(entry.file_type(), "stat", &entry.path())? {
                let (name, kind) = (entry.file_name(), kind.into());
                each(Entry { name, kind })?;
            }
        }
        Ok(())
    }

    fn stat(&self, path: &Path) -> Result<Option<Stat>> {
        let Some(metadata) = found(fs::symlink_metadata(path), "stat", path)? else {
            return Ok(None);
        };
        Ok(Some(Stat {
            kind: metadata.file_type().into(),
            size_bytes: metadata.len(),
            modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
        }))
    }

    fn read(&self, path: &Path, limit_bytes: u64) -> Result<Option<Vec<u8>>> {
        let open = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
            .open(path);
        let Some(file) = found(open, "open", path)? else {
            return Ok(None);
        };
        let reading = |error| Error::io("read", path, error);
        let metadata = file.metadata().map_err(reading)?;
        if !metadata.is_file() {
            return Err(Error::invalid(format!(
                "{} is not a regular file",
                path.display()
            )));
        }
        let mut bytes = Vec::new();
        file.take(limit_bytes.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(reading)?;
        if bytes.len() as u64 > limit_bytes {
            return Err(Error::invalid(format!(
                "{} is larger than {limit_bytes} bytes",
                path.display()
            )));
        }
        Ok(Some(bytes))
    }

    fn read_link(&self, path: &Path) -> Result<Option<PathBuf>> {
        match fs::read_link(path) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(None),
            result => found(result, "read link", path),
        }
    }

    fn create_dir(&self, path: &Path, mode: u32) -> Result<()> {
        let create = || {
            fs::DirBuilder::new().mode(mode).create(path)?;
            // mkdir(2) heeds the umask and ignores the setgid bit.
            fs::set_permissions(path, fs::Permissions::from_mode(mode))
        };
        create().map_err(|error| Error::io("create directory", path, error))
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(FILE_MODE)
                .custom_flags(nix::libc::O_NOFOLLOW)
                .open(path)?;
            // Whatever the umask: the service's group reads what root asks for.
            file.set_permissions(fs::Permissions::from_mode(FILE_MODE))?;
            file.write_all(bytes)
        };
        write().map_err(|error| Error::io("write", path, error))
    }

    fn sync(&self, path: &Path) -> Result<()> {
        let open = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(path);
        open.and_then(|file| file.sync_all())
            .map_err(|error| Error::io("fsync", path, error))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        fs::rename(from, to).map_err(|error| Error::io("rename", from, error))
    }

    fn rename_new(&self, from: &Path, to: &Path) -> Result<bool> {
        match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => Ok(false),
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
                if self.stat(to)?.is_some() {
                    return Ok(false);
                }
                self.rename(from, to).map(|()| true)
            }
            Err(errno) => Err(Error::io("rename", from, errno.into())),
        }
    }

    fn exchange(&self, a: &Path, b: &Path) -> Result<bool> {
        match renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE) {
            Ok(()) => Ok(true),
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => Ok(false),
            Err(errno) => Err(Error::io("exchange", a, errno.into())),
        }
    }

    fn symlink(&self, target: &Path, path: &Path) -> Result<()> {
        std::os::unix::fs::symlink(target, path).map_err(|error| Error::io("link", path, error))
    }

    fn remove_file(&self, path: &Path) -> Result<()> {
        found(fs::remove_file(path), "remove", path).map(|_| ())
    }

    fn remove_dir(&self, path: &Path) -> Result<()> {
        found(fs::remove_dir(path), "remove", path).map(|_| ())
    }

    fn lock(&self, path: &Path, create: bool) -> Result<Option<Lock>> {
        let open = OpenOptions::new()
            .write(true)
            .create(create)
            .truncate(false)
            .mode(0o640)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(path);
        let Some(file) = found(open, "open", path)? else {
            return Ok(None);
        };
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) if is_at(&lock, path)? => Ok(Some(Box::new(lock))),
            // Whoever held it has removed the file: this lock guards nothing.
            Ok(_) | Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(Error::io("lock", path, errno.into())),
        }
    }
}

/// Whether `file` is still the one at `path`.
fn is_at(file: &File, path: &Path) -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let held = file
        .metadata()
        .map_err(|error| Error::io("stat", path, error))?;
    let there = found(fs::symlink_metadata(path), "stat", path)?;
    Ok(there.is_some_and(|there| (there.dev(), there.ino()) == (held.dev(), held.ino())))
}

#[cfg(test)]
mod tests {
    use super::super::{move_into, replace};
    use super::*;

    #[test]
    fn locks_exclude_and_forget_removed_files() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("lock");
        assert!(HostVolume.lock(&path, false).unwrap().is_none());
        let held = HostVolume.lock(&path, true).unwrap().unwrap();
        assert!(HostVolume.lock(&path, true).unwrap().is_none());
        drop(held);
        assert!(HostVolume.lock(&path, false).unwrap().is_some());
    }

    #[test]
    fn never_overwrites_and_never_follows() {
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| top.path().join(name);
        fs::write(at("a"), "a").unwrap();
        fs::write(at("b"), "b").unwrap();
        assert!(!HostVolume.rename_new(&at("a"), &at("b")).unwrap());
        let moved = move_into(&HostVolume, &at("a"), top.path(), "b", "job-1").unwrap();
        assert_eq!(moved, Some(at("b.job-1")));
        assert_eq!(
            move_into(&HostVolume, &at("a"), top.path(), "c", "job-1").unwrap(),
            None
        );
        std::os::unix::fs::symlink("/etc/passwd", at("link")).unwrap();
        assert!(HostVolume.read(&at("link"), 1 << 20).is_err());
        assert!(HostVolume.read(&at("b"), 0).is_err());
        assert_eq!(HostVolume.read(&at("absent"), 0).unwrap(), None);
        replace(&HostVolume, &at("b"), b"new").unwrap();
        assert_eq!(fs::read(at("b")).unwrap(), b"new");
        assert_eq!(HostVolume.read_dir(top.path()).unwrap().len(), 3);
    }
}
