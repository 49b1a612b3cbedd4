//! Which claimed job of a VM's name is the latest: a file per name, replaced at each claim.
//!
//! An earlier job that ends while a later one waits publishes its directory and its record, but
//! neither link nor error text: whoever polls for the later job would take them for its own.
use std::path::{Path, PathBuf};

use super::Spool;
use super::memory::Memory;
use crate::durable::Lock;
use crate::error::Result;
use crate::job::{JobId, VmName};

const MAX_BYTES: u64 = 64;

impl Spool {
    /// The stem of what is kept per name: a place and a name as one component.
    pub(super) fn name_key(&self, place: &str, vm_name: &VmName) -> Result<VmName> {
        VmName::new(&format!("{place}/{vm_name}"))
    }

    /// The lock of a VM's name; `None` if a running job has it.
    pub(super) fn lock_name(
        &self,
        place: &str,
        vm_name: &VmName,
    ) -> Result<Option<(PathBuf, Lock)>> {
        let name = self.name_key(place, vm_name)?;
        let path = self.directories.names().join(format!("{name}.lock"));
        Ok(self.volume.lock(&path, true)?.map(|lock| (path, lock)))
    }

    fn latest_path(&self, memory: &Memory) -> Result<PathBuf> {
        let key = self.name_key(&memory.place, &memory.vm_name)?;
        Ok(self.directories.names().join(format!("{key}.latest")))
    }

    fn latest(&self, memory: &Memory) -> Result<Option<JobId>> {
        self.noted(&self.latest_path(memory)?)
    }

    fn noted(&self, path: &Path) -> Result<Option<JobId>> {
        let bytes = self.volume.read(path, MAX_BYTES)?;
        let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
        Ok(text.and_then(|text| text.trim().parse().ok()))
    }

    /// Notes that this job is the latest of its name. Not durably, and for a moment there is no
    /// note at all: then, and after a loss of power, pollers see what they would see without it.
    pub(super) fn note_latest(&self, memory: &Memory) -> Result<()> {
        let path = self.latest_path(memory)?;
        self.volume.remove_file(&path)?;
        match self
            .volume
            .write(&path, format!("{}\n", memory.job_id).as_bytes())
        {
            // Another converter's claim of the same name, at the same moment.
            Err(error) if error.os_error() == Some(nix::libc::EEXIST) => Ok(()),
            written => written,
        }
    }

    /// Whether a later job of the same name is claimed and not yet over.
    pub(super) fn is_superseded(&self, memory: &Memory) -> Result<bool> {
        match self.latest(memory)? {
            Some(latest) if latest != memory.job_id => {
                Ok(self.volume.stat(&self.job_dir(latest))?.is_some())
            }
            _ => Ok(false),
        }
    }

    /// Whether the job that the note at `path` names is not yet over.
    pub(crate) fn has_latest(&self, path: &Path) -> Result<bool> {
        match self.noted(path)? {
            Some(id) => Ok(self.volume.stat(&self.job_dir(id))?.is_some()),
            None => Ok(false),
        }
    }

    /// The job is over, or has another name now.
    pub(super) fn forget_latest(&self, memory: &Memory) -> Result<()> {
        if self.latest(memory)? == Some(memory.job_id) {
            self.volume.remove_file(&self.latest_path(memory)?)?;
        }
        Ok(())
    }
}
