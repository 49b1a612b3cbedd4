//! `hypervisord`: the export service's program.
mod args;

use std::process::ExitCode;

use args::{CheckConfigArgs, Cli, Command, DaemonArgs};
use clap::Parser;
use exporter::error::{Error, Result};
use exporter::export::Origin;
use exporter::provider::secret::Secret;
use exporter::provider::vsphere;
use exporter::worker::service::{self, Settings};
use queue::instance::exports::{self, ExportsConfig, Server};
use queue::job::Failure;

const FAILED: u8 = 1;
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Daemon(args) => daemon(&args),
        Command::CheckConfig(args) => match check(&args) {
            Ok(found) => {
                found.lines.iter().for_each(|line| println!("{line}"));
                for error in &found.errors {
                    eprint!("hypervisord: {}", Failure::from(error).to_text());
                }
                match found.errors.is_empty() {
                    true => ExitCode::SUCCESS,
                    false => ExitCode::from(WRONG_USAGE),
                }
            }
            Err(error) => {
                eprint!("hypervisord: {}", Failure::from(&error).to_text());
                ExitCode::from(WRONG_USAGE)
            }
        },
    }
}

/// The exit code tells a wrong configuration (2) from trouble (1).
fn daemon(args: &DaemonArgs) -> ExitCode {
    let level = args.log_level.unwrap_or(tracing::Level::INFO);
    queue::service::journal::start("hypervisord", level);
    let complain = |error: &Error, code: u8| {
        tracing::error!("{}", error.to_line());
        ExitCode::from(code)
    };
    let settings = match load(args) {
        Ok(settings) => settings,
        Err(error) => return complain(&error, WRONG_USAGE),
    };
    match service::run(settings, &|| load(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error, FAILED),
    }
}

fn load(args: &DaemonArgs) -> Result<Settings> {
    let config = match &args.config {
        Some(path) => ExportsConfig::read(path)?,
        None => ExportsConfig::load(&exports::config_path())?,
    };
    let mut settings = Settings::new(config);
    let named = [&args.requests_dir, &args.output_dir, &args.work_dir];
    settings.directories.replace(named)?;
    settings.directories.check()?;
    Ok(settings)
}

/// What a configuration leads to, and what is wrong with its servers.
struct Found {
    lines: Vec<String>,
    errors: Vec<Error>,
}

fn check(args: &CheckConfigArgs) -> Result<Found> {
    let usual = exports::config_path();
    let path = args.file.as_deref().unwrap_or(&usual);
    let config = match &args.file {
        Some(path) => ExportsConfig::read(path)?,
        None => ExportsConfig::load(path)?,
    };
    let settings = Settings::new(config);
    settings.directories.check()?;
    let absent = if path.exists() {
        ""
    } else {
        " (absent: no servers)"
    };
    let mut lines = vec![format!("{}{absent}: ok", path.display())];
    lines.extend(settings.directories.lines("requests"));
    let mut errors = Vec::new();
    for (name, server) in &settings.config.server {
        let limit = match server.max_concurrent {
            Some(limit) => format!(", at most {limit} at once"),
            None => String::new(),
        };
        let trust = if server.insecure { ", insecure" } else { "" };
        let provider = &server.provider;
        lines.push(format!("  server     {name} ({provider}{limit}{trust})"));
        match origin(name, server).and_then(|origin| origin.check()) {
            Ok(()) if is_password_unseen(server) => lines.push(format!(
                "             its password: credential {name}.password (LoadCredential=), which \
                 only the service sees"
            )),
            Ok(()) => {}
            Err(mut error) => {
                error.context = format!("server {name}: {}", error.context);
                errors.push(error);
            }
        }
    }
    Ok(Found { lines, errors })
}

/// Without its password, if that cannot be seen from here.
fn origin(name: &str, server: &Server) -> Result<Origin> {
    match is_password_unseen(server) {
        true => Origin::of(name, server, |_| Ok(Secret::new(""))),
        false => Origin::configured(name, server),
    }
}

/// systemd hands credentials to the service, and not to who checks its configuration.
fn is_password_unseen(server: &Server) -> bool {
    let is_handed_none = std::env::var_os("CREDENTIALS_DIRECTORY").is_none();
    server.provider == vsphere::NAME && server.password_file.is_none() && is_handed_none
}
