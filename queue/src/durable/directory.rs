//! A directory that is held open: what is put into it arrives there wherever it was renamed to.
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::aside;
use super::host::FILE_MODE;
use crate::error::{Error, Result};

#[derive(Debug)]
pub struct Directory {
    file: File,
    /// Where it was when it was opened, for errors.
    path: PathBuf,
}

impl Directory {
    pub fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW)
            .open(path)
            .map_err(|error| Error::io("open directory", path, error))?;
        Ok(Self {
            file,
            path: path.to_path_buf(),
        })
    }

    /// Creates the file `name`, which must not be there yet.
    pub fn create(&self, name: &str) -> Result<File> {
        let flags = OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_EXCL;
        let file = self.open_file(name, flags)?;
        // Whatever the umask: the service's group reads it.
        fchmod(&file, mode()).map_err(|errno| self.failed("create", name, errno))?;
        Ok(file)
    }

    /// Opens the file `name` to append to it; `None` if it is not there.
    pub fn append(&self, name: &str) -> Result<Option<File>> {
        match self.open_file(name, OFlag::O_RDWR | OFlag::O_APPEND) {
            Err(error) if error.os_error() == Some(nix::libc::ENOENT) => Ok(None),
            file => file.map(Some),
        }
    }

    /// Puts `bytes` at `name` in one step, durably: aside, fsync, rename, fsync of the directory.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let aside = aside(Path::new(name));
        let done = self.put(&aside, name, bytes);
        if done.is_err() {
            // The first error is the one to tell.
            let _ = unlinkat(&self.file, &aside, UnlinkatFlags::NoRemoveDir);
        }
        done
    }

    fn put(&self, aside: &Path, name: &str, bytes: &[u8]) -> Result<()> {
        let failed = |error| Error::io("write", &self.path.join(name), error);
        let mut file = self.create(&aside.to_string_lossy())?;
        file.write_all(bytes).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        renameat(&self.file, aside, &self.file, name)
            .map_err(|errno| self.failed("rename", name, errno))?;
        self.file.sync_all().map_err(failed)
    }

    fn open_file(&self, name: &str, flags: OFlag) -> Result<File> {
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let opened: OwnedFd = openat(&self.file, name, flags, mode())
            .map_err(|errno| self.failed("open", name, errno))?;
        Ok(File::from(opened))
    }

    fn failed(&self, doing: &str, name: &str, errno: Errno) -> Error {
        Error::io(doing, &self.path.join(name), errno.into())
    }
}

/// Makes what was written to an open file durable.
pub fn sync_file(file: &File, path: &Path) -> Result<()> {
    file.sync_data()
        .map_err(|error| Error::io("fsync", path, error))
}

fn mode() -> Mode {
    Mode::from_bits_truncate(FILE_MODE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_found_wherever_it_was_moved() {
        let top = tempfile::tempdir().unwrap();
        let (here, there) = (top.path().join("here"), top.path().join("there"));
        std::fs::create_dir(&here).unwrap();
        let held = Directory::open(&here).unwrap();
        std::fs::rename(&here, &there).unwrap();
        held.create("a").unwrap().write_all(b"x").unwrap();
        assert!(held.create("a").is_err());
        held.append("a").unwrap().unwrap().write_all(b"y").unwrap();
        assert!(held.append("b").unwrap().is_none());
        held.replace("b", b"one").unwrap();
        held.replace("b", b"two").unwrap();
        assert_eq!(std::fs::read(there.join("a")).unwrap(), b"xy");
        assert_eq!(std::fs::read(there.join("b")).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(&there).unwrap().count(), 2);
        std::os::unix::fs::symlink("/etc/passwd", there.join("link")).unwrap();
        assert!(held.append("link").is_err());
    }
}
