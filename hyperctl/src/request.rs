//! Drops a request into `.control/`; the daemon of the instance consumes it.
use std::path::PathBuf;

use queue::error::{Error, ErrorKind, Result};
use queue::instance::Directories;
use queue::job::{JobId, Request};

/// Writes the request aside and renames it to a name of its own, which is returned.
pub fn submit(directories: &Directories, request: &Request) -> Result<PathBuf> {
    let control = directories.control();
    let name = JobId::new().to_string().replacen("job-", "request-", 1);
    let aside = control.join(format!(".{name}.tmp"));
    let path = control.join(format!("{name}.json"));
    let text = serde_json::to_vec(request).map_err(|error| {
        Error::new(ErrorKind::Internal, "encode the request").with_source(error)
    })?;
    std::fs::write(&aside, text).map_err(|error| Error::io("write request", &aside, error))?;
    std::fs::rename(&aside, &path).map_err(|error| Error::io("rename request", &aside, error))?;
    Ok(path)
}
