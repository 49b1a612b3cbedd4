//! Claim: make `.processing/<job>/`, lock it, note what is about to be taken, rename the drop in.
//!
//! Whoever renames the owner first owns the drop; losing that race is normal.
use std::ffi::OsStr;
use std::path::Path;
use std::time::SystemTime;

use super::memory::{Drop, Memory, Stage, Take};
use super::{OWN_MODE, Spool};
use crate::durable::{self, EntryKind, Lock};
use crate::error::Result;
use crate::job::{JobId, Record, record};

/// How often a claim begins again because its empty directory was swept away.
const MAX_SWEPT_AWAY: u32 = 8;

impl Spool {
    /// Takes a drop. `None`: somebody else was quicker, or it is gone.
    pub fn claim(&self, drop: &Drop) -> Result<Option<JobId>> {
        let mut takes = vec![Take {
            from: top(drop).to_owned(),
            to: top(drop).to_owned(),
        }];
        takes.extend(drop.owned.iter().map(|name| Take {
            from: name.clone(),
            to: name.clone(),
        }));
        let mut memory = Memory {
            job_id: JobId::new(),
            drop: drop.name.clone(),
            kind: drop.kind,
            owner: drop.owner.clone(),
            takes,
            vm_name: drop.vm_name.clone(),
            place: drop.place.clone(),
            lane: drop.lane.clone(),
            target: None,
            streamed: None,
            priority: drop.priority,
            created_at: record::timestamp(SystemTime::now()),
            attempts: 0,
            crashes: 0,
            journal_bytes: 0,
            retries: 0,
            last_failure: None,
            found: self.result_of(&drop.place, &drop.vm_name)?,
            is_asked_for: false,
            adopted: Vec::new(),
            superseded_by: None,
            stage: Stage::Claimed { not_before: None },
        };
        let Some(_lock) = self.make_fresh_job(&mut memory)? else {
            return Ok(None);
        };
        if !self.take_owner(&memory)? {
            self.abandon(memory.job_id)?;
            return Ok(None);
        }
        self.take_owned(&memory)?;
        // In this order: an earlier job that ends meanwhile sees the note, or this sees its link.
        self.note_latest(&memory)?;
        self.retire(&memory)?;
        let mut record = self.fresh_record(&memory);
        self.save_record(&mut record, true)?;
        Ok(Some(memory.job_id))
    }

    /// Creates a directory for a claim, under another id if a sweep of another converter took the
    /// empty one for an orphan's. `None`: the drop is gone.
    fn make_fresh_job(&self, memory: &mut Memory) -> Result<Option<Lock>> {
        let owner = memory
            .takes
            .first()
            .map(|take| self.directories.queue.join(&take.from));
        for _ in 0..MAX_SWEPT_AWAY {
            match self.make_job(memory) {
                Err(error) if error.os_error() == Some(nix::libc::ENOENT) => {}
                made => return made.map(Some),
            }
            if let Some(owner) = &owner
                && self.volume.stat(owner)?.is_none()
            {
                return Ok(None);
            }
            memory.job_id = JobId::new();
        }
        self.make_job(memory).map(Some)
    }

    /// Creates the job's directory, durable and locked, with nothing in its `source/` yet.
    pub(super) fn make_job(&self, memory: &Memory) -> Result<Lock> {
        let volume = &*self.volume;
        let dir = self.job_dir(memory.job_id);
        volume.create_dir(&dir, OWN_MODE)?;
        let Some(lock) = volume.lock(&dir.join("lock"), true)? else {
            // A sweep took the empty directory for an orphan's; the drop was not touched.
            let gone = std::io::Error::from_raw_os_error(nix::libc::ENOENT);
            return Err(crate::error::Error::io("lock", &dir, gone));
        };
        volume.create_dir(&dir.join("source"), OWN_MODE)?;
        let path = dir.join("job.json");
        volume.write(&path, &memory.to_bytes()?)?;
        volume.sync(&path)?;
        volume.sync(&dir)?;
        volume.sync(&self.directories.processing())?;
        Ok(lock)
    }

    /// Renames the owner in; `false` if it is gone. On network file systems a rename that reports
    /// ENOENT may have succeeded, so the truth is what lies in `source/`.
    pub(super) fn take_owner(&self, memory: &Memory) -> Result<bool> {
        let Some(take) = memory.takes.first() else {
            return Ok(false);
        };
        let volume = &*self.volume;
        let from = self.directories.queue.join(&take.from);
        let to = self.source_dir(memory.job_id).join(&take.to);
        match volume.rename(&from, &to) {
            Ok(()) => {}
            Err(error) if error.os_error() == Some(nix::libc::ENOENT) => {
                if volume.stat(&to)?.is_none() {
                    return Ok(false);
                }
            }
            Err(error) => {
                self.abandon(memory.job_id)?;
                return Err(error);
            }
        }
        volume.sync(durable::parent(&to))?;
        volume.sync(durable::parent(&from))?;
        Ok(true)
    }

    /// Renames in what else the claim takes, as far as it is there. Done again, it changes nothing.
    pub(super) fn take_owned(&self, memory: &Memory) -> Result<()> {
        for take in memory.takes.iter().skip(1) {
            self.take(memory.job_id, take)?;
        }
        Ok(())
    }

    /// One more piece into `source/`; `false` if it is neither there nor here. What is there
    /// already is synced again: whoever moved it may have died before it could.
    pub(super) fn take(&self, job: JobId, take: &Take) -> Result<bool> {
        let volume = &*self.volume;
        let source = self.source_dir(job);
        let to = source.join(&take.to);
        let from = self.directories.queue.join(&take.from);
        if volume.stat(&to)?.is_none() && !self.move_piece(take, &from, &source)? {
            return Ok(false);
        }
        volume.sync(durable::parent(&to))?;
        let left = durable::parent(&from);
        if volume.stat(left)?.is_some() {
            volume.sync(left)?;
        }
        Ok(true)
    }

    fn move_piece(&self, take: &Take, from: &Path, source: &Path) -> Result<bool> {
        let volume = &*self.volume;
        if volume.stat(from)?.is_none() || !self.is_beneath_queue(&take.from)? {
            return Ok(false);
        }
        let mut above = source.to_path_buf();
        for part in durable::parent(Path::new(&take.to)).iter() {
            if part != OsStr::new("/") {
                above.push(part);
                durable::ensure_dir(volume, &above, OWN_MODE)?;
            }
        }
        let to = source.join(&take.to);
        match volume.rename(from, &to) {
            Ok(()) => Ok(true),
            Err(error) if error.os_error() == Some(nix::libc::ENOENT) => {
                Ok(volume.stat(&to)?.is_some())
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the directories between the queue and a piece are ones, not links to elsewhere.
    fn is_beneath_queue(&self, piece: &str) -> Result<bool> {
        let mut dir = self.directories.queue.clone();
        for part in durable::parent(Path::new(piece)).iter() {
            dir.push(part);
            let stat = self.volume.stat(&dir)?;
            if stat.is_none_or(|stat| stat.kind != EntryKind::Directory) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Removes a job's directory into which nothing was taken. What somebody did put into its
    /// `source/` makes the removal fail instead of being lost.
    pub(super) fn abandon(&self, job: JobId) -> Result<()> {
        let volume = &*self.volume;
        let dir = self.job_dir(job);
        if volume.stat(&dir)?.is_none() {
            return Ok(());
        }
        self.remove_empty_source(job)?;
        for entry in volume.read_dir(&dir)? {
            if entry.kind == EntryKind::File && entry.name != "lock" {
                volume.remove_file(&dir.join(&entry.name))?;
            }
        }
        // Last, so that nobody can take hold of what is being removed.
        volume.remove_file(&dir.join("lock"))?;
        volume.remove_dir(&dir)?;
        volume.sync(&self.directories.processing())
    }

    /// Abandons a job that has nothing, and takes back what pollers were told of it waiting.
    pub(super) fn forget(&self, job: JobId) -> Result<()> {
        if self
            .record(job)?
            .is_some_and(|record| !record.state.is_final())
        {
            self.volume.remove_file(&self.directories.record(job))?;
            self.volume.sync(&self.directories.records())?;
        }
        self.abandon(job)
    }

    /// Tells of a drop that cannot be claimed; the drop stays where it is. One that is gone was
    /// claimed after all: its job tells what becomes of it.
    pub fn complain(&self, drop: &Drop, error: &crate::error::Error) -> Result<()> {
        if self
            .volume
            .stat(&self.directories.queue.join(top(drop)))?
            .is_none()
        {
            return Ok(());
        }
        let place = self.ensure_place(&drop.place)?;
        let path = place.join(format!("{}.error", drop.vm_name));
        let text = crate::job::Failure::from(error).to_text();
        let output = &self.directories.output;
        durable::replace_from(&*self.volume, output, &path, text.as_bytes())
    }

    fn remove_empty_source(&self, job: JobId) -> Result<()> {
        fn prune(volume: &dyn durable::Volume, dir: &std::path::Path) -> Result<()> {
            for entry in volume.read_dir(dir)? {
                if entry.kind == EntryKind::Directory {
                    prune(volume, &dir.join(&entry.name))?;
                }
            }
            volume.remove_dir(dir)
        }
        let source = self.source_dir(job);
        if self.volume.stat(&source)?.is_none() {
            return Ok(());
        }
        prune(&*self.volume, &source)
    }

    /// The record of a job as its memory tells it.
    pub(super) fn fresh_record(&self, memory: &Memory) -> Record {
        let name = memory.vm_name.as_str();
        let mut record = Record::new(memory.job_id, name, &self.policy.instance, &memory.drop);
        record.created_at.clone_from(&memory.created_at);
        record.priority = memory.priority;
        // A request's place is the instance that it names.
        record.target = (memory.kind == super::DropKind::Request && !memory.place.is_empty())
            .then(|| memory.place.clone());
        record.attempts = memory.attempts;
        record.error.clone_from(&memory.last_failure);
        if let Stage::Claimed { not_before } = &memory.stage {
            record.not_before.clone_from(not_before);
        }
        record
    }
}

/// What is renamed first: the owner itself, or the directory it lies in.
fn top(drop: &Drop) -> &str {
    match drop.kind {
        super::DropKind::Directory => &drop.name,
        _ => &drop.owner,
    }
}
