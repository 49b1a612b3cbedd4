//! Where results stand: a VM's place, whose result lies there, and what a new one retires.
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::memory::Memory;
use super::{OWN_MODE, Spool};
use crate::durable::{self, EntryKind};
use crate::error::Result;
use crate::instance::OnConflict;
use crate::job::{JobId, VmName};

/// The file in every result that says whose it is.
pub const METADATA: &str = "metadata.json";
/// Ends the names of the reports in `.errors/`.
pub(super) const REPORT_SUFFIX: &str = ".error.json";
const MAX_METADATA_BYTES: u64 = 16 * 1024 * 1024;
/// The forms of a result, which are the extensions of its disks and of its link.
const FORMATS: [&str; 2] = ["qcow2", "raw"];

impl Spool {
    /// The directory in which the job's result appears.
    pub(super) fn place_of(&self, memory: &Memory) -> PathBuf {
        if memory.place.is_empty() {
            self.directories.output.clone()
        } else {
            self.directories.output.join(&memory.place)
        }
    }

    /// The directory named by `place`, made if it is not there.
    pub(super) fn ensure_place(&self, place: &str) -> Result<PathBuf> {
        let mut dir = self.directories.output.clone();
        for part in Path::new(place) {
            dir.push(part);
            durable::ensure_dir(&*self.volume, &dir, OWN_MODE)?;
        }
        Ok(dir)
    }

    /// Takes away the link and the error text of earlier jobs of the same name, so that no poller
    /// takes them for this job's. A later job's stay, and so does the link to a result that this
    /// job may not replace.
    pub(super) fn retire(&self, memory: &Memory) -> Result<()> {
        if self.later_result(memory)?.is_some() {
            return Ok(());
        }
        let place = self.place_of(memory);
        let vm = &memory.vm_name;
        let mut removed = !self.rejects(memory)? && self.remove_links(&place, vm)?;
        let path = place.join(format!("{vm}.error"));
        if self
            .volume
            .stat(&path)?
            .is_some_and(|stat| stat.kind == EntryKind::File)
        {
            self.volume.remove_file(&path)?;
            removed = true;
        }
        if removed {
            self.volume.sync(&place)
        } else {
            Ok(())
        }
    }

    /// Whether another job's result stays in the way of this one's.
    fn rejects(&self, memory: &Memory) -> Result<bool> {
        let rejects = self.policy.on_conflict == OnConflict::Reject;
        let stands = |id: JobId| id != memory.job_id;
        Ok(rejects
            && self
                .result_of(&memory.place, &memory.vm_name)?
                .is_some_and(stands))
    }

    /// Removes the links that lead to a VM's result; whether there were any.
    pub(super) fn remove_links(&self, place: &Path, vm_name: &VmName) -> Result<bool> {
        let mut removed = false;
        for format in FORMATS {
            let path = place.join(format!("{vm_name}.{format}"));
            let stat = self.volume.stat(&path)?;
            if stat.is_some_and(|stat| stat.kind == EntryKind::Symlink) {
                self.volume.remove_file(&path)?;
                removed = true;
            }
        }
        Ok(removed)
    }

    /// Whose result lies in `dir`: the `job_id` in its metadata.json.
    pub(super) fn owner_of(&self, dir: &Path) -> Result<Option<String>> {
        let value = self.metadata_of(dir)?;
        Ok(value.and_then(|value| Some(value.get("job_id")?.as_str()?.to_owned())))
    }

    /// The job whose result stands under a VM's name.
    pub fn result_of(&self, place: &str, vm_name: &VmName) -> Result<Option<JobId>> {
        let dir = self.directories.output.join(place).join(vm_name.as_str());
        Ok(self.owner_of(&dir)?.and_then(|id| id.parse().ok()))
    }

    /// The disks that the metadata.json of the result in `dir` tells.
    pub(super) fn told_files(&self, dir: &Path) -> Result<Vec<String>> {
        let value = self.metadata_of(dir)?.unwrap_or_default();
        let disks = value.get("disks").and_then(Value::as_array);
        let file = |disk: &Value| Some(disk.get("file")?.as_str()?.to_owned());
        Ok(disks.into_iter().flatten().filter_map(file).collect())
    }

    fn metadata_of(&self, dir: &Path) -> Result<Option<Value>> {
        let bytes = self.volume.read(&dir.join(METADATA), MAX_METADATA_BYTES)?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }
}

/// Whether a result's metadata, or the pattern of its names, say that a file is part of it.
pub(super) fn is_result_file(vm_name: &VmName, name: &str, told: &[String]) -> bool {
    if matches!(name, METADATA | "domain.xml") || told.iter().any(|file| file == name) {
        return true;
    }
    let own = name.strip_prefix(vm_name.as_str());
    let stem = |own: &str| {
        let (stem, format) = own.rsplit_once('.')?;
        FORMATS.contains(&format).then(|| stem.to_owned())
    };
    let Some(rest) = own.and_then(stem) else {
        return false;
    };
    let number = rest.strip_prefix("-disk").unwrap_or("x");
    rest.is_empty() || number.bytes().all(|byte| byte.is_ascii_digit())
}
