//! The change report and the undo archive: what was found, every file that was changed, and its
//! contents as they were.
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::model::{Entry, FileChange, Guest};
use crate::error::{Error, ErrorKind, Result};

pub const REPORT: &str = "change-report.json";
/// The directory beside the image that holds the originals.
pub const ARCHIVE: &str = "undo";
/// Before what a symbolic link says.
pub const LINK: &str = "link:";

/// `change-report.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChangeReport {
    pub repaired: bool,
    /// A stable word for what was in the way, e.g. `no_system`, and its text.
    pub code: Option<String>,
    pub reason: Option<String>,
    /// What was found, as it was before the repair.
    pub found: Option<Guest>,
    pub changes: Vec<Change>,
    /// What was left as it is, and why.
    pub skipped: Vec<String>,
    /// Guest programs that were run.
    pub ran: Vec<String>,
    /// What the images take less of the host's file system than before the repair.
    pub freed_bytes: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Change {
    pub path: String,
    pub reason: String,
    /// SHA-256 as `sha256:<hex>`, or `link:<target>`; `None`: there was, or there is, nothing.
    pub before: Option<String>,
    pub after: Option<String>,
    /// The original, beneath the result's directory.
    pub original: Option<String>,
}

/// What a report says of an entry.
pub fn mark(entry: &Entry) -> Option<String> {
    match entry {
        Entry::Nothing => None,
        Entry::Link(target) => Some(format!("{LINK}{target}")),
        Entry::File(bytes) => {
            let digest = Sha256::digest(bytes);
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            Some(format!("sha256:{hex}"))
        }
    }
}

/// Writes the originals into `directory`; returns what the report says of each change.
pub fn archive(directory: &Path, changes: &[FileChange]) -> Result<Vec<Change>> {
    let place = directory.join(ARCHIVE);
    let mut told = Vec::with_capacity(changes.len());
    for change in changes {
        let mut original = None;
        if let Entry::File(bytes) = &change.before {
            std::fs::create_dir_all(&place).map_err(|e| Error::io("create", &place, e))?;
            let name = format!("{ARCHIVE}/{}", told.len() + 1);
            let path = directory.join(&name);
            std::fs::write(&path, bytes).map_err(|e| Error::io("write", &path, e))?;
            original = Some(name);
        }
        told.push(Change {
            path: change.path.clone(),
            reason: change.reason.clone(),
            before: mark(&change.before),
            after: mark(&change.after),
            original,
        });
    }
    Ok(told)
}

impl ChangeReport {
    pub fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(REPORT);
        let mut text = serde_json::to_vec_pretty(self).map_err(|error| {
            Error::new(ErrorKind::Internal, format!("write {REPORT}")).with_source(error)
        })?;
        text.push(b'\n');
        std::fs::write(&path, text).map_err(|error| Error::io("write", &path, error))
    }

    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(REPORT);
        let text = std::fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
        serde_json::from_slice(&text).map_err(|error| {
            Error::invalid(format!("{} cannot be read", path.display()))
                .with_remedy("give the image in the directory that it was published in")
                .with_source(error)
        })
    }
}
