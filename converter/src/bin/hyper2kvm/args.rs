//! The command line of `hyper2kvm`: types and help, nothing else.
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use queue::instance::config::{Accel, Compress, OutFormat};

/// Converts virtual machines from VMware to qcow2 disks that run under KVM
#[derive(Debug, Parser)]
#[command(
    name = "hyper2kvm",
    version,
    after_help = "Exit codes: 0 done, 1 the work failed, 2 wrong usage or configuration."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch a queue directory and convert what is dropped there, until stopped
    Daemon(DaemonArgs),
    /// Convert now, without a daemon
    Convert(ConvertArgs),
    /// Show what a disk, an appliance or a manifest holds
    Inspect(InspectArgs),
    /// Put the files of a repaired guest back as they were before its repair
    Undo(UndoArgs),
    /// Read an image again and compare its content digest
    Verify(VerifyArgs),
    /// Check a configuration file and show the directories it leads to
    CheckConfig(CheckConfigArgs),
    /// Serve one appliance session on standard input and output: only this program calls it
    #[command(hide = true)]
    Appliance,
}

#[derive(Debug, Clone, Default, Args)]
pub struct DaemonArgs {
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

#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// A disk or an OVA (also as .gz, .xz or .zst), an OVF, a manifest (*.json) or a job directory
    #[arg(required = true, value_name = "SOURCE")]
    pub sources: Vec<PathBuf>,
    /// The image to write, or the directory to put VM/VM.qcow2 and a link to it into
    #[arg(
        short,
        long,
        value_name = "FILE_OR_DIR",
        long_help = "The image to write, or an existing directory (or a path ending in /) that \
                     gets a directory per VM with its disks, domain.xml and metadata.json, and a \
                     link VM.qcow2 to its first disk. Several sources, or a VM of several disks, \
                     need a directory."
    )]
    pub output: PathBuf,
    /// The target's format; else by FILE's extension, what a manifest asks for, qcow2
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Compress the target; what a manifest asks for, else none
    #[arg(long, value_enum)]
    pub compress: Option<Compression>,
    /// With zlib: carry no stream of the source over, deflate with a window of 4 KiB
    #[arg(long)]
    pub strict_window: bool,
    /// Compute the content digest even of data that is shared by reflink and need not be read
    #[arg(long)]
    pub digest: bool,
    /// Name the VM; else its source's own name
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Worker threads; 0 is one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Replace a result that is there already
    #[arg(long)]
    pub overwrite: bool,
    /// Do not verify the checksums of manifests and .mf files
    #[arg(long)]
    pub no_checksum: bool,
    /// Do not repair the guest
    #[arg(long)]
    pub no_fix: bool,
    /// Boot the result once and keep boot.log and boot.png
    #[arg(long)]
    pub boot_check: bool,
    /// How the appliance and the boot check run: KVM if it works, or emulation
    #[arg(long, value_enum, default_value_t = Acceleration::Auto)]
    pub accel: Acceleration,
    /// Define the result in libvirt; --output is a directory then
    #[arg(long, value_name = "URI", num_args = 0..=1, require_equals = true,
          default_missing_value = "qemu:///system")]
    pub libvirt: Option<String>,
    /// A further directory beneath which files named by a source may lie
    #[arg(long = "source-root", value_name = "DIR")]
    pub source_roots: Vec<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A disk or an OVA (also as .gz, .xz or .zst), an OVF, a manifest (*.json) or a job directory
    #[arg(value_name = "SOURCE")]
    pub source: PathBuf,
    /// How the appliance runs: KVM if it works, or emulation
    #[arg(long, value_enum, default_value_t = Acceleration::Auto)]
    pub accel: Acceleration,
    /// Look at the guest as well: its system, kernels, disks and boot loader, in an appliance
    #[arg(long)]
    pub guest: bool,
    /// With --guest: a file with the key of an encrypted disk
    #[arg(long = "key-file", value_name = "FILE", requires = "guest")]
    pub key_files: Vec<PathBuf>,
    /// A further directory beneath which files named by the source may lie
    #[arg(long = "source-root", value_name = "DIR")]
    pub source_roots: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct UndoArgs {
    /// A result's directory, or its first image
    #[arg(value_name = "RESULT")]
    pub result: PathBuf,
    /// Put back files that were changed after the repair, too
    #[arg(long)]
    pub force: bool,
    /// How the appliance runs: KVM if it works, or emulation
    #[arg(long, value_enum, default_value_t = Acceleration::Auto)]
    pub accel: Acceleration,
    /// A file with the key of an encrypted disk
    #[arg(long = "key-file", value_name = "FILE")]
    pub key_files: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// A qcow2 that this program wrote
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,
    /// Compare with this file; else with metadata.json beside the image
    #[arg(long, value_name = "FILE")]
    pub metadata: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct CheckConfigArgs {
    /// The file to check; else that of the instance
    #[arg(value_name = "FILE", conflicts_with = "instance")]
    pub file: Option<PathBuf>,
    /// Check the configuration of this instance
    #[arg(long, value_name = "NAME")]
    pub instance: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Qcow2,
    Raw,
}

impl Format {
    /// What an image's name says.
    pub fn of_file(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "qcow2" => Some(Self::Qcow2),
            "raw" | "img" => Some(Self::Raw),
            _ => None,
        }
    }
}

impl From<Format> for OutFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Qcow2 => Self::Qcow2,
            Format::Raw => Self::Raw,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    None,
    Zlib,
    Zstd,
}

impl From<Compression> for Compress {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::None => Self::None,
            Compression::Zlib => Self::Zlib,
            Compression::Zstd => Self::Zstd,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Acceleration {
    Auto,
    Kvm,
    Tcg,
}

impl From<Acceleration> for Accel {
    fn from(acceleration: Acceleration) -> Self {
        match acceleration {
            Acceleration::Auto => Self::Auto,
            Acceleration::Kvm => Self::Kvm,
            Acceleration::Tcg => Self::Tcg,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_help_is_whole() {
        Cli::command().debug_assert();
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{}", argument.get_id());
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }
}
