//! Publish: the result's directory by one rename, then the link, the record, the archive.
//!
//! Nothing is under its final name before it is durable. `Stage::Publishing` is noted when the
//! staged result is durable, so that a crash later on finishes instead of converting again.
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::Value;

use super::held::Job;
use super::memory::{self, Stage};
use super::place::{METADATA, REPORT_SUFFIX, is_result_file};
use crate::durable::{self, EntryKind};
use crate::error::{Error, Result};
use crate::instance::{Archive, OnConflict};
use crate::job::{JobState, Phase, record};

/// What a worker made in the staging directory.
#[derive(Debug, Clone)]
pub struct Product {
    /// The first disk's file name in the staging directory.
    pub file: String,
    /// `qcow2` or `raw`: the extension of the link.
    pub format: String,
    /// Contents of metadata.json, an object; `job_id` is added to it.
    pub metadata: Value,
}

fn in_the_way(path: &Path, remedy: &str) -> Error {
    Error::invalid(format!("{} is in the way of the result", path.display())).with_remedy(remedy)
}

impl Job {
    /// Fails while there is still nothing lost, if something is in the way of the result.
    pub fn check_conflict(&self, format: &str) -> Result<()> {
        let place = self.spool.place_of(&self.memory);
        let vm = self.memory.vm_name.as_str();
        let link = place.join(format!("{vm}.{format}"));
        if self
            .volume()
            .stat(&link)?
            .is_some_and(|stat| stat.kind != EntryKind::Symlink)
        {
            return Err(in_the_way(
                &link,
                "it is not a link of ours: move it away and retry",
            ));
        }
        self.check_place()?;
        let result = place.join(vm);
        if self.volume().stat(&result)?.is_none() {
            return Ok(());
        }
        match self.spool.owner_of(&result)? {
            None => Err(in_the_way(
                &result,
                "it is no result of ours: move it away and retry",
            )),
            Some(owner) if owner == self.id().to_string() => Ok(()),
            Some(_) if self.spool.policy.on_conflict == OnConflict::Reject => Err(in_the_way(
                &result,
                "move the earlier result away, or set on_conflict = \"replace\"",
            )),
            Some(_) => self.check_foreign(&result),
        }
    }

    /// A place within a VM's result would go when that is replaced.
    fn check_place(&self) -> Result<()> {
        let mut dir = self.spool.directories.output.clone();
        for part in Path::new(&self.memory.place) {
            dir.push(part);
            if self.spool.owner_of(&dir)?.is_some() {
                return Err(in_the_way(
                    &dir,
                    "it is the result of a VM: name another output.directory",
                ));
            }
        }
        Ok(())
    }

    /// Whatever somebody put beside an earlier result would go with it.
    fn check_foreign(&self, result: &Path) -> Result<()> {
        let told = self.spool.told_files(result)?;
        for entry in self.volume().read_dir(result)? {
            let name = entry.name.to_string_lossy().into_owned();
            if entry.kind != EntryKind::File || !is_result_file(&self.memory.vm_name, &name, &told)
            {
                return Err(in_the_way(
                    &result.join(name),
                    "it is not of the earlier result: move it away and retry",
                ));
            }
        }
        Ok(())
    }

    /// Publishes what is in the staging directory and ends the job.
    pub fn publish(mut self, product: Product) -> std::result::Result<(), (Box<Self>, Error)> {
        if let Err(error) = self.prepare_publish(product) {
            return Err((Box::new(self), error));
        }
        self.finish_publish()
            .map_err(|error| (Box::new(self), error))
    }

    /// Up to the note that makes the publishing certain; an error before it is an ordinary failure.
    fn prepare_publish(&mut self, mut product: Product) -> Result<()> {
        self.check_conflict(&product.format)?;
        self.record.phase = Phase::Publish;
        self.save_record(false)?;
        if let Some(object) = product.metadata.as_object_mut() {
            object.insert("job_id".to_owned(), Value::from(self.id().to_string()));
        }
        let staging = self.staging_dir();
        let metadata = staging.join(METADATA);
        self.volume().remove_file(&metadata)?;
        self.volume()
            .write(&metadata, &memory::to_json(&product.metadata)?)?;
        durable::sync_tree(self.volume(), &staging)?;
        self.volume().sync(durable::parent(&staging))?;
        let link = format!("{}.{}", self.memory.vm_name, product.format);
        let running = std::mem::replace(
            &mut self.memory.stage,
            Stage::Publishing {
                link,
                file: product.file,
            },
        );
        if let Err(error) = self.spool.save_memory(&self.memory) {
            self.memory.stage = running;
            return Err(error);
        }
        Ok(())
    }

    /// Whether the result is still staged, or already in its place.
    pub(super) fn has_product(&self) -> Result<bool> {
        let ours = Some(self.id().to_string());
        Ok(self.spool.owner_of(&self.staging_dir())? == ours || self.is_in_place()?)
    }

    pub(super) fn is_in_place(&self) -> Result<bool> {
        Ok(self.spool.owner_of(&self.result_dir())? == Some(self.id().to_string()))
    }

    /// From a durable staged result to the end, as often as it takes.
    pub(super) fn finish_publish(&mut self) -> Result<()> {
        let Stage::Publishing { link, file } = self.memory.stage.clone() else {
            return Ok(());
        };
        let place = self.spool.ensure_place(&self.memory.place)?;
        let result = place.join(self.memory.vm_name.as_str());
        let ours = Some(self.id().to_string());
        if self.spool.owner_of(&result)? != ours {
            self.swap_in(&result)?;
        }
        self.volume().sync(&place)?;
        self.volume().sync(&self.spool.directories.staging())?;
        let link = self.write_link(&place.join(&link), &file)?;
        self.clear_staging()?;
        self.withdraw_adopted()?;
        self.tell_published(&result, link)?;
        self.finish_archive()
    }

    /// What remains of a job that was told completed.
    pub(super) fn finish_archive(&self) -> Result<()> {
        self.archive_source()?;
        self.remove_job_dir()
    }

    /// Puts the staged directory in its place; an earlier result of ours leaves in the same step.
    fn swap_in(&self, result: &Path) -> Result<()> {
        let staging = self.staging_dir();
        if self.volume().rename_new(&staging, result)? {
            return Ok(());
        }
        if self.spool.owner_of(result)?.is_none() {
            return Err(in_the_way(result, "it is no result of ours: move it away"));
        }
        if self.volume().exchange(&staging, result)? {
            return Ok(());
        }
        // No exchange here (NFS): in two steps, with the link retired so that no poller looks.
        let previous = staging.with_extension("previous");
        durable::remove_tree(self.volume(), &previous)?;
        self.volume().rename(result, &previous)?;
        self.volume().rename(&staging, result)?;
        self.volume().sync(durable::parent(result))?;
        durable::remove_tree(self.volume(), &previous)
    }

    /// The link whose existence means done; `None` if a later job of the name is waiting for its
    /// own.
    fn write_link(&self, link: &Path, file: &str) -> Result<Option<PathBuf>> {
        if self.spool.is_superseded(&self.memory)? {
            return Ok(None);
        }
        let target = Path::new(self.memory.vm_name.as_str()).join(file);
        if self.volume().read_link(link)?.as_deref() != Some(&target) {
            let aside = self.path_aside(link);
            self.volume().remove_file(&aside)?;
            self.volume().symlink(&target, &aside)?;
            self.volume().rename(&aside, link)?;
        }
        self.volume().sync(durable::parent(link))?;
        if self.spool.is_superseded(&self.memory)? {
            // Claimed just now; it may have looked for the link before it was there.
            self.spool.retire(&self.memory)?;
            return Ok(None);
        }
        Ok(Some(link.to_path_buf()))
    }

    /// Links are made in the job's own staging neighbourhood, so that a sweep finds strays.
    fn path_aside(&self, link: &Path) -> PathBuf {
        link.with_file_name(format!(".{}.link{}", self.id(), durable::ASIDE_SUFFIX))
    }

    fn tell_published(&mut self, result: &Path, link: Option<PathBuf>) -> Result<()> {
        if self.record.state == JobState::Completed {
            // Whoever told it may have died before it was durable.
            return self.volume().sync(&self.spool.directories.records());
        }
        let mut outputs: Vec<PathBuf> = link.into_iter().collect();
        for entry in self.volume().read_dir(result)? {
            outputs.push(result.join(entry.name));
        }
        outputs.sort_unstable();
        self.record.outputs = outputs;
        self.tell_completed()
    }

    pub(super) fn tell_completed(&mut self) -> Result<()> {
        self.record.state = JobState::Completed;
        self.record.phase = Phase::Publish;
        self.record.error = None;
        self.record.progress.bytes_done = self.record.progress.bytes_total;
        self.record.progress.percent = 100.0;
        self.record.progress.eta_seconds = None;
        self.record.finished_at = Some(record::timestamp(SystemTime::now()));
        self.save_record(true)
    }

    fn archive_source(&self) -> Result<()> {
        if self.spool.policy.archive == Archive::Delete {
            return durable::remove_tree(self.volume(), &self.source_dir());
        }
        self.move_source_into(&self.spool.directories.processed())
            .map(|_| ())
    }

    /// Moves what was dropped into an archive directory; returns the names it got there.
    pub(super) fn move_source_into(&self, archive: &Path) -> Result<Vec<(String, String)>> {
        let source = self.source_dir();
        if self.volume().stat(&source)?.is_none() {
            return Ok(Vec::new());
        }
        let mut moved = Vec::new();
        for entry in self.volume().read_dir(&source)? {
            let name = entry.name.to_string_lossy().into_owned();
            let tag = self.id().to_string();
            let from = source.join(&entry.name);
            // No drop's name may be taken for a report of ours, or stand where one will.
            let named = if name.ends_with(REPORT_SUFFIX) {
                durable::tagged(&name, &tag)
            } else {
                name.clone()
            };
            if let Some(to) = durable::move_into(self.volume(), &from, archive, &named, &tag)? {
                let archived = to
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                moved.push((name, archived));
            }
        }
        self.volume().sync(archive)?;
        self.volume().sync(&source)?;
        Ok(moved)
    }
}
