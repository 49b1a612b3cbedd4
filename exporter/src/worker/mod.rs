//! Hands an export over: to a directory, to `hyper2kvm convert`, or to an instance's queue.
//!
//! The only room that knows the queue; `service` does the same unattended, by request. A
//! submission becomes visible by one rename; what is not handed over is removed again.
pub mod daemon;
pub mod direct;
pub mod follow;
mod import;
pub mod ledger;
pub mod service;
mod staging;
mod stream;
mod submit;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use queue::instance::Instance;
use queue::job::JobId;

use crate::error::{Error, ErrorKind, Result};
use crate::export::{Export, Form};
use crate::machine::Delivered;
use crate::transfer::{Algorithm, Monitor};
use daemon::Presence;
use follow::{Ending, Follow, Patience};
use ledger::FileLedger;
use staging::Staging;
pub use submit::end_streams;

/// Our own converter reads it, and at once.
const FOR_US: Form = Form {
    checksum: Algorithm::Blake3,
    manifest: true,
};

/// What becomes of the VM's disks.
#[derive(Debug, Clone)]
pub enum Route {
    /// `<output>/<vm>/` with the disks and, if asked for, `manifest.json`.
    Directory { output: PathBuf, manifest: bool },
    /// Converted by `hyper2kvm convert`; the disks stay in `<keep>/<vm>/`, if given.
    Convert {
        converter: PathBuf,
        keep: Option<PathBuf>,
    },
    /// Through the instance's queue, streamed where that can be; converted directly if its daemon
    /// does not run.
    Queue {
        converter: PathBuf,
        patience: Patience,
    },
}

/// An export and where it goes.
pub struct Task {
    pub export: Export,
    pub instance: Instance,
    pub route: Route,
    /// The export's own, for what it owes to the queue.
    pub ledger: Arc<FileLedger>,
    /// Defines the converted VM in libvirt, at the instance's URI.
    pub define: bool,
    /// Hides the converter's own progress.
    pub quiet: bool,
}

#[derive(Debug)]
pub struct Outcome {
    pub ending: Ending,
    /// The converter's id of the job, if it has one.
    pub job: Option<JobId>,
    pub disks: Vec<Delivered>,
    /// Whether the conversion went on without the daemon that was asked for.
    pub fell_back: bool,
}

impl Outcome {
    fn new(ending: Ending, disks: Vec<Delivered>) -> Self {
        Self {
            ending,
            job: None,
            disks,
            fell_back: false,
        }
    }
}

impl Task {
    /// Whether the instance's daemon runs, if the route asks for one.
    pub fn presence(&self) -> Option<Presence> {
        matches!(self.route, Route::Queue { .. }).then(|| daemon::look(&self.instance))
    }

    pub fn run(&self, monitor: &dyn Monitor) -> Result<Outcome> {
        match &self.route {
            Route::Directory { output, manifest } => {
                let form = Form {
                    checksum: Algorithm::Sha256,
                    manifest: *manifest,
                };
                let (directory, disks) = self.keep(output, form, monitor)?;
                let outputs = vec![directory];
                Ok(Outcome::new(Ending::Completed { outputs }, disks))
            }
            Route::Convert { converter, keep } => self.convert(converter, keep.as_deref(), monitor),
            Route::Queue {
                converter,
                patience,
            } => self.submit_or_convert(converter, *patience, monitor),
        }
    }

    fn submit_or_convert(
        &self,
        converter: &Path,
        patience: Patience,
        monitor: &dyn Monitor,
    ) -> Result<Outcome> {
        let service = self.instance.service();
        match daemon::look(&self.instance) {
            Presence::Running { paused, beats } => {
                if paused {
                    monitor.warn(&format!(
                        "{service} is paused: hyperctl resume lets it go on"
                    ));
                }
                self.submit(beats && !self.export.as_ova, patience, monitor)
            }
            Presence::Absent => {
                let converter_name = converter.display();
                monitor.warn(&format!(
                    "{service} is not running: converting directly with {converter_name}"
                ));
                let mut outcome = self.convert(converter, None, monitor)?;
                outcome.fell_back = true;
                Ok(outcome)
            }
        }
    }

    /// Exports to `<output>/<vm>/`, whole or not at all.
    fn keep(
        &self,
        output: &Path,
        form: Form,
        monitor: &dyn Monitor,
    ) -> Result<(PathBuf, Vec<Delivered>)> {
        let name = self.export.name.as_str();
        let target = output.join(name);
        if target.symlink_metadata().is_ok() {
            return Err(staging::taken(&target));
        }
        let job = JobId::new();
        let staging = Staging::create(output, job)?;
        let disks = self.export.fill(staging.directory(), job, form, monitor)?;
        Ok((staging.publish(name)?, disks))
    }

    fn convert(
        &self,
        converter: &Path,
        keep: Option<&Path>,
        monitor: &dyn Monitor,
    ) -> Result<Outcome> {
        let run = |directory: &Path| {
            let call = direct::Call {
                converter,
                job: directory,
                vm: &self.export.name,
                instance: &self.instance,
                define: self.define,
                quiet: self.quiet,
            };
            call.run(monitor)
        };
        if let Some(keep) = keep {
            let form = Form {
                checksum: Algorithm::Sha256,
                manifest: true,
            };
            let (directory, disks) = self.keep(keep, form, monitor)?;
            return Ok(Outcome::new(run(&directory)?, disks));
        }
        let job = JobId::new();
        // Beside the result: there is room for it, and data can be shared.
        let staging = Staging::create(&self.instance.directories.output, job)?;
        let disks = self
            .export
            .fill(staging.directory(), job, FOR_US, monitor)?;
        Ok(Outcome::new(run(staging.directory())?, disks))
    }

    fn submit(
        &self,
        is_streamed: bool,
        patience: Patience,
        monitor: &dyn Monitor,
    ) -> Result<Outcome> {
        let dropped = match is_streamed {
            true => self.drop_streamed(monitor)?,
            false => self.drop_whole(monitor)?,
        };
        let (directories, drop) = (&self.instance.directories, dropped.drop.to_string());
        let mut follow = Follow::new(directories, &drop, dropped.marks);
        let mut outcome = Outcome::new(follow.run(patience, monitor)?, dropped.disks);
        outcome.job = follow.job();
        if let (true, Ending::Completed { .. }) = (self.define, &outcome.ending) {
            self.import(outcome.job, patience, monitor)?;
        }
        Ok(outcome)
    }

    fn import(&self, job: Option<JobId>, patience: Patience, monitor: &dyn Monitor) -> Result<()> {
        let name = &self.export.name;
        let job = job.ok_or_else(|| {
            let service = self.instance.service();
            Error::new(
                ErrorKind::Unsupported,
                format!("{name} is converted, but {service} keeps no records to define it by"),
            )
            .with_remedy("define it with virsh define")
        })?;
        let directories = &self.instance.directories;
        import::import(directories, job, name, patience.timeout, monitor)
    }
}
