//! One export: describes the VM, stages its disks and manifest, and hands them over.
//!
//! The only room that knows the providers and the queue. A submission becomes visible by one
//! rename; what is not handed over is removed again.
pub mod daemon;
pub mod direct;
pub mod follow;
mod manifest;
mod staging;

use std::path::{Path, PathBuf};

use queue::instance::Instance;
use queue::job::{JobId, VmName};
use queue::spool::submit;

use crate::error::{Error, ErrorKind, Result};
use crate::machine::{Delivered, Provider, Vm};
use crate::transfer::{Algorithm, Monitor};
use daemon::Presence;
use follow::{Ending, Follow, Marks, Patience};
use staging::Staging;

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
    /// Through the instance's queue; converted directly if its daemon does not run.
    Queue {
        converter: PathBuf,
        patience: Patience,
    },
}

/// An export that is described and not yet begun.
pub struct Export {
    provider: Box<dyn Provider>,
    pub vm: Vm,
    pub name: VmName,
    pub instance: Instance,
    pub route: Route,
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

impl Export {
    /// Finds the VM; changes nothing.
    pub fn describe(provider: Box<dyn Provider>, instance: Instance, route: Route) -> Result<Self> {
        let vm = provider.describe()?;
        let name = VmName::new(&vm.name)?;
        Ok(Self {
            provider,
            vm,
            name,
            instance,
            route,
            quiet: false,
        })
    }

    pub fn provider(&self) -> &'static str {
        self.provider.name()
    }

    /// Whether the instance's daemon runs, if the route asks for one.
    pub fn presence(&self) -> Option<Presence> {
        matches!(self.route, Route::Queue { .. }).then(|| daemon::look(&self.instance))
    }

    pub fn run(&self, monitor: &dyn Monitor) -> Result<Outcome> {
        match &self.route {
            Route::Directory { output, manifest } => self.to_directory(output, *manifest, monitor),
            Route::Convert { converter, keep } => self.convert(converter, keep.as_deref(), monitor),
            Route::Queue {
                converter,
                patience,
            } => match daemon::look(&self.instance) {
                Presence::Running { paused } => {
                    if paused {
                        let service = self.instance.service();
                        monitor.warn(&format!(
                            "{service} is paused: the job waits until hyperctl resume"
                        ));
                    }
                    self.submit(*patience, monitor)
                }
                Presence::Absent => {
                    monitor.warn(&format!(
                        "{} is not running: converting directly with {}",
                        self.instance.service(),
                        converter.display()
                    ));
                    let mut outcome = self.convert(converter, None, monitor)?;
                    outcome.fell_back = true;
                    Ok(outcome)
                }
            },
        }
    }

    fn to_directory(
        &self,
        output: &Path,
        manifest: bool,
        monitor: &dyn Monitor,
    ) -> Result<Outcome> {
        let (directory, disks) = self.fill_directory(output, manifest, monitor)?;
        Ok(Outcome {
            ending: Ending::Completed {
                outputs: vec![directory],
            },
            job: None,
            disks,
            fell_back: false,
        })
    }

    fn fill_directory(
        &self,
        output: &Path,
        manifest: bool,
        monitor: &dyn Monitor,
    ) -> Result<(PathBuf, Vec<Delivered>)> {
        let target = output.join(self.name.as_str());
        if target.symlink_metadata().is_ok() {
            return Err(staging::taken(&target));
        }
        let job = JobId::new();
        let staging = Staging::create(output, job)?;
        let disks = self.fill(
            staging.directory(),
            job,
            Algorithm::Sha256,
            manifest,
            monitor,
        )?;
        Ok((staging.publish(self.name.as_str())?, disks))
    }

    fn convert(
        &self,
        converter: &Path,
        keep: Option<&Path>,
        monitor: &dyn Monitor,
    ) -> Result<Outcome> {
        let run = |directory: &Path| {
            let instance = &self.instance;
            direct::convert(
                converter, directory, &self.name, instance, self.quiet, monitor,
            )
        };
        let (ending, disks) = if let Some(keep) = keep {
            let (directory, disks) = self.fill_directory(keep, true, monitor)?;
            (run(&directory)?, disks)
        } else {
            let job = JobId::new();
            // Beside the result: there is room for it, and data can be shared.
            let staging = Staging::create(&self.instance.directories.output, job)?;
            let disks = self.fill(staging.directory(), job, Algorithm::Blake3, true, monitor)?;
            (run(staging.directory())?, disks)
        };
        Ok(Outcome {
            ending,
            job: None,
            disks,
            fell_back: false,
        })
    }

    fn submit(&self, patience: Patience, monitor: &dyn Monitor) -> Result<Outcome> {
        let directories = &self.instance.directories;
        let submission = submit::stage(directories)?;
        let job = submission.job();
        let disks = self.fill(
            submission.directory(),
            job,
            Algorithm::Blake3,
            true,
            monitor,
        )?;
        let marks = Marks::take(&self.instance, &self.name);
        let drop = submission.publish()?;
        let mut follow = Follow::new(directories, &drop, marks);
        let ending = follow.run(patience, monitor)?;
        Ok(Outcome {
            ending,
            job: follow.job(),
            disks,
            fell_back: false,
        })
    }

    /// The disks first, the manifest that names them last.
    fn fill(
        &self,
        directory: &Path,
        job: JobId,
        checksum: Algorithm,
        with_manifest: bool,
        monitor: &dyn Monitor,
    ) -> Result<Vec<Delivered>> {
        let disks = self
            .provider
            .export(&self.vm, directory, checksum, monitor)?;
        if with_manifest {
            let manifest = manifest::build(&*self.provider, &self.vm, &disks, job);
            let mut text = serde_json::to_string_pretty(&manifest).map_err(|error| {
                Error::new(ErrorKind::Internal, "write the manifest").with_source(error)
            })?;
            text.push('\n');
            let path = directory.join(manifest::FILE_NAME);
            std::fs::write(&path, text).map_err(|error| Error::io("write", &path, error))?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o640);
            std::fs::set_permissions(&path, mode)
                .map_err(|error| Error::io("set the mode of", &path, error))?;
        }
        Ok(disks)
    }
}
