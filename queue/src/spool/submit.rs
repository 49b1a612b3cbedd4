//! Submit: what a producer does. Stage in `.incoming/<job>/`, fsync, one rename; a request is one
//! file.
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::durable::{self, HostVolume, Volume};
use crate::error::{Error, Result};
use crate::instance::Directories;
use crate::job::{ExportRequest, JobId};

use super::SHARED_MODE;

/// A job directory in the making; removed again unless it is published.
pub struct Submission {
    volume: Arc<dyn Volume>,
    directories: Directories,
    job: JobId,
    directory: PathBuf,
    published: bool,
}

/// Begins a submission to the instance with these directories.
pub fn stage(directories: &Directories) -> Result<Submission> {
    stage_on(Arc::new(HostVolume), directories)
}

/// The same on any volume.
pub fn stage_on(volume: Arc<dyn Volume>, directories: &Directories) -> Result<Submission> {
    let job = JobId::new();
    let incoming = directories.incoming();
    if volume.stat(&incoming)?.is_none() {
        return Err(
            Error::invalid(format!("{} is not a queue", directories.queue.display()))
                .with_remedy("start the converter of this instance once, or check --watch-dir"),
        );
    }
    let directory = incoming.join(job.to_string());
    // Group-writable, so that the converter may move it: rename(2) of a directory needs that.
    volume.create_dir(&directory, SHARED_MODE)?;
    Ok(Submission {
        volume,
        directories: directories.clone(),
        job,
        directory,
        published: false,
    })
}

/// Drops a request into the export service with these directories; returns its name there.
pub fn request(directories: &Directories, request: &ExportRequest) -> Result<String> {
    request_on(&HostVolume, directories, request)
}

/// The same on any volume.
pub fn request_on(
    volume: &dyn Volume,
    directories: &Directories,
    request: &ExportRequest,
) -> Result<String> {
    let queue = &directories.queue;
    if volume.stat(queue)?.is_none() {
        return Err(Error::invalid(format!(
            "{} is not the export service's spool",
            queue.display()
        ))
        .with_remedy("start hypervisord once, or check requests_dir in hypervisord.toml"));
    }
    let bytes = super::memory::to_json(request)?;
    // What the service would refuse is refused here already.
    ExportRequest::parse(&bytes)?;
    let name = format!("{}.{}.json", request.vm_name(), JobId::new());
    durable::replace(volume, &queue.join(&name), &bytes)?;
    Ok(name)
}

impl Submission {
    /// Where the manifest and the disks go.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn job(&self) -> JobId {
        self.job
    }

    /// Makes it durable, then visible; returns its name in the queue directory.
    pub fn publish(mut self) -> Result<String> {
        let volume = &*self.volume;
        durable::sync_tree(volume, &self.directory)?;
        volume.sync(&self.directories.incoming())?;
        let name = self.job.to_string();
        volume.rename(&self.directory, &self.directories.queue.join(&name))?;
        self.published = true;
        volume.sync(&self.directories.queue)?;
        volume.sync(&self.directories.incoming())?;
        Ok(name)
    }
}

impl Drop for Submission {
    fn drop(&mut self) {
        if !self.published {
            // Best effort: what stays in `.incoming` is seen by nobody.
            let _ = durable::remove_tree(&*self.volume, &self.directory);
        }
    }
}
