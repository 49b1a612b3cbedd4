//! What owners' texts said when they were last read: each is parsed once per change, however often
//! the directory is looked at, so that large or many texts do not hold up the queue.
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::arrival::pieces::{Pieces, Scope};
use crate::arrival::settle::{Mark, mark};
use crate::error::{Error, Result};

#[derive(Debug, Default)]
pub(super) struct Texts {
    /// `None`: the text cannot be understood.
    read: HashMap<PathBuf, (Mark, Option<Pieces>)>,
}

impl Texts {
    /// The pieces of `owner`; an error says in full what is wrong with it.
    pub fn pieces(&mut self, scope: &Scope, owner: &str) -> Result<Pieces> {
        scope.pieces_by(
            owner,
            &mut |name| match self.known(&scope.base.join(name)) {
                Some(Some(pieces)) => Ok(pieces.clone()),
                _ => self.read(scope, name),
            },
        )
    }

    /// The pieces of `owner`, as far as its text can be understood.
    pub fn pieces_if_sound(&mut self, scope: &Scope, owner: &str) -> Option<Pieces> {
        if let Some(None) = self.known(&scope.base.join(owner)) {
            return None;
        }
        self.pieces(scope, owner).ok()
    }

    /// Forgets one file's text: it is read no more under this name.
    pub fn forget(&mut self, path: &Path) {
        self.read.remove(path);
    }

    /// Forgets the texts that have changed or are gone.
    pub fn prune(&mut self) {
        self.read.retain(|path, (then, _)| now(path) == Some(*then));
    }

    fn known(&self, path: &Path) -> Option<&Option<Pieces>> {
        let (then, known) = self.read.get(path)?;
        (now(path) == Some(*then)).then_some(known)
    }

    fn read(&mut self, scope: &Scope, name: &str) -> Result<Pieces> {
        let path = scope.base.join(name);
        // Marked before it is read: what is written meanwhile is read again.
        let Some(mark) = now(&path) else {
            let gone = std::io::Error::from_raw_os_error(nix::libc::ENOENT);
            return Err(Error::io("open", &path, gone));
        };
        let said = scope.direct(name);
        let kept = said.as_ref().ok().cloned();
        self.read.insert(path, (mark, kept));
        said
    }
}

fn now(path: &Path) -> Option<Mark> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some(mark(&metadata))
}
