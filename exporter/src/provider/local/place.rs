//! Where the files of one VM may lie: its own directory, and the datastores that are mounted here.
//!
//! Names in a `.vmx` or a descriptor are hostile; none is opened but through `queue::roots`.
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};

use queue::roots::Roots;

use crate::error::{Error, ErrorKind, Result};

const VOLUMES: &str = "/vmfs/volumes/";

pub struct Place<'a> {
    /// Absolute and without links.
    pub directory: PathBuf,
    datastores: &'a BTreeMap<String, PathBuf>,
    roots: Roots,
}

impl<'a> Place<'a> {
    pub fn new(directory: &Path, datastores: &'a BTreeMap<String, PathBuf>) -> Result<Self> {
        let mounted: Vec<PathBuf> = datastores.values().cloned().collect();
        Ok(Self {
            directory: directory.to_path_buf(),
            datastores,
            roots: Roots::open(directory, &mounted)?,
        })
    }

    /// The path that `name` means in a file of the directory `beside`; `by` is that file.
    pub fn locate(&self, beside: &Path, name: &str, by: &Path) -> Result<PathBuf> {
        let by = by.display();
        if name.chars().any(char::is_control) {
            return Err(
                Error::invalid(format!("{by} names {name:?}, which is no file's name"))
                    .with_remedy("look at that file: no VMware product writes such a name"),
            );
        }
        let named = name.replace('\\', "/");
        let path = match named.strip_prefix(VOLUMES) {
            Some(rest) => {
                let (volume, rest) = rest.split_once('/').unwrap_or((rest, ""));
                let mounted = self.datastores.get(volume).ok_or_else(|| {
                    Error::invalid(format!(
                        "{by} names {name:?}: it is not known where the datastore {volume:?} is \
                         mounted here"
                    ))
                    .with_remedy(format!(
                        "say so: --datastore {volume}=DIR, or datastores in hypervisord.toml"
                    ))
                })?;
                mounted.join(rest)
            }
            None => beside.join(&named),
        };
        let within = folded(&path).filter(|path| self.is_allowed(path));
        within.ok_or_else(|| {
            Error::invalid(format!(
                "{by} names {name:?}, which leaves the VM's directory"
            ))
            .with_remedy(
                "put the file beside it, or tell where the datastore is that both lie on: \
                 --datastore, or datastores in hypervisord.toml",
            )
        })
    }

    fn is_allowed(&self, path: &Path) -> bool {
        let mut allowed = std::iter::once(&self.directory).chain(self.datastores.values());
        allowed.any(|root| path != root && path.starts_with(root))
    }

    /// Opens the regular file at `path`, which `locate` gave or which lies in the directory.
    pub fn open(&self, path: &Path) -> Result<File> {
        match self.roots.open_path(path) {
            Ok((file, _)) => Ok(file),
            Err(error) if error.os_error() == Some(nix::libc::ENOENT) => Err(Error::new(
                ErrorKind::Invalid,
                format!("{} is not there", path.display()),
            )
            .with_remedy("put the missing file beside the one that names it")),
            Err(error) => Err(error),
        }
    }
}

/// Without `.` and `..`; `None` if that leads above the root.
fn folded(path: &Path) -> Option<PathBuf> {
    let mut folded = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                if !folded.pop() {
                    return None;
                }
            }
            Component::CurDir => {}
            part => folded.push(part),
        }
    }
    Some(folded)
}
