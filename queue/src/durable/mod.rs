//! The only place that renames, links, locks or fsyncs: every step of the contract goes through
//! `Volume`.
//!
//! `HostVolume` is the real file system. Tests put a model with a live and a durable image in its
//! place, and fail or kill at every step. Paths are absolute; no method follows a symbolic link in
//! the last component.
mod directory;
mod host;

use std::any::Any;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use ulid::Ulid;

pub use directory::{Directory, sync_file};
pub use host::HostVolume;

use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    File,
    Directory,
    Symlink,
    /// A device, pipe or socket.
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: OsString,
    pub kind: EntryKind,
}

/// What lstat(2) tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub kind: EntryKind,
    pub size_bytes: u64,
    pub modified: SystemTime,
}

/// Held until dropped; the kernel lets go of it when its process dies.
pub type Lock = Box<dyn Any + Send + Sync>;

/// A file system with the primitives the contract needs. Nothing is durable before `sync`.
pub trait Volume: Send + Sync {
    /// Tells `each` of the directory's entries, one after the other: there may be very many. What
    /// it removes meanwhile may still be told.
    fn visit_dir(&self, dir: &Path, each: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()>;
    /// All entries at once, of a directory that is known to be small.
    fn read_dir(&self, dir: &Path) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        self.visit_dir(dir, &mut |entry| {
            entries.push(entry);
            Ok(())
        })?;
        Ok(entries)
    }
    /// `None` if nothing is there.
    fn stat(&self, path: &Path) -> Result<Option<Stat>>;
    /// The bytes of a regular file of at most `limit_bytes`; `None` if nothing is there.
    fn read(&self, path: &Path, limit_bytes: u64) -> Result<Option<Vec<u8>>>;
    fn read_link(&self, path: &Path) -> Result<Option<PathBuf>>;
    /// Creates one directory with exactly this mode; one that is there already is an error.
    fn create_dir(&self, path: &Path, mode: u32) -> Result<()>;
    /// Creates a file that must not be there yet.
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<()>;
    /// fsync(2) of a file or a directory.
    fn sync(&self, path: &Path) -> Result<()>;
    /// rename(2): takes the place of what is there, if its kind allows.
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;
    /// Renames unless `to` is taken; returns whether it did. Where the file system cannot do that
    /// in one step, looks first.
    fn rename_new(&self, from: &Path, to: &Path) -> Result<bool>;
    /// Exchanges two entries in one step; `false` where the file system cannot.
    fn exchange(&self, a: &Path, b: &Path) -> Result<bool>;
    fn symlink(&self, target: &Path, path: &Path) -> Result<()>;
    /// Removes a file or symbolic link; one that is gone already is no error.
    fn remove_file(&self, path: &Path) -> Result<()>;
    /// Removes an empty directory; one that is gone already is no error.
    fn remove_dir(&self, path: &Path) -> Result<()>;
    /// Takes the exclusive lock of the file at `path`, creating it if `create`. `None` if somebody
    /// else holds it or the file is gone.
    fn lock(&self, path: &Path, create: bool) -> Result<Option<Lock>>;
}

static ASIDE: AtomicU64 = AtomicU64::new(0);

/// The marker in the names of files that are written aside.
pub const ASIDE_SUFFIX: &str = ".tmp";

/// Two hosts or containers of one queue may well have the same process id.
static PROCESS: LazyLock<Ulid> = LazyLock::new(Ulid::new);

fn aside(path: &Path) -> PathBuf {
    let number = ASIDE.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = beginning(&name, 128);
    path.with_file_name(format!(".{name}.{}-{number}{ASIDE_SUFFIX}", *PROCESS))
}

/// `name.<tag>`, of which the name is cut where the file system could not hold it all.
pub fn tagged(name: &str, tag: &str) -> String {
    let room = NAME_MAX.saturating_sub(tag.len() + 1);
    format!("{}.{tag}", beginning(name, room))
}

/// The longest file name, in bytes (limits.h).
const NAME_MAX: usize = 255;

/// At most `max_bytes` of a text's beginning.
pub fn beginning(text: &str, max_bytes: usize) -> &str {
    let mut end = max_bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// The directory that holds `path`.
pub fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Puts `bytes` at `path` in one step, durably: aside, fsync, rename, fsync of the directory.
pub fn replace(volume: &dyn Volume, path: &Path, bytes: &[u8]) -> Result<()> {
    replace_from(volume, parent(path), path, bytes)
}

/// The same with the file aside in `dir`, of the same file system, where a sweep finds it.
pub fn replace_from(volume: &dyn Volume, dir: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
    let aside = aside(&dir.join(path.file_name().unwrap_or_default()));
    let done = volume
        .write(&aside, bytes)
        .and_then(|()| volume.sync(&aside))
        .and_then(|()| volume.rename(&aside, path));
    if let Err(error) = done {
        // The first error is the one to tell; what is left aside is swept at the next start.
        let _ = volume.remove_file(&aside);
        return Err(error);
    }
    volume.sync(parent(path))
}

/// Puts `bytes` at `path` in one step, not durably: for progress, which a crash may forget.
pub fn replace_volatile(volume: &dyn Volume, path: &Path, bytes: &[u8]) -> Result<()> {
    let aside = aside(path);
    let done = volume
        .write(&aside, bytes)
        .and_then(|()| volume.rename(&aside, path));
    if done.is_err() {
        let _ = volume.remove_file(&aside);
    }
    done
}

/// Makes everything beneath `dir`, and `dir` itself, durable.
pub fn sync_tree(volume: &dyn Volume, dir: &Path) -> Result<()> {
    for entry in volume.read_dir(dir)? {
        let path = dir.join(&entry.name);
        match entry.kind {
            EntryKind::Directory => sync_tree(volume, &path)?,
            EntryKind::File => volume.sync(&path)?,
            EntryKind::Symlink | EntryKind::Other => {}
        }
    }
    volume.sync(dir)
}

/// Removes a directory of our own making with all that is in it; links are removed, not followed.
pub fn remove_tree(volume: &dyn Volume, dir: &Path) -> Result<()> {
    match volume.stat(dir)? {
        None => return Ok(()),
        Some(stat) if stat.kind != EntryKind::Directory => return volume.remove_file(dir),
        Some(_) => {}
    }
    for entry in volume.read_dir(dir)? {
        let path = dir.join(&entry.name);
        match entry.kind {
            EntryKind::Directory => remove_tree(volume, &path)?,
            _ => volume.remove_file(&path)?,
        }
    }
    volume.remove_dir(dir)
}

/// Creates `dir` with this mode if it is not there; `true` if it was created. Its name is durable
/// in either case: whoever created it may have died before it was.
pub fn ensure_dir(volume: &dyn Volume, dir: &Path, mode: u32) -> Result<bool> {
    match volume.stat(dir)? {
        Some(stat) if stat.kind == EntryKind::Directory => {
            volume.sync(parent(dir))?;
            return Ok(false);
        }
        Some(_) => {
            return Err(
                Error::invalid(format!("{} is not a directory", dir.display()))
                    .with_remedy("move away what stands in its place"),
            );
        }
        None => {}
    }
    if let Err(error) = volume.create_dir(dir, mode) {
        // Another process was quicker.
        if error.os_error() != Some(nix::libc::EEXIST) {
            return Err(error);
        }
    }
    volume.sync(parent(dir))?;
    Ok(true)
}

/// Moves what is at `from` into the directory `into` under `name`, or under `name.<tag>` if that is
/// taken. Not durable until both directories are synced. `None` if `from` is gone.
pub fn move_into(
    volume: &dyn Volume,
    from: &Path,
    into: &Path,
    name: &str,
    tag: &str,
) -> Result<Option<PathBuf>> {
    if volume.stat(from)?.is_none() {
        return Ok(None);
    }
    for candidate in [name.to_owned(), tagged(name, tag)] {
        let to = into.join(candidate);
        if volume.rename_new(from, &to)? {
            return Ok(Some(to));
        }
    }
    Err(
        Error::invalid(format!("{} is taken twice over", into.join(name).display()))
            .with_remedy("move the older entries away"),
    )
}
