//! What is compressed as a whole (`.gz`, `.xz`, `.zst`, gzip members and chunks of an OVF).
//!
//! Such a stream cannot be read by position: it is unpacked into a file that has no name, whose
//! zeros are holes. It ends where space, the largest disk or a cancellation says so.
mod staged;
mod streams;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use queue::arrival::candidate;

use self::staged::Staged;
use self::streams::Stored;
pub(super) use self::streams::is_skippable;
use super::content::{Claim, Content};
use crate::disk::{Observer, Window};
use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrapper {
    Gzip,
    Xz,
    Zstd,
}

impl fmt::Display for Wrapper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        })
    }
}

/// Where sources that cannot be read by position are unpacked to, who is told of it and of the
/// waiting for those that still arrive.
#[derive(Clone, Copy)]
pub struct Unpacker<'a> {
    /// An existing directory. What is unpacked there has no name and goes with its last reader.
    pub directory: &'a Path,
    pub observer: &'a dyn Observer,
    /// How long a disk that still arrives may stand still.
    pub patience: Duration,
}

/// A file that can be read by position: as it was given, or unpacked.
pub(super) struct Opened {
    pub window: Window,
    /// Without the wrapper's extension.
    pub name: String,
    pub content: Content,
    /// How it was compressed, and the file that was.
    pub wrapper: Option<(Wrapper, Window)>,
}

impl Unpacker<'_> {
    /// Unpacks `window` if its content is compressed as a whole; `name` may not say otherwise.
    pub(super) fn open(&self, window: Window, name: &str) -> Result<Opened> {
        let content = Content::of(&window)?;
        let Content::Wrapped(wrapper) = content else {
            return Ok(Opened {
                window,
                name: name.to_owned(),
                content,
                wrapper: None,
            });
        };
        Claim::by_name(name).check(content, window.path())?;
        self.open_wrapped(window, name, wrapper)
    }

    /// The same of a file that somebody else says is compressed so.
    pub(super) fn open_wrapped(
        &self,
        stored: Window,
        name: &str,
        wrapper: Wrapper,
    ) -> Result<Opened> {
        let name = candidate::unwrapped(name);
        let window = self.unpack(std::slice::from_ref(&stored), name, Some(wrapper))?;
        let content = Content::of(&window)?;
        if let Content::Wrapped(_) = content {
            let what = format!("{} is {content} again", window.path().display());
            return Err(Error::invalid(what).with_remedy("compress it once only"));
        }
        Ok(Opened {
            window,
            name: name.to_owned(),
            content,
            wrapper: Some((wrapper, stored)),
        })
    }

    /// What the files of `stored`, one after the other, hold; without a wrapper, just that.
    pub(super) fn unpack(
        &self,
        stored: &[Window],
        name: &str,
        wrapper: Option<Wrapper>,
    ) -> Result<Window> {
        let files = stored;
        let mut stored = Stored::new(files, self.observer);
        self.observer.expect(stored.length_bytes());
        let mut staged = Staged::create(self, inside(stored.path(), name))?;
        staged.check_room(stored.length_bytes())?;
        match wrapper {
            Some(wrapper) => wrapper.unpack(&mut stored, &mut staged)?,
            None => stored.copy(&mut staged)?,
        }
        staged.finish()?.made_of(files)
    }

    /// Lays out a file of `length_bytes` of which only `pieces` of `stored` are there: where each
    /// belongs, and its bytes. The pieces ascend.
    pub(super) fn spread(
        &self,
        stored: &Window,
        length_bytes: u64,
        pieces: &[(u64, Window)],
    ) -> Result<Window> {
        let mut staged = Staged::create(self, stored.path().to_path_buf())?;
        let bytes = |sum: u64, (_, piece): &(u64, Window)| sum.saturating_add(piece.length_bytes());
        let stored_bytes = pieces.iter().fold(0, bytes);
        self.observer.expect(stored_bytes);
        staged.check_room(stored_bytes)?;
        for (at, piece) in pieces {
            staged.skip_to(*at)?;
            Stored::new(std::slice::from_ref(piece), self.observer).copy(&mut staged)?;
        }
        staged.skip_to(length_bytes)?;
        staged.finish()?.made_of(std::slice::from_ref(stored))
    }
}

/// What errors call something inside the file at `path`.
fn inside(path: &Path, name: &str) -> PathBuf {
    PathBuf::from(format!("{}:{name}", path.display()))
}
