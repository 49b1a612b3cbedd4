//! The command line: what users of HyperSDK type, turned into exports to run.
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::vsphere::VsphereArgs;
use clap::{ArgAction, Parser, ValueEnum};
use exporter::error::{Error, ErrorKind, Result};
use exporter::export::{Origin, origin};
use exporter::provider::local::{Reach, is_url};
use exporter::worker::follow::Patience;
use exporter::worker::{Route, direct};
use queue::instance::{DEFAULT, Instance, config_path};
use queue::job::export::has_secret;

const MAX_BATCH_BYTES: u64 = 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProviderName {
    /// Files of this host, a mounted datastore, or a web server.
    Local,
    Vsphere,
    Aws,
    Azure,
    Gcp,
    Hyperv,
    Oci,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Ova,
    Vmdk,
}

/// Exports a VM now and converts it: through the instance's daemon if it runs, else directly.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "hyperexport",
    version,
    after_help = "Exit codes: 0 done, 1 the work failed, 2 wrong usage or configuration, \
                  3 timed out.\n\nOn a terminal and without arguments it asks for \
                  what an export needs, shows the plan and the command line, and starts when told \
                  to.\n\nWith provider local the VM is at --source; without it, --vm itself \
                  is the path. A .vmx or an OVF tells its name and hardware, with snapshots taken \
                  along; disks alone are named after their directory or file. Sources are copied, \
                  never moved or changed."
)]
pub struct Args {
    /// The VM: its name, inventory path, UUID or id; with provider local and no --source, its path
    /// or address
    #[arg(long, value_name = "NAME", required_unless_present_any = ["batch", "source", "list"])]
    pub vm: Option<String>,
    /// Where the VM comes from [default: local, or vsphere with --vcenter]
    #[arg(long, value_name = "P", value_enum)]
    pub provider: Option<ProviderName>,
    #[command(flatten)]
    pub vsphere: VsphereArgs,
    /// Lists the VMs that PATTERN means (name, path, folder, glob, UUID, id; with provider local a
    /// directory, as a mounted datastore) and exports none [default pattern: all]
    #[arg(long, value_name = "PATTERN", num_args = 0..=1, default_missing_value = "",
          conflicts_with_all = ["vm", "batch", "source"])]
    pub list: Option<String>,
    /// Provider local: a directory of disks, or with a .vmx, an OVF or an OVA; such a file, or one
    /// disk; or the http:// or https:// address of a disk or an OVA
    #[arg(long, value_name = "PATH|URL", conflicts_with = "batch")]
    pub source: Option<String>,
    /// Provider local: where the datastore is mounted that a .vmx calls /vmfs/volumes/NAME; may be
    /// given several times
    #[arg(long, value_name = "NAME=DIR", value_parser = datastore)]
    pub datastore: Vec<(String, PathBuf)>,
    /// Puts the disks into DIR/<vm>/; with --pipeline they are kept there, and the result goes to
    /// --hyper2kvm-output-dir
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Writes manifest.json beside the disks
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value_t = true, default_missing_value = "true", action = ArgAction::Set)]
    pub manifest: bool,
    /// Converts after the export [default: true with --hyper2kvm-daemon, else false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = ArgAction::Set)]
    pub pipeline: Option<bool>,
    /// The hyper2kvm program [default: beside this one, else from PATH]
    #[arg(long, value_name = "PATH")]
    pub hyper2kvm_path: Option<PathBuf>,
    /// Defines the converted VM in libvirt, at the instance's uri
    #[arg(long)]
    pub libvirt: bool,
    /// Submits to the instance's queue and waits, disks of a server while they are downloaded;
    /// without a running daemon converts directly
    #[arg(long)]
    pub hyper2kvm_daemon: bool,
    /// The instance to submit to
    #[arg(long, value_name = "NAME", default_value = DEFAULT)]
    pub hyper2kvm_instance: String,
    /// The instance's queue [default: as configured, else /var/lib/hyper2kvm/queue]
    #[arg(long, value_name = "DIR")]
    pub hyper2kvm_watch_dir: Option<PathBuf>,
    /// The instance's results [default: as configured, else /var/lib/hyper2kvm/output]
    #[arg(long, value_name = "DIR")]
    pub hyper2kvm_output_dir: Option<PathBuf>,
    /// How often the job is looked at (1 to 60)
    #[arg(long, value_name = "SECONDS", default_value_t = 5,
          value_parser = clap::value_parser!(u64).range(1..=60))]
    pub hyper2kvm_poll_interval: u64,
    /// When to stop waiting (1 to 240); the job itself goes on
    #[arg(long, value_name = "MINUTES", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=240))]
    pub hyper2kvm_daemon_timeout: u64,
    /// Exports every VM that FILE lists, one per line; # begins a comment
    #[arg(long, value_name = "FILE", conflicts_with = "vm")]
    pub batch: Option<PathBuf>,
    /// How many VMs of a batch at a time
    #[arg(long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u64).range(1..=64))]
    pub parallel: u64,
    /// Container of the exported disks: vmdk files [default], or one ova with --output; provider
    /// local copies disks as they are
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub format: Option<Format>,
    /// Says what would be done, and does nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Shows errors only
    #[arg(long)]
    pub quiet: bool,
    /// Prints the outcome as JSON, one object per VM and line
    #[arg(long)]
    pub json: bool,
}

/// One VM to export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// In the provider's words; of the local one, the path of its disks.
    pub vm: String,
    /// What it is to be called, if not as the provider calls it.
    pub name: Option<String>,
}

impl Args {
    /// Refuses what contradicts itself or is not in this version.
    pub fn check(&self) -> Result<()> {
        let provider = self.provider();
        if !matches!(provider, ProviderName::Local | ProviderName::Vsphere) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("provider {} is not in this version", value_name(provider)),
            )
            .with_remedy("export the VM's disks yourself and use --provider local --source"));
        }
        if provider == ProviderName::Local {
            self.check_local()?;
        } else if self.source.is_some() || !self.datastore.is_empty() {
            return Err(usage("--source and --datastore are of provider local"));
        }
        if self.list.is_some() {
            return Ok(());
        }
        if self.format.is_some() && provider == ProviderName::Local {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "--format does not apply to provider local, which copies disks as they are",
            )
            .with_remedy("leave --format out"));
        }
        if self.hyper2kvm_daemon && self.pipeline == Some(false) {
            return Err(usage("--hyper2kvm-daemon contradicts --pipeline=false"));
        }
        let converts = self.converts();
        if self.format == Some(Format::Ova) && (converts || self.output.is_none()) {
            return Err(usage("--format ova is for --output alone"));
        }
        if converts && !self.manifest {
            return Err(usage(
                "a conversion needs the manifest; leave --manifest=false out",
            ));
        }
        if self.libvirt && !converts {
            return Err(usage("--libvirt needs --pipeline or --hyper2kvm-daemon"));
        }
        if !converts && self.output.is_none() {
            return Err(usage(
                "nothing to do: give --output, --pipeline or --hyper2kvm-daemon",
            ));
        }
        Ok(())
    }

    fn check_local(&self) -> Result<()> {
        let named = [&self.source, &self.vm, &self.list];
        if named.iter().copied().flatten().any(|vm| has_secret(vm)) {
            return Err(secret());
        }
        let mut named = named.into_iter().flatten();
        let is_remote = self.batch.is_some() || named.any(|vm| is_url(vm));
        match self.vsphere.given(is_remote) {
            Some(flag) => Err(usage(&format!("{flag} is of provider vsphere"))),
            None => Ok(()),
        }
    }

    fn provider(&self) -> ProviderName {
        let implied = match self.vsphere.vcenter {
            Some(_) => ProviderName::Vsphere,
            None => ProviderName::Local,
        };
        self.provider.unwrap_or(implied)
    }

    pub fn origin(&self) -> Result<Origin> {
        match self.provider() {
            ProviderName::Vsphere => self.vsphere.origin(),
            _ => Ok(Origin::Local(Reach {
                limits: None,
                datastores: self.datastore.iter().cloned().collect(),
                trust: origin::trust(&self.vsphere.section())?,
            })),
        }
    }

    fn converts(&self) -> bool {
        self.hyper2kvm_daemon || self.pipeline == Some(true)
    }

    /// The instance with the directories that the flags name.
    pub fn instance(&self) -> Result<Instance> {
        let name = &self.hyper2kvm_instance;
        let mut instance = Instance::load(name)?;
        let placed = self.hyper2kvm_watch_dir.is_some() || self.hyper2kvm_output_dir.is_some();
        if !placed && name != DEFAULT && !Instance::discover()?.contains(name) {
            let (config, queue) = (config_path(name), instance.directories.queue.display());
            return Err(usage(&format!(
                "there is no instance {name}: neither {} nor {queue} exists",
                config.display()
            )));
        }
        let named = [&self.hyper2kvm_watch_dir, &self.hyper2kvm_output_dir, &None];
        instance.directories.replace(named)?;
        Ok(instance)
    }

    pub fn route(&self) -> Route {
        let converter = self
            .hyper2kvm_path
            .clone()
            .unwrap_or_else(direct::default_converter);
        if self.hyper2kvm_daemon {
            let patience = Patience {
                interval: Duration::from_secs(self.hyper2kvm_poll_interval),
                timeout: Duration::from_secs(self.hyper2kvm_daemon_timeout.saturating_mul(60)),
            };
            return Route::Queue {
                converter,
                patience,
            };
        }
        match &self.output {
            Some(output) if !self.converts() => Route::Directory {
                output: output.clone(),
                manifest: self.manifest,
            },
            keep => Route::Convert {
                converter,
                keep: keep.clone(),
            },
        }
    }

    /// The VMs to export: one, or those of the batch file.
    pub fn targets(&self) -> Result<Vec<Target>> {
        let Some(path) = &self.batch else {
            if self.list.is_some() {
                return Ok(Vec::new());
            }
            return Ok(vec![target(self.vm.as_deref(), self.source.as_deref())?]);
        };
        let read = |path: &Path| -> std::io::Result<String> {
            let file = std::fs::File::open(path)?;
            std::io::read_to_string(std::io::Read::take(file, MAX_BATCH_BYTES))
        };
        let text = read(path).map_err(|error| Error::io("read", path, error))?;
        let lines = text.lines().map(str::trim);
        let targets = lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| match has_secret(line) {
                true => Err(secret()),
                false => target(Some(line), None),
            })
            .collect::<Result<Vec<_>>>()?;
        if targets.is_empty() {
            return Err(Error::invalid(format!("{} lists no VM", path.display()))
                .with_remedy("write one VM per line"));
        }
        Ok(targets)
    }
}

fn target(vm: Option<&str>, source: Option<&str>) -> Result<Target> {
    match (vm, source) {
        (name, Some(source)) => Ok(Target {
            vm: source.to_owned(),
            name: name.map(str::to_owned),
        }),
        (Some(vm), None) => Ok(Target {
            vm: vm.to_owned(),
            name: None,
        }),
        (None, None) => Err(usage("give --vm or --source")),
    }
}

fn datastore(text: &str) -> std::result::Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').unwrap_or_default();
    if name.is_empty() || name.contains('/') || path.is_empty() {
        return Err("give NAME=DIR, the name without /vmfs/volumes/".to_owned());
    }
    Ok((name.to_owned(), PathBuf::from(path)))
}

fn secret() -> Error {
    usage("an address with a user, a password, a query or a fragment in it is not taken")
}

fn value_name(provider: ProviderName) -> String {
    let value = provider.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

fn usage(context: &str) -> Error {
    Error::invalid(context).with_remedy("see hyperexport --help")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> std::result::Result<Args, clap::Error> {
        Args::try_parse_from(std::iter::once("hyperexport").chain(line.split_whitespace()))
    }

    #[test]
    fn flags_choose_the_route() {
        for (line, route) in [
            (
                "--vm a --output o",
                "Directory { output: \"o\", manifest: true }",
            ),
            ("--vm a --output o --manifest=false", "manifest: false"),
            ("--vm a --pipeline", "Convert { converter: "),
            ("--vm a --output o --pipeline", "keep: Some(\"o\")"),
            (
                "--vm a --pipeline=true --hyper2kvm-path /x",
                "converter: \"/x\", keep: None",
            ),
            ("--vm a --hyper2kvm-daemon", "interval: 5s, timeout: 3600s"),
            (
                "--vm a --provider local --pipeline --hyper2kvm-daemon --output o \
                 --hyper2kvm-poll-interval 60 --hyper2kvm-daemon-timeout 240",
                "interval: 60s, timeout: 14400s",
            ),
        ] {
            let args = parse(line).unwrap();
            args.check().unwrap();
            let shown = format!("{:?}", args.route());
            assert!(shown.contains(route), "{line}: {shown}");
        }
    }

    #[test]
    fn contradictions_and_later_providers_are_refused() {
        for line in [
            "--vm a",
            "--vm a --provider aws --pipeline",
            "--vm a --pipeline --format ova",
            "--vm a --vcenter vc --pipeline --format ova",
            "--vm a --vcenter vc --source s --output o",
            "--vm a --pipeline --username u",
            "--list --provider local --insecure",
            "--vm a --vcenter vc --output o --datastore ds=/d",
            "--vm https://u:p@nas/a.ova --output o",
            "--source https://nas/a.ova?ticket --output o",
            "--source https://nas/a.ova --username u --output o",
            "--vm a --hyper2kvm-daemon --pipeline=false",
            "--vm a --pipeline --manifest=false",
            "--vm a --output o --libvirt",
        ] {
            assert!(parse(line).unwrap().check().is_err(), "{line}");
        }
        for line in [
            "",
            "--vm a --batch f",
            "--vm a --provider nowhere",
            "--vm a --pipeline yes",
            "--vm a --hyper2kvm-poll-interval 0",
            "--vm a --hyper2kvm-poll-interval 61",
            "--vm a --hyper2kvm-daemon-timeout 241",
            "--vm a --unknown",
            "--list x --vm a",
            "--vm a --vcenter vc --vcenter-timeout 0",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn targets_come_from_the_line_or_the_file() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("list");
        std::fs::write(&file, "# VMs\n/srv/a\n\n  /srv/b.vmdk \n").unwrap();
        let args = parse(&format!("--batch {} --output o", file.display())).unwrap();
        let targets = args.targets().unwrap().into_iter();
        let vms: Vec<String> = targets.map(|target| target.vm).collect();
        assert_eq!(vms, ["/srv/a", "/srv/b.vmdk"]);
        let named = parse("--vm web --source /srv/a --output o").unwrap();
        assert_eq!(
            named.targets().unwrap(),
            [Target {
                vm: "/srv/a".to_owned(),
                name: Some("web".to_owned()),
            }]
        );
    }
}
