//! What was dropped and is not claimed yet, and what it waits for.
use queue::arrival::candidate::{self, Class};
use queue::arrival::pieces::{self, Scope};
use queue::arrival::whole;
use queue::error::Result;
use queue::job::ExportRequest;

use super::{Life, Place, Role, entries, file};

/// A drop that is not claimed yet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unclaimed {
    pub name: String,
    /// The VM that it is of, as far as it tells.
    pub vm: String,
    /// What it waits for, as a sentence without its subject.
    pub reason: String,
}

impl Unclaimed {
    /// The drop and what it waits for, as one sentence.
    pub fn told(&self) -> String {
        format!("{} {}", self.name, self.reason)
    }
}

impl Place {
    /// What was dropped and is not claimed yet, sorted by name.
    pub fn drops(&self) -> Result<Vec<Unclaimed>> {
        let life = self.life();
        let mut drops = Vec::new();
        for (name, is_directory) in entries(&self.directories.queue)? {
            if candidate::is_ignored(&name) {
                continue;
            }
            drops.extend(match self.role {
                Role::Convert => self.drop(name, is_directory, life),
                Role::Export => Some(self.request(name, life)),
            });
        }
        drops.sort();
        Ok(drops)
    }

    /// The drop of this name, if it is still there.
    pub fn drop_named(&self, name: &str) -> Option<Unclaimed> {
        let is_name = !name.contains('/') && !candidate::is_ignored(name);
        let path = self.directories.queue.join(name);
        let metadata = std::fs::symlink_metadata(path).ok().filter(|_| is_name)?;
        match self.role {
            Role::Convert => self.drop(name.to_owned(), metadata.is_dir(), self.life()),
            Role::Export => Some(self.request(name.to_owned(), self.life())),
        }
    }

    fn drop(&self, name: String, is_directory: bool, life: Life) -> Option<Unclaimed> {
        // Without a look inside: a name that says it is an extent belongs to another drop.
        let is_candidate = candidate::classify(&name).is_some();
        let is_drop = is_directory || is_candidate && !candidate::is_extent(&name, &[]);
        is_drop.then(|| Unclaimed {
            vm: match is_candidate {
                true => candidate::stem(&name).to_owned(),
                false => name.clone(),
            },
            reason: self.reason(&name, life),
            name,
        })
    }

    fn request(&self, name: String, life: Life) -> Unclaimed {
        let bytes = file::read(&self.directories.queue.join(&name));
        let bytes = bytes.ok().flatten().unwrap_or_default();
        let request = ExportRequest::parse(&bytes);
        let reason = match &request {
            _ if life != Life::Responding => "waits: the daemon is not running".to_owned(),
            Ok(_) => "is not claimed yet".to_owned(),
            Err(error) => error.to_string(),
        };
        Unclaimed {
            vm: request.map_or_else(|_| name.clone(), |read| read.vm_name().to_string()),
            reason,
            name,
        }
    }

    /// Why a drop is not claimed yet: a silent daemon, or a file that it names and that is missing.
    fn reason(&self, name: &str, life: Life) -> String {
        if life != Life::Responding {
            return "waits: the daemon is not running".to_owned();
        }
        let queue = &self.directories.queue;
        let path = queue.join(name);
        if name.contains(char::REPLACEMENT_CHARACTER) {
            return "has a name that is not UTF-8: rename it".to_owned();
        }
        if candidate::classify(name) == Some(Class::Manifest) {
            if !whole::is_complete_json(&path) {
                return "is not complete JSON".to_owned();
            }
            if !whole::looks_like_manifest(&path) {
                return "is no manifest: it names no disks".to_owned();
            }
        }
        if path.is_dir() && !path.join("manifest.json").exists() {
            return "is a directory without a manifest.json".to_owned();
        }
        if !path.is_dir() && whole::is_complete(&path).is_ok_and(|complete| !complete) {
            return "is not complete yet".to_owned();
        }
        let scope = Scope {
            base: queue,
            queue,
            output: &self.directories.output,
        };
        let pieces = scope.pieces(name).unwrap_or_default().names;
        let is_missing = |piece: &&String| std::fs::symlink_metadata(queue.join(piece)).is_err();
        let head = pieces::head(&path, candidate::HEAD_BYTES).unwrap_or_default();
        pieces.iter().find(is_missing).map_or_else(
            || match candidate::is_companion(name, &head) {
                true => "waits a while for a file that names it".to_owned(),
                false => "is not claimed yet".to_owned(),
            },
            |missing| format!("names {missing:?}, which is not there"),
        )
    }
}
