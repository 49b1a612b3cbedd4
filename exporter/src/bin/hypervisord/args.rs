//! The command line of `hypervisord`: types and help, nothing else.
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Exports virtual machines on request into the queues of hyper2kvm
#[derive(Debug, Parser)]
#[command(
    name = "hypervisord",
    version,
    after_help = "Exit codes: 0 done, 1 the work failed, 2 wrong usage or configuration."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch the requests directory and export what is asked for there, until stopped
    Daemon(DaemonArgs),
    /// Check a configuration file and show the directories and servers it leads to
    CheckConfig(CheckConfigArgs),
}

#[derive(Debug, Clone, Default, Args)]
pub struct DaemonArgs {
    /// Read this configuration file instead of hypervisord.toml
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Watch this directory for export requests
    #[arg(long, value_name = "DIR")]
    pub requests_dir: Option<PathBuf>,
    /// Keep records, heartbeat and error texts in this directory
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// Keep working files in this directory
    #[arg(long, value_name = "DIR")]
    pub work_dir: Option<PathBuf>,
    /// error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: Option<tracing::Level>,
}

#[derive(Debug, Args)]
pub struct CheckConfigArgs {
    /// The file to check; else hypervisord.toml in /etc/hyper2kvm or $HYPER2KVM_CONFIG_DIR
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
}
