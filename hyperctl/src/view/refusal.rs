//! A request that the daemon refused: in its place stands `<file>.refused`, which says why.
use std::path::{Path, PathBuf};

use queue::error::{Error, Result};
use queue::spool::request::REFUSED_SUFFIX;
use serde_json::Value;

use super::file;
use super::job::Cause;

/// Why the daemon refused the request in the file `request`; `None` if it did not.
pub fn read(request: &Path) -> Result<Option<Cause>> {
    let mut name = request.as_os_str().to_owned();
    name.push(REFUSED_SUFFIX);
    let path = PathBuf::from(name);
    let bytes = file::read(&path).map_err(|error| Error::io("read refusal", &path, error))?;
    Ok(bytes.map(|bytes| {
        let value = serde_json::from_slice::<Value>(&bytes).unwrap_or_default();
        value.get("error").map_or_else(
            || Cause {
                kind: "unknown".to_owned(),
                message: format!("the daemon refused the request; see {}", path.display()),
                remedy: None,
            },
            Cause::from_value,
        )
    }))
}
