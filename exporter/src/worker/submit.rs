//! One export into an instance's queue, now: whole, or streamed while it arrives.
//!
//! What a run streams is in its ledger first: should it die, the next one tells the conversion.
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use queue::job::JobId;
use queue::spool::growing::Growing;
use queue::spool::submit::{self, Submission};

use super::follow::Marks;
use super::ledger::FileLedger;
use super::stream::{Brought, Outlet, Streaming};
use super::{FOR_US, Task};
use crate::error::{Error, ErrorKind, Result};
use crate::export;
use crate::machine::{Debt, Delivered, Exported, Ledger};
use crate::transfer::Monitor;

/// As debts of no server: a disk that a conversion waits for.
const PROVIDER: &str = "queue";
const DEBT: &str = "growing";

/// A job directory in the queue.
pub(super) struct Dropped {
    pub drop: JobId,
    pub disks: Vec<Delivered>,
    /// As it was before.
    pub marks: Marks,
}

impl Task {
    pub(super) fn drop_whole(&self, monitor: &dyn Monitor) -> Result<Dropped> {
        let submission = submit::stage(&self.instance.directories)?;
        let (directory, drop) = (submission.directory(), submission.job());
        let disks = self.export.fill(directory, drop, FOR_US, monitor)?;
        self.publish(submission, disks)
    }

    fn publish(&self, submission: Submission, disks: Vec<Delivered>) -> Result<Dropped> {
        let drop = submission.job();
        let marks = Marks::take(&self.instance, &self.export.name);
        submission.publish()?;
        Ok(Dropped { drop, disks, marks })
    }

    /// Streams if the provider can; an error leaves no conversion that waits.
    pub(super) fn drop_streamed(&self, monitor: &dyn Monitor) -> Result<Dropped> {
        let directories = &self.instance.directories;
        let marks = Marks::take(&self.instance, &self.export.name);
        let submission = submit::stage(directories)?;
        let (drop, staging) = (submission.job(), submission.directory().to_path_buf());
        let outlet = Owed {
            task: self,
            staged: Mutex::new(Some(submission)),
        };
        let streaming = Streaming::new(&outlet, directories);
        let (export, checksum) = (&self.export, FOR_US.checksum);
        let fetched = export.fetch(&staging, checksum, Some(&streaming), monitor);
        let brought = streaming.judge(fetched);
        let why = match &brought {
            Ok(Brought::Anew(error)) | Err(error) => error.to_line(),
            Ok(_) => "its export is over".to_owned(),
        };
        if let Err(error) = end_streams(&self.ledger, &why) {
            monitor.warn(&error.to_line());
        }
        let staged = outlet.staged.into_inner();
        let staged = staged.unwrap_or_else(PoisonError::into_inner);
        let disks = match (brought?, staged) {
            (Brought::All(exported), Some(submission)) => {
                export::write(&staging, &export.manifest(&exported, drop, false))?;
                return self.publish(submission, exported.disks);
            }
            (Brought::All(exported), None) => exported.disks,
            (Brought::Over(_), _) => Vec::new(),
            (Brought::Anew(error), _) => {
                let why = error.to_line();
                monitor.warn(&format!("{why}; exporting without streaming"));
                return self.drop_whole(monitor);
            }
        };
        Ok(Dropped { drop, disks, marks })
    }
}

/// The run's ledger remembers what is streamed.
struct Owed<'a> {
    task: &'a Task,
    /// Until it is dropped.
    staged: Mutex<Option<Submission>>,
}

impl Outlet for Owed<'_> {
    fn open(&self, expected: &Exported, files: &[String]) -> Result<(JobId, Vec<Growing>)> {
        let mut staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner);
        let again = || Error::new(ErrorKind::Internal, "it is streamed already");
        let submission = staged.take().ok_or_else(again)?;
        let (drop, directory) = (submission.job(), submission.directory());
        export::write(directory, &self.task.export.manifest(expected, drop, true))?;
        let growing: Result<Vec<Growing>> =
            files.iter().map(|file| submission.grow(file)).collect();
        let growing = growing?;
        for file in files {
            self.task.ledger.owe(&Debt {
                provider: PROVIDER.to_owned(),
                server: self.task.instance.directories.queue.display().to_string(),
                kind: DEBT.to_owned(),
                of: drop.to_string(),
                name: file.clone(),
            })?;
        }
        submission.publish()?;
        Ok((drop, growing))
    }

    /// What each disk's end says is all there is to know.
    fn close(&self, _: &[Delivered]) -> Result<()> {
        Ok(())
    }
}

/// Ends what the run of `ledger` streamed and does no longer: what has no end yet is aborted.
pub fn end_streams(ledger: &FileLedger, why: &str) -> Result<()> {
    let debts = ledger.debts().into_iter();
    for debt in debts.filter(|debt| debt.provider == PROVIDER) {
        let queue = PathBuf::from(&debt.server);
        let is_there = queue.try_exists().unwrap_or(true);
        if let (true, Ok(drop)) = (is_there, debt.of.parse::<JobId>()) {
            let found = Growing::find(&queue, drop, &debt.name)?;
            if let Some(growing) = found
                && !growing.has_end()?
            {
                growing.declare_aborted(why)?;
            }
        }
        ledger.settle(&debt)?;
    }
    Ok(())
}
