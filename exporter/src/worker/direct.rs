//! Conversion without a daemon: runs `hyper2kvm convert` on a job directory.
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use queue::instance::config::Digest;
use queue::instance::{Compress, GuestFix, Instance, OnConflict};
use queue::job::VmName;

use super::follow::Ending;
use crate::error::{Error, ErrorKind, Result};
use crate::transfer::Monitor;

const TICK: Duration = Duration::from_millis(50);
const PROGRAM: &str = "hyper2kvm";

/// `hyper2kvm` beside this program if it is there, else the one that PATH finds.
pub fn default_converter() -> PathBuf {
    let beside = std::env::current_exe()
        .ok()
        .map(|path| path.with_file_name(PROGRAM));
    beside
        .filter(|path| path.is_file())
        .unwrap_or_else(|| PathBuf::from(PROGRAM))
}

/// A conversion of a job directory, with the instance's settings and into its output directory.
pub struct Call<'a> {
    pub converter: &'a Path,
    pub job: &'a Path,
    pub vm: &'a VmName,
    pub instance: &'a Instance,
    /// Defines the result in libvirt, too.
    pub define: bool,
    /// Its own progress is not shown, and the error's text is what it said last.
    pub quiet: bool,
}

impl Call<'_> {
    pub fn run(&self, monitor: &dyn Monitor) -> Result<Ending> {
        let converter = self.converter;
        let mut command = self.command();
        // This program's standard output carries its own answer.
        command.stdin(Stdio::null()).stdout(Stdio::null());
        if self.quiet {
            command.stderr(Stdio::piped());
        }
        monitor.begin("hyper2kvm convert", 0);
        let mut child = command.spawn().map_err(|error| {
            Error::io("run", converter, error)
                .with_remedy("install hyper2kvm, or name it with --hyper2kvm-path")
        })?;
        // Read aside, so that a talkative child never waits for us.
        let said = child.stderr.take().map(|stderr| {
            std::thread::spawn(move || std::io::read_to_string(stderr).unwrap_or_default())
        });
        let Some(status) = wait(&mut child, monitor)? else {
            return Ok(Ending::Interrupted);
        };
        let said = said
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default();
        if status.success() {
            let outputs = outputs(self.vm, self.instance);
            if outputs.is_empty() {
                let (vm, output) = (self.vm, self.instance.directories.output.display());
                let text = format!("hyper2kvm convert left no result for {vm} in {output}\n");
                return Ok(Ending::Failed(text));
            }
            return Ok(Ending::Completed { outputs });
        }
        Ok(Ending::Failed(if said.trim().is_empty() {
            format!("{} convert failed ({status})\n", converter.display())
        } else {
            said
        }))
    }

    fn command(&self) -> Command {
        let (instance, config) = (self.instance, &self.instance.config);
        let compress = match config.compress {
            Compress::None => "none",
            Compress::Zlib => "zlib",
            Compress::Zstd => "zstd",
        };
        let mut command = Command::new(self.converter);
        command
            .arg("convert")
            .arg(self.job)
            .arg("--output")
            .arg(&instance.directories.output)
            .args([
                "--format",
                config.out_format.as_str(),
                "--compress",
                compress,
            ]);
        if config.strict_window {
            command.arg("--strict-window");
        }
        if config.digest == Digest::Always {
            command.arg("--digest");
        }
        if config.guest.fix == GuestFix::Off {
            command.arg("--no-fix");
        }
        if config.on_conflict == OnConflict::Replace {
            command.arg("--overwrite");
        }
        if self.define {
            command.arg(format!("--libvirt={}", config.libvirt.uri));
        }
        command
    }
}

/// `None` if the user interrupted it; the child is then gone as well.
fn wait(child: &mut Child, monitor: &dyn Monitor) -> Result<Option<std::process::ExitStatus>> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::Io, "wait for hyper2kvm convert").with_source(error)
    };
    let mut told = false;
    loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            return Ok((!told).then_some(status));
        }
        if monitor.is_cancelled() && !told {
            told = true;
            if let Ok(pid) = i32::try_from(child.id()) {
                // It may be gone by itself; the next look tells.
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
        }
        std::thread::sleep(TICK);
    }
}

/// What of the usual results is there.
fn outputs(vm: &VmName, instance: &Instance) -> Vec<PathBuf> {
    let format = instance.config.out_format.as_str();
    let directories = &instance.directories;
    [
        directories.result_link(vm, format),
        directories.result(vm).join(format!("{vm}.{format}")),
    ]
    .into_iter()
    .filter(|path| path.exists())
    .take(1)
    .collect()
}
