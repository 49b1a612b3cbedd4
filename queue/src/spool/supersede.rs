//! Superseding: a job that another one has made needless ends, and says by which.
//!
//! Two ways lead there: a later job of the same name was published first, or a disk was converted
//! on its own before the owner came whose job converts it as a part of its VM.
use std::path::Path;

use super::Spool;
use super::fail::Fate;
use super::held::Job;
use super::memory::Memory;
use super::place::{METADATA, is_result_file};
use crate::durable::{self, EntryKind};
use crate::error::{Error, ErrorKind, Result};
use crate::job::{Failure, JobId, JobState, Record, VmName};

impl Spool {
    /// The later job whose result stands where this one's would. None for a job that somebody
    /// asked for by its id: replacing that result is what they want.
    pub(super) fn later_result(&self, memory: &Memory) -> Result<Option<JobId>> {
        if memory.is_asked_for {
            return Ok(None);
        }
        let stands = self.result_of(&memory.place, &memory.vm_name)?;
        Ok(stands.filter(|id| *id > memory.job_id && Some(*id) != memory.found))
    }
}

impl Job {
    /// Ends a job whose VM a later job has published already; its source can be had back.
    pub fn supersede(mut self, later: JobId) -> Result<Fate> {
        let error = Error::new(
            ErrorKind::Cancelled,
            format!(
                "superseded: {later}, which came later, has published {} already",
                self.memory.vm_name
            ),
        )
        .with_remedy("`hyperctl retry` with this job's id replaces that result by this one's");
        self.memory.superseded_by = Some(later);
        self.conclude(JobState::Cancelled, (&error).into())?;
        Ok(Fate::Ended(JobState::Cancelled))
    }

    /// Takes away what jobs of their own made of this job's disks before it came.
    pub(super) fn withdraw_adopted(&mut self) -> Result<()> {
        for other in self.memory.adopted.clone() {
            if let Some(record) = self.spool.record(other)? {
                self.withdraw(record)?;
            }
        }
        Ok(())
    }

    /// Only a result that still is that job's, and that nobody has changed or added to.
    fn withdraw(&mut self, mut record: Record) -> Result<()> {
        let (id, other) = (self.id(), record.job_id);
        let is_begun = record.superseded_by == Some(id);
        let Ok(vm_name) = VmName::try_from(record.vm_name.clone()) else {
            return Ok(());
        };
        if !is_begun && record.state != JobState::Completed
            || self.spool.result_of("", &vm_name)? != Some(other)
        {
            return Ok(());
        }
        // A running job of that name replaces it anyway.
        let Some((lock, _held)) = self.spool.lock_name("", &vm_name)? else {
            return Ok(());
        };
        let result = self.spool.directories.output.join(vm_name.as_str());
        if self.is_unchanged(&result, &vm_name)? {
            if !is_begun {
                record.state = JobState::Cancelled;
                record.superseded_by = Some(id);
                record.error = Some(self.withdrawal(&record.drop));
                record.outputs.clear();
                self.spool.save_record(&mut record, true)?;
            }
            self.remove_result(&result, &vm_name)?;
        } else {
            self.record.notes.push(format!(
                "{} holds what {other} made of {} on its own; it was changed since and stays",
                result.display(),
                record.drop
            ));
        }
        // One that stays is taken over by the next job of that name.
        let _ = self.volume().remove_file(&lock);
        Ok(())
    }

    fn withdrawal(&self, drop: &str) -> Failure {
        let (id, vm_name) = (self.id(), &self.memory.vm_name);
        let error = Error::new(
            ErrorKind::Cancelled,
            format!("superseded: {drop} is a disk of {vm_name}, which {id} has published"),
        )
        .with_remedy(format!("use the result {vm_name}"));
        (&error).into()
    }

    /// Whether nothing lies there but what was published, and nothing of it was written since:
    /// metadata.json was written last.
    fn is_unchanged(&self, result: &Path, vm_name: &VmName) -> Result<bool> {
        let told = self.spool.told_files(result)?;
        let mut newest = None;
        for entry in self.volume().read_dir(result)? {
            let name = entry.name.to_string_lossy();
            if entry.kind != EntryKind::File || !is_result_file(vm_name, &name, &told) {
                return Ok(false);
            }
            let stat = self.volume().stat(&result.join(&entry.name))?;
            newest = newest.max(stat.map(|stat| stat.modified));
        }
        let metadata = self.volume().stat(&result.join(METADATA))?;
        Ok(metadata.map(|stat| stat.modified) >= newest)
    }

    /// The link first, so that it never leads nowhere; the directory in one step.
    fn remove_result(&self, result: &Path, vm_name: &VmName) -> Result<()> {
        let output = &self.spool.directories.output;
        self.spool.remove_links(output, vm_name)?;
        self.volume().sync(output)?;
        let aside = self.staging_dir().with_extension("previous");
        self.volume().rename(result, &aside)?;
        self.volume().sync(output)?;
        self.volume().sync(durable::parent(&aside))?;
        durable::remove_tree(self.volume(), &aside)
    }
}
