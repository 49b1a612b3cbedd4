//! A directory in the making outside any queue: removed again unless it is published or kept.
//!
//! What goes into a queue is staged by `queue::spool::submit` instead.
use std::path::{Path, PathBuf};

use queue::durable::{self, HostVolume, Volume};
use queue::job::JobId;

use crate::error::{Error, Result};

const MODE: u32 = 0o750;

pub struct Staging {
    path: PathBuf,
    published: bool,
}

impl Staging {
    /// Makes `.export-<job>` beneath `parent`, which is created if it is not there.
    pub fn create(parent: &Path, job: JobId) -> Result<Self> {
        let parent =
            std::path::absolute(parent).map_err(|error| Error::io("resolve", parent, error))?;
        std::fs::create_dir_all(&parent)
            .map_err(|error| Error::io("create directory", &parent, error))?;
        let path = parent.join(format!(".export-{job}"));
        HostVolume.create_dir(&path, MODE)?;
        Ok(Self {
            path,
            published: false,
        })
    }

    pub fn directory(&self) -> &Path {
        &self.path
    }

    /// Makes it durable and gives it its name in the same directory, unless that is taken.
    pub fn publish(mut self, name: &str) -> Result<PathBuf> {
        let target = self.path.with_file_name(name);
        durable::sync_tree(&HostVolume, &self.path)?;
        if !HostVolume.rename_new(&self.path, &target)? {
            return Err(taken(&target));
        }
        self.published = true;
        HostVolume.sync(durable::parent(&target))?;
        Ok(target)
    }
}

pub fn taken(path: &Path) -> Error {
    Error::invalid(format!("{} is there already", path.display()))
        .with_remedy("move it away, or choose another --output")
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.published {
            // Best effort: a directory whose name begins with a dot is nobody's result.
            let _ = durable::remove_tree(&HostVolume, &self.path);
        }
    }
}
