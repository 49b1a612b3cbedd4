//! `hyper2kvm daemon`: finds the instance and runs it.
use std::process::ExitCode;

use converter::error::{Error, Result};
use queue::instance::config::GuestFix;
use queue::instance::{self, Instance};

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
        Some(path) => Instance::read(path)?,
    };
    let named = [&options.watch_dir, &options.output_dir, &options.work_dir];
    instance.directories.replace(named)?;
    instance.directories.check()?;
    if options.no_fix {
        instance.config.guest.fix = GuestFix::Off;
    }
    Ok(instance)
}
