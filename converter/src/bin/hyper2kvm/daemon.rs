//! `hyper2kvm daemon`: finds the instance and runs it.
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use converter::error::{Error, Result};
use queue::instance::config::GuestFix;
use queue::instance::{self, Config, Instance};

use crate::args::DaemonArgs;

/// Runs the daemon; the exit code tells a wrong configuration (2) from trouble (1).
pub fn run(options: &DaemonArgs) -> ExitCode {
    keep_memory_together();
    let level = options.log_level.unwrap_or(tracing::Level::INFO);
    queue::service::journal::start("hyper2kvm", level);
    let options = options.clone();
    let loaded = match load(&options) {
        Ok(loaded) => loaded,
        Err(error) => return complain(&error, 2),
    };
    match converter::worker::run(loaded, &move || load(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error, 1),
    }
}

/// Every job has threads of its own; an arena of the allocator for each would keep their memory
/// apart for ever. The thresholds are the usual ones: left alone, they rise to the largest buffer
/// that a job ever freed, and so much stays with the process.
fn keep_memory_together() {
    use nix::libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt};
    const THRESHOLD_BYTES: i32 = 128 * 1024;
    for (setting, value) in [
        (M_ARENA_MAX, 2),
        (M_MMAP_THRESHOLD, THRESHOLD_BYTES),
        (M_TRIM_THRESHOLD, THRESHOLD_BYTES),
    ] {
        // SAFETY: mallopt(3) sets a number in the allocator, before any other thread is there.
        unsafe { mallopt(setting, value) };
    }
}

fn complain(error: &Error, code: u8) -> ExitCode {
    tracing::error!("{}", error.to_line());
    ExitCode::from(code)
}

fn load(options: &DaemonArgs) -> Result<Instance> {
    let name = options.instance.as_deref().unwrap_or(instance::DEFAULT);
    let mut instance = match &options.config {
        None => Instance::load(name)?,
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| Error::io("read configuration", path, error))?;
            Instance::with_config(&instance_of(path), Config::parse(&text, path)?)
        }
    };
    let directories = &mut instance.directories;
    for (option, directory) in [
        (&options.watch_dir, &mut directories.queue),
        (&options.output_dir, &mut directories.output),
        (&options.work_dir, &mut directories.work),
    ] {
        if let Some(path) = option {
            *directory = absolute(path)?;
        }
    }
    instance.directories.check()?;
    if options.no_fix {
        instance.config.guest.fix = GuestFix::Off;
    }
    Ok(instance)
}

/// A configuration file is named after its instance.
pub fn instance_of(path: &Path) -> String {
    let stem = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or(instance::DEFAULT);
    if stem == "hyper2kvm" || instance::check_name(stem).is_err() {
        instance::DEFAULT.to_owned()
    } else {
        stem.to_owned()
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Error::io("find", path, error))
}
