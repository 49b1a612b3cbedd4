//! An export whose disks are converted while they arrive: its job directory becomes a drop of the
//! target queue when the downloads begin.
//!
//! `Memory::streamed` is durable before the drop is seen, so that whoever finds the export of a
//! dead process can tell the conversion that no more comes.
use super::growing::Growing;
use super::held::Job;
use super::memory::{DropKind, Stage, Streamed, StreamedDisk};
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::job::end::{self, End};
use crate::job::manifest::{self, Manifest};
use crate::job::{Delivery, JobId};

impl Job {
    /// Drops what is staged, a job directory whose manifest names `files` as growing disks, into
    /// the target queue, under a name of its own for each attempt, which comes with the files: they
    /// are to be appended to.
    pub fn stream(&mut self, files: &[String]) -> Result<(JobId, Vec<Growing>)> {
        let Some(target) = self.memory.target.clone() else {
            let what = format!("{} is streamed nowhere", self.id());
            return Err(Error::new(ErrorKind::Internal, what));
        };
        let staging = self.staging_dir();
        let growing: Result<Vec<Growing>> = files
            .iter()
            .map(|file| Growing::create(&staging, file))
            .collect();
        let growing = growing?;
        durable::sync_tree(self.volume(), &staging)?;
        self.volume().sync(durable::parent(&staging))?;
        let drop = JobId::new();
        let disk = |file: &String| StreamedDisk {
            file: file.clone(),
            checksum: None,
        };
        self.memory.streamed = Some(Streamed {
            drop,
            disks: files.iter().map(disk).collect(),
        });
        self.spool.save_memory(&self.memory)?;
        let visible = target.queue.join(drop.to_string());
        self.volume().rename(&staging, &visible)?;
        self.volume().sync(&target.queue)?;
        self.volume().sync(durable::parent(&staging))?;
        self.record.delivered = Some(Delivery {
            instance: target.instance,
            queue: target.queue,
            drop: drop.to_string(),
        });
        self.save_record(false)?;
        Ok((drop, growing))
    }

    /// All streamed disks are durable, and what they were to be; `checksums` are of their files, in
    /// their order. From here on the export cannot fail: its disks' ends are to be declared, by who
    /// holds them or at the delivery.
    pub fn end_stream(&mut self, checksums: impl IntoIterator<Item = String>) -> Result<()> {
        let Some(streamed) = &mut self.memory.streamed else {
            return Ok(());
        };
        for (disk, checksum) in streamed.disks.iter_mut().zip(checksums) {
            disk.checksum = Some(checksum);
        }
        let name = streamed.drop.to_string();
        self.note_delivering(Stage::Delivering { name })
    }

    /// Of every disk that still can be found: the others are no longer waited for.
    pub(super) fn declare_ends(&self) -> Result<()> {
        self.for_each_streamed(|growing, disk| growing.declare_end(disk.checksum.as_deref()))
    }

    /// Tells whoever reads what was streamed that no more of it comes, and why.
    pub fn abort_stream(&mut self, why: &str) -> Result<()> {
        if self.memory.streamed.is_none() {
            return Ok(());
        }
        self.for_each_streamed(|growing, _| growing.declare_aborted(why))?;
        self.memory.streamed = None;
        self.spool.save_memory(&self.memory)
    }

    /// Gives back the room of disks that an export of ours streamed into this job and never
    /// finished: their names stay, with the ends that say why.
    pub(super) fn discard_aborted(&self) -> Result<()> {
        let owner = self.owner_path();
        let bytes = match self.memory.kind {
            DropKind::Directory => self.volume().read(&owner, manifest::MAX_BYTES)?,
            _ => None,
        };
        let Some(Ok(manifest)) = bytes.map(|bytes| Manifest::parse(&bytes)) else {
            return Ok(());
        };
        let metadata = manifest.metadata.as_ref();
        if metadata.is_none_or(|it| it.get(manifest::MADE_BY).is_none()) {
            return Ok(());
        }
        for disk in manifest.disks.iter().filter(|disk| disk.growing) {
            let path = owner.with_file_name(&disk.local_path);
            let end = owner.with_file_name(end::name_of(&disk.local_path));
            let end = self.volume().read(&end, end::MAX_BYTES)?;
            let end = end.map(|bytes| End::parse(&bytes, &disk.local_path));
            if let Some(Ok(End::Aborted { .. })) = end {
                durable::replace(self.volume(), &path, b"")?;
            }
        }
        Ok(())
    }

    fn for_each_streamed(&self, act: impl Fn(&Growing, &StreamedDisk) -> Result<()>) -> Result<()> {
        let (Some(streamed), Some(target)) = (&self.memory.streamed, &self.memory.target) else {
            return Ok(());
        };
        // Else an unmounted file system would look like a conversion that is over.
        self.check_target(target)?;
        for disk in &streamed.disks {
            if let Some(growing) = Growing::find(&target.queue, streamed.drop, &disk.file)? {
                act(&growing, disk)?;
            }
        }
        Ok(())
    }
}
