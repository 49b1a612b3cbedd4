//! Control requests: `hyperctl` drops them into `.control/`, the daemon consumes them.
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::durable::{self, EntryKind, HostVolume, Lock, Volume};
use crate::error::{Error, Result};
use crate::instance::Directories;
use crate::job::{Failure, JobId, Request, request};

use super::Spool;

pub(super) const SUFFIX: &str = ".request.json";
/// Appended to the name of a request that the daemon refused.
pub const REFUSED_SUFFIX: &str = ".refused";

/// Drops a request; the daemon has taken it when the returned path is gone, and refused it when
/// the same path with `.refused` appended is there.
pub fn submit(directories: &Directories, request: &Request) -> Result<PathBuf> {
    submit_on(&HostVolume, directories, request)
}

/// The same on any volume.
pub fn submit_on(
    volume: &dyn Volume,
    directories: &Directories,
    request: &Request,
) -> Result<PathBuf> {
    // A job id is a ULID: unique, and sorts by time.
    let path = directories
        .control()
        .join(format!("{}{SUFFIX}", JobId::new()));
    durable::replace(volume, &path, &super::memory::to_json(request)?)?;
    Ok(path)
}

/// Why the daemon refused the request at `path`, if it did.
pub fn refusal(path: &Path) -> Result<Option<Failure>> {
    #[derive(serde::Deserialize)]
    struct Refusal {
        error: Failure,
    }
    let path = refused(path);
    let Some(bytes) = HostVolume.read(&path, request::MAX_BYTES)? else {
        return Ok(None);
    };
    let refusal: Refusal = serde_json::from_slice(&bytes).map_err(|error| {
        Error::invalid(format!("{} cannot be read", path.display())).with_source(error)
    })?;
    Ok(Some(refusal.error))
}

/// Where the answer stands if the request at `path` is refused.
fn refused(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(REFUSED_SUFFIX);
    name.into()
}

impl Spool {
    /// The requests that wait, oldest first; one that cannot be read comes with its error.
    pub fn requests(&self) -> Result<Vec<(PathBuf, Result<Request>)>> {
        let control = self.directories.control();
        let mut paths: Vec<PathBuf> = self
            .volume
            .read_dir(&control)?
            .into_iter()
            .filter(|entry| entry.kind == EntryKind::File)
            .filter(|entry| {
                let name = entry.name.to_string_lossy();
                name.ends_with(SUFFIX) && !name.starts_with('.')
            })
            .map(|entry| control.join(entry.name))
            .collect();
        paths.sort_unstable();
        Ok(paths
            .into_iter()
            .map(|path| (path.clone(), self.read_request(&path)))
            .collect())
    }

    fn read_request(&self, path: &Path) -> Result<Request> {
        let bytes = self
            .volume
            .read(path, request::MAX_BYTES)?
            .unwrap_or_default();
        serde_json::from_slice(&bytes).map_err(|error| {
            Error::invalid(format!("{} is not a request", path.display()))
                .with_remedy("let hyperctl write it")
                .with_source(error)
        })
    }

    /// Takes a request that only one converter may carry out; `None` if another has it, or had it.
    pub fn take_request(&self, path: &Path) -> Result<Option<Lock>> {
        self.volume.lock(path, false)
    }

    /// Consumes a request that was carried out.
    pub fn answer(&self, path: &Path) -> Result<()> {
        self.consume(path)
    }

    /// Durably, so that no power loss brings it back when it means something else.
    fn consume(&self, path: &Path) -> Result<()> {
        self.volume.remove_file(path)?;
        self.volume.sync(durable::parent(path))
    }

    /// Consumes a request that cannot be carried out, and says why in its place; one that is gone
    /// was carried out by another converter.
    pub fn refuse(&self, path: &Path, request: Option<&Request>, failure: &Failure) -> Result<()> {
        if self.volume.stat(path)?.is_none() {
            return Ok(());
        }
        let answer = json!({"request": request, "error": failure});
        let bytes = super::memory::to_json(&answer)?;
        durable::replace_volatile(&*self.volume, &refused(path), &bytes)?;
        self.consume(path)
    }
}
