//! Instances: their names, services, configuration files and directories.
pub mod config;
pub mod exports;
mod filesystem;
pub mod text;

use std::path::{Path, PathBuf};

pub use crate::job::name::{DEFAULT_INSTANCE as DEFAULT, check_instance as check_name};
pub use config::{Archive, Compress, Config, GuestFix, OnConflict};
pub use filesystem::{free_bytes, is_network, is_network_file};

use crate::error::{Error, Result};

/// Overrides the directory of the configuration files.
pub const CONFIG_DIR_VARIABLE: &str = "HYPER2KVM_CONFIG_DIR";
const CONFIG_DIR: &str = "/etc/hyper2kvm";
/// Where producers stage, beneath the queue directory.
pub const INCOMING: &str = ".incoming";
/// Where claimed jobs are, beneath the same.
pub const PROCESSING: &str = ".processing";
const STATE_DIR: &str = "/var/lib/hyper2kvm";

/// The directory that holds the instances' configuration files.
pub fn config_dir() -> PathBuf {
    std::env::var_os(CONFIG_DIR_VARIABLE)
        .filter(|dir| !dir.is_empty())
        .map_or_else(|| PathBuf::from(CONFIG_DIR), PathBuf::from)
}

/// One converter: its name, its service, its configuration and where it works.
#[derive(Debug, Clone)]
pub struct Instance {
    pub name: String,
    pub config: Config,
    pub directories: Directories,
}

impl Instance {
    /// Reads the configuration of the named instance; one without a file runs on the defaults.
    pub fn load(name: &str) -> Result<Self> {
        check_name(name)?;
        let path = config_path(name);
        let config = match text::find(&path)? {
            Some(text) => Config::parse(&text, &path)?,
            None => Config::default(),
        };
        Ok(Self::with_config(name, config))
    }

    /// Reads the configuration at `path`, which is named after its instance.
    pub fn read(path: &Path) -> Result<Self> {
        let config = Config::parse(&text::read(path)?, path)?;
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let named = stem.filter(|stem| *stem != "hyper2kvm" && check_name(stem).is_ok());
        Ok(Self::with_config(named.unwrap_or(DEFAULT), config))
    }

    pub fn with_config(name: &str, config: Config) -> Self {
        let prefix = if name == DEFAULT {
            String::new()
        } else {
            format!("{name}-")
        };
        let place = |configured: &Option<PathBuf>, what: &str| {
            configured
                .clone()
                .unwrap_or_else(|| Path::new(STATE_DIR).join(format!("{prefix}{what}")))
        };
        let directories = Directories {
            queue: place(&config.watch_dir, "queue"),
            output: place(&config.output_dir, "output"),
            work: place(&config.work_dir, "work"),
        };
        Self {
            name: name.to_owned(),
            config,
            directories,
        }
    }

    /// The systemd unit: `hyper2kvm.service` or `hyper2kvm@NAME.service`.
    pub fn service(&self) -> String {
        service_name(&self.name)
    }

    /// Every instance that has a configuration file or directories of its own, by name.
    pub fn discover() -> Result<Vec<String>> {
        let mut names = std::collections::BTreeSet::new();
        for entry in read_names(&config_dir())? {
            if let Some(stem) = entry.strip_suffix(".toml") {
                names.insert(if stem == "hyper2kvm" {
                    DEFAULT.to_owned()
                } else {
                    stem.to_owned()
                });
            }
        }
        for entry in read_names(Path::new(STATE_DIR))? {
            if entry == "queue" {
                names.insert(DEFAULT.to_owned());
            } else if let Some(name) = entry.strip_suffix("-queue") {
                names.insert(name.to_owned());
            }
        }
        Ok(names
            .into_iter()
            .filter(|name| check_name(name).is_ok())
            .collect())
    }
}

fn read_names(dir: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", dir, error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| Error::io("list", dir, error))?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

/// The systemd unit of the named instance.
pub fn service_name(name: &str) -> String {
    if name == DEFAULT {
        "hyper2kvm.service".to_owned()
    } else {
        format!("hyper2kvm@{name}.service")
    }
}

/// The configuration file of the named instance.
pub fn config_path(name: &str) -> PathBuf {
    let stem = if name == DEFAULT { "hyper2kvm" } else { name };
    config_dir().join(format!("{stem}.toml"))
}

/// Where an instance works. All paths of the contract come from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directories {
    pub queue: PathBuf,
    pub output: PathBuf,
    pub work: PathBuf,
}

impl Directories {
    /// Puts what a command line names in place of what is configured; its relative paths begin at
    /// the current directory.
    pub fn replace(&mut self, named: [&Option<PathBuf>; 3]) -> Result<()> {
        let places = [&mut self.queue, &mut self.output, &mut self.work];
        for (path, place) in named.into_iter().zip(places) {
            if let Some(path) = path {
                *place =
                    std::path::absolute(path).map_err(|error| Error::io("find", path, error))?;
            }
        }
        Ok(())
    }

    /// Refuses directories of which one is or holds another: results would be taken for drops.
    pub fn check(&self) -> Result<()> {
        let all = [
            ("watch_dir", &self.queue),
            ("output_dir", &self.output),
            ("work_dir", &self.work),
        ];
        for (name, path) in all {
            for (other, above) in all.iter().filter(|(other, _)| *other != name) {
                if path.starts_with(above) {
                    let (path, above) = (path.display(), above.display());
                    return Err(
                        Error::invalid(format!("{name} {path} lies in {other} {above}"))
                            .with_remedy("give each a directory of its own, beside the others"),
                    );
                }
            }
        }
        Ok(())
    }

    /// A line each for who checks a configuration; `queue` is what the first is called there.
    pub fn lines(&self, queue: &str) -> [String; 3] {
        let all = [
            (queue, &self.queue),
            ("output", &self.output),
            ("work", &self.work),
        ];
        all.map(|(name, path)| {
            let absent = if path.is_dir() { "" } else { " (not there)" };
            format!("  {name:<10} {}{absent}", path.display())
        })
    }

    pub fn incoming(&self) -> PathBuf {
        self.queue.join(INCOMING)
    }
    pub fn processing(&self) -> PathBuf {
        self.queue.join(PROCESSING)
    }
    pub fn processed(&self) -> PathBuf {
        self.queue.join(".processed")
    }
    pub fn errors(&self) -> PathBuf {
        self.queue.join(".errors")
    }
    pub fn control(&self) -> PathBuf {
        self.queue.join(".control")
    }
    pub fn staging(&self) -> PathBuf {
        self.output.join(".staging")
    }
    pub fn daemon(&self) -> PathBuf {
        self.output.join(".daemon")
    }
    pub fn records(&self) -> PathBuf {
        self.daemon().join("jobs")
    }
    /// Lock files that keep two running jobs from sharing a VM's name.
    pub fn names(&self) -> PathBuf {
        self.daemon().join("names")
    }
    pub fn record(&self, job: crate::job::JobId) -> PathBuf {
        self.records().join(format!("{job}.json"))
    }
    pub fn status(&self) -> PathBuf {
        self.daemon().join("status.json")
    }
    /// What the administrator wants of the daemon: `"running"`, `"paused"` or `"draining"`.
    pub fn state(&self) -> PathBuf {
        self.daemon().join("state.json")
    }
    pub fn metrics(&self) -> PathBuf {
        self.daemon().join("metrics.prom")
    }
    /// The published directory of a VM.
    pub fn result(&self, vm: &crate::job::VmName) -> PathBuf {
        self.output.join(vm.as_str())
    }
    /// The symlink whose existence means done; `format` is `qcow2` or `raw`.
    pub fn result_link(&self, vm: &crate::job::VmName, format: &str) -> PathBuf {
        self.output.join(format!("{vm}.{format}"))
    }
    /// The text whose existence means failed.
    pub fn error_text(&self, vm: &crate::job::VmName) -> PathBuf {
        self.output.join(format!("{vm}.error"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_in_each_other_are_refused() {
        for (queue, output, work, good) in [
            ("/a/queue", "/a/output", "/a/work", true),
            ("/a/queue", "/a/queue-output", "/a/w", true),
            ("/a", "/a", "/w", false),
            ("/a", "/a/output", "/w", false),
            ("/a/queue", "/a", "/w", false),
            ("/a", "/b", "/b/work", false),
        ] {
            let [queue, output, work] = [queue, output, work].map(PathBuf::from);
            let directories = Directories {
                queue,
                output,
                work,
            };
            assert_eq!(directories.check().is_ok(), good, "{directories:?}");
        }
    }

    #[test]
    fn names_and_directories_follow_the_table() {
        let default = Instance::with_config(DEFAULT, Config::default());
        assert_eq!(default.service(), "hyper2kvm.service");
        assert_eq!(
            default.directories.queue,
            Path::new("/var/lib/hyper2kvm/queue")
        );
        let named = Instance::with_config("vsphere-prod", Config::default());
        assert_eq!(named.service(), "hyper2kvm@vsphere-prod.service");
        assert_eq!(
            named.directories.output,
            Path::new("/var/lib/hyper2kvm/vsphere-prod-output")
        );
        for bad in ["", ".", "../x", "a/b", "a b", "hypervisord"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
