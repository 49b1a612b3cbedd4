//! `hyper2kvm daemon`: finds the instance and runs it.
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use converter::error::{Error, Result};
use queue::instance::config::GuestFix;
use queue::instance::{self, Config, Instance};

/// What the command line says about the daemon.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Options {
    /// The instance to run: its configuration is NAME.toml, its directories NAME-queue and so on
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    pub instance: Option<String>,
    /// Read this configuration file instead of the instance's
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Watch this directory for drops
    #[arg(long, value_name = "DIR")]
    pub watch_dir: Option<PathBuf>,
    /// Publish results in this directory
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// Keep working files in this directory
    #[arg(long, value_name = "DIR")]
    pub work_dir: Option<PathBuf>,
    /// Do not repair guests
    #[arg(long)]
    pub no_fix: bool,
    /// error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: Option<tracing::Level>,
}

#[derive(clap::Parser)]
#[command(name = "hyper2kvm", version)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    Daemon(Options),
}

pub fn main() -> ExitCode {
    let Verb::Daemon(options) = <Command as clap::Parser>::parse().verb;
    run(&options)
}

/// Runs the daemon; the exit code tells a wrong configuration (2) from trouble (1).
pub fn run(options: &Options) -> ExitCode {
    crate::journal::start(options.log_level.unwrap_or(tracing::Level::INFO));
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

fn complain(error: &Error, code: u8) -> ExitCode {
    let mut line = error.to_string();
    for below in error.chain() {
        line.push_str(": ");
        line.push_str(&below);
    }
    if let Some(remedy) = &error.remedy {
        line.push_str("; ");
        line.push_str(remedy);
    }
    tracing::error!("{line}");
    ExitCode::from(code)
}

fn load(options: &Options) -> Result<Instance> {
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
    if options.no_fix {
        instance.config.guest.fix = GuestFix::Off;
    }
    Ok(instance)
}

/// A configuration file is named after its instance.
fn instance_of(path: &Path) -> String {
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
