//! `job.json`: the claim's own memory, inside `.processing/<job>/`.
//!
//! It is written before what it speaks of is done, so that whoever finds an orphan can finish it.
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::job::{Failure, JobId, JobState, Priority, VmName};
use crate::roots::is_plain;

/// The largest job.json that is read, in bytes.
pub const MAX_BYTES: u64 = 4 * 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropKind {
    /// A bare disk image, possibly a descriptor with its extents, or an OVA.
    Disk,
    Ovf,
    Manifest,
    /// A directory that was published by one rename.
    Directory,
    /// Not a VM, but the request to export one.
    Request,
}

/// What lies in the queue directory and is whole: what a claim takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drop {
    /// One component of the queue directory.
    pub name: String,
    pub kind: DropKind,
    /// The file that owns the others, relative to the queue directory.
    pub owner: String,
    /// What else belongs to it, relative to the queue directory.
    pub owned: Vec<String>,
    pub vm_name: VmName,
    /// The directory beneath the output directory that the manifest asks for; mostly empty.
    pub place: String,
    /// What only so many jobs at once may use: the server of an export.
    pub lane: String,
    pub priority: Priority,
}

/// One move that makes up a claim: `from` beneath the queue directory, `to` beneath `source/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Take {
    pub from: String,
    pub to: String,
}

/// How far the job is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub enum Stage {
    /// Taken, or about to be: the takes say what. Waits for a worker.
    Claimed {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        not_before: Option<String>,
    },
    /// A worker is on it, or died on it.
    Running,
    /// The result in staging is whole and durable; only the publishing remains.
    Publishing { link: String, file: String },
    /// The same of an export: what is staged in the target queue only has to be renamed to `name`;
    /// of what was streamed under that name, only the disks' ends have to be declared.
    Delivering { name: String },
    /// Failed or cancelled for good; only the telling and archiving remain.
    Failed { state: JobState, failure: Failure },
}

/// An instance and its queue directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub instance: String,
    pub queue: PathBuf,
}

/// What an export has put into its target's queue before it was whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streamed {
    /// Its name there.
    pub drop: JobId,
    pub disks: Vec<StreamedDisk>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamedDisk {
    pub file: String,
    /// Of the file, once it is whole: `blake3:<hex>` or `sha256:<hex>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    pub job_id: JobId,
    pub drop: String,
    pub kind: DropKind,
    pub owner: String,
    /// The owner first.
    pub takes: Vec<Take>,
    pub vm_name: VmName,
    #[serde(default)]
    pub place: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub lane: String,
    /// The instance's queue into which an export goes, since it was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// What the present attempt streams, or did until its process died.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streamed: Option<Streamed>,
    #[serde(default)]
    pub priority: Priority,
    pub created_at: String,
    /// How often a worker began it.
    #[serde(default)]
    pub attempts: u32,
    /// How many workers died on it since one of them got further than all before.
    #[serde(default)]
    pub crashes: u32,
    /// The most that a worker which died had noted in the job's journals.
    #[serde(default)]
    pub journal_bytes: u64,
    /// How often it was put back after a transient failure.
    #[serde(default)]
    pub retries: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<Failure>,
    /// The job whose result stood under the VM's name at the claim: an earlier one, whatever the
    /// clock said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<JobId>,
    /// Somebody asked for this very job again: it replaces later ones' results too.
    #[serde(default)]
    pub is_asked_for: bool,
    /// Jobs that converted on their own what turned out to be this one's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adopted: Vec<JobId>,
    /// The job that made this one needless.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superseded_by: Option<JobId>,
    #[serde(flatten)]
    pub stage: Stage,
}

impl Memory {
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let memory: Self = serde_json::from_slice(bytes)
            .map_err(|error| Error::invalid("job.json cannot be read").with_source(error))?;
        memory.check()?;
        Ok(memory)
    }

    /// Whoever wrote it: no path in it leaves the directory that it is relative to.
    pub fn check(&self) -> Result<()> {
        let paths = self.takes.iter().flat_map(|take| [&take.from, &take.to]);
        let streamed = self.streamed.iter().flat_map(|streamed| &streamed.disks);
        let plain = paths
            .chain(streamed.map(|disk| &disk.file))
            .chain([&self.drop, &self.owner])
            .all(|path| is_plain(path));
        if plain && (self.place.is_empty() || is_plain(&self.place)) {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "{} has paths that leave its directory",
            self.job_id
        )))
    }

    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let bytes = to_json(self)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(Error::invalid(format!(
                "{} names so many files that the job cannot be noted",
                self.owner
            ))
            .with_remedy("give the files fewer or shorter names"));
        }
        Ok(bytes)
    }
}

/// Any of the contract's JSON files, as people like to read it.
pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|error| {
        Error::new(crate::error::ErrorKind::Internal, "cannot write JSON").with_source(error)
    })?;
    bytes.push(b'\n');
    Ok(bytes)
}
