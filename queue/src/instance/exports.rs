//! The export service: its configuration, and where it works. It is one per host, not an instance.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::instance::config::Retry;
use crate::instance::text::{self, Text};
use crate::instance::{Archive, Config, Directories, Instance};
use crate::job::name::EXPORT_SERVICE;

const STATE_DIR: &str = "/var/lib/hypervisord";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExportsConfig {
    pub requests_dir: Option<PathBuf>,
    pub output_dir: Option<PathBuf>,
    pub work_dir: Option<PathBuf>,
    pub concurrent_exports: u32,
    pub rescan_seconds: u64,
    pub archive: Archive,
    /// Crashes after which an export fails.
    pub max_attempts: u32,
    pub retry: Retry,
    /// By the name that requests give.
    pub server: BTreeMap<String, Server>,
}

/// A place that VMs come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// `vsphere` or `local`.
    pub provider: String,
    /// Where it is reached, if that is not its name.
    #[serde(default)]
    pub address: Option<String>,
    #[serde(default)]
    pub username: Option<String>,
    /// Read if systemd hands no credential `<name>.password` over; nobody else may read it.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// SHA-1 or SHA-256 of its certificate, which is then the only one that is trusted.
    #[serde(default)]
    pub thumbprint: Option<String>,
    /// Certificates (PEM) that may have signed its own.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Trusts any certificate.
    #[serde(default)]
    pub insecure: bool,
    /// Exports from it that may run at once.
    #[serde(default)]
    pub max_concurrent: Option<u32>,
    /// Provider `local`: the directories beneath which VMs may lie.
    #[serde(default)]
    pub roots: Vec<PathBuf>,
    /// Provider `local`: the http:// and https:// addresses beneath which they may lie.
    #[serde(default)]
    pub urls: Vec<String>,
    /// Provider `local`: where the datastores that a .vmx names are mounted here.
    #[serde(default)]
    pub datastores: BTreeMap<String, PathBuf>,
}

impl Default for ExportsConfig {
    fn default() -> Self {
        Self {
            requests_dir: None,
            output_dir: None,
            work_dir: None,
            concurrent_exports: 2,
            rescan_seconds: 30,
            archive: Archive::Keep,
            max_attempts: 3,
            retry: Retry::default(),
            server: BTreeMap::new(),
        }
    }
}

/// Where the export service's configuration lies.
pub fn config_path() -> PathBuf {
    super::config_dir().join(format!("{EXPORT_SERVICE}.toml"))
}

impl ExportsConfig {
    /// Reads the configuration at `path`; no file is no servers.
    pub fn load(path: &Path) -> Result<Self> {
        match text::find(path)? {
            Some(text) => Self::parse(&text, path),
            None => Ok(Self::default()),
        }
    }

    /// Reads the configuration at `path`, which must be there.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&text::read(path)?, path)
    }

    /// Parses the text of the file at `path`, which is named in every error.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let text = Text {
            text,
            path,
            program: EXPORT_SERVICE,
        };
        let config: Self = text.parse()?;
        config.check(&text)?;
        Ok(config)
    }

    fn check(&self, text: &Text<'_>) -> Result<()> {
        for (key, dir) in [
            ("requests_dir", &self.requests_dir),
            ("output_dir", &self.output_dir),
            ("work_dir", &self.work_dir),
        ] {
            if dir.as_ref().is_some_and(|dir| !dir.is_absolute()) {
                return Err(text.refuse(key, "is not an absolute path"));
            }
        }
        if !(1..=64).contains(&self.concurrent_exports) {
            return Err(text.refuse("concurrent_exports", "is not between 1 and 64"));
        }
        if !(1..=86_400).contains(&self.rescan_seconds) {
            return Err(text.refuse("rescan_seconds", "is not between 1 and 86400"));
        }
        if self.max_attempts == 0 {
            return Err(text.refuse("max_attempts", "is 0"));
        }
        self.retry.check(text)?;
        for (name, server) in &self.server {
            server.check(name, text)?;
        }
        Ok(())
    }

    /// The service as what claims, records and retries sees it.
    pub fn instance(&self) -> Instance {
        let place = |configured: &Option<PathBuf>, what: &str| {
            let usual = || Path::new(STATE_DIR).join(what);
            configured.clone().unwrap_or_else(usual)
        };
        Instance {
            name: EXPORT_SERVICE.to_owned(),
            config: Config {
                max_concurrent_jobs: self.concurrent_exports,
                rescan_seconds: self.rescan_seconds,
                archive: self.archive,
                max_attempts: self.max_attempts,
                retry: self.retry.clone(),
                ..Config::default()
            },
            directories: Directories {
                queue: place(&self.requests_dir, "requests"),
                output: place(&self.output_dir, "output"),
                work: place(&self.work_dir, "work"),
            },
        }
    }
}

impl Server {
    fn check(&self, name: &str, text: &Text<'_>) -> Result<()> {
        let refuse = |key: &str, what: &str| {
            let error = text.refuse(key, &format!("{what} (server {name:?})"));
            Err(error)
        };
        // The name is a part of a credential's.
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0', '\n']) {
            return refuse("[server", "its name must do as a file name");
        }
        if self.max_concurrent == Some(0) {
            return refuse("max_concurrent", "is 0");
        }
        for (key, path) in [
            ("password_file", &self.password_file),
            ("ca_file", &self.ca_file),
        ] {
            if path.as_ref().is_some_and(|path| !path.is_absolute()) {
                return refuse(key, "is not an absolute path");
            }
        }
        let is_url = |url: &String| url.starts_with("http://") || url.starts_with("https://");
        match self.provider.as_str() {
            "local" if self.roots.is_empty() && self.urls.is_empty() => {
                refuse("provider", "`local` needs roots or urls")
            }
            "local" if self.roots.iter().any(|root| !root.is_absolute()) => {
                refuse("roots", "holds a path that is not absolute")
            }
            "local" if self.datastores.values().any(|path| !path.is_absolute()) => {
                refuse("datastores", "holds a path that is not absolute")
            }
            "local" if !self.urls.iter().all(is_url) => {
                refuse("urls", "holds what does not begin with http:// or https://")
            }
            "local" => Ok(()),
            "vsphere" if self.username.is_none() => refuse("provider", "`vsphere` needs username"),
            "vsphere" if !self.roots.is_empty() => refuse("roots", "is for `local` alone"),
            "vsphere" if !self.urls.is_empty() => refuse("urls", "is for `local` alone"),
            "vsphere" if !self.datastores.is_empty() => {
                refuse("datastores", "is for `local` alone")
            }
            "vsphere" => Ok(()),
            _ => refuse("provider", "is neither vsphere nor local"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/etc/hyper2kvm/hypervisord.toml";

    #[test]
    fn reads_what_an_administrator_writes() {
        let text = "concurrent_exports = 4\n[retry]\nmax_retries = 1\n[server.\"vc.example.com\"]\n\
                    provider = \"vsphere\"\nusername = \"u\"\nmax_concurrent = 1\n";
        let config = ExportsConfig::parse(text, Path::new(PATH)).unwrap();
        let instance = config.instance();
        assert_eq!(instance.config.max_concurrent_jobs, 4);
        assert_eq!(instance.config.retry.max_retries, 1);
        assert_eq!(
            instance.directories.queue,
            Path::new(STATE_DIR).join("requests")
        );
        assert_eq!(config.server["vc.example.com"].max_concurrent, Some(1));
        let none = Path::new("/nonexistent/hypervisord.toml");
        assert_eq!(ExportsConfig::load(none).unwrap(), ExportsConfig::default());
    }

    #[test]
    fn names_file_line_and_key() {
        for (text, line, key) in [
            ("colour = 1\n", 1, "colour"),
            ("\nconcurrent_exports = 0\n", 2, "concurrent_exports"),
            ("work_dir = \"x\"\n", 1, "work_dir"),
            ("[server.a]\nprovider = \"aws\"\n", 2, "provider"),
            ("[server.a]\nprovider = \"vsphere\"\n", 2, "provider"),
            ("[server.a]\nprovider = \"local\"\n", 2, "provider"),
            (
                "[server.a]\nprovider = \"local\"\nurls = [\"ftp://h/\"]\n",
                3,
                "urls",
            ),
            (
                "[server.a]\nprovider = \"local\"\nroots = [\"/x\"]\ndatastores = { d = \"x\" }\n",
                4,
                "datastores",
            ),
            (
                "[server.a]\nprovider = \"local\"\npassword = \"x\"\n",
                3,
                "password",
            ),
            (
                "[server.\"a/b\"]\nprovider = \"local\"\nroots = [\"/x\"]\n",
                1,
                "[server",
            ),
            (
                "[retry]\nbackoff_multiplier = 0.5\n",
                2,
                "backoff_multiplier",
            ),
        ] {
            let error = ExportsConfig::parse(text, Path::new(PATH)).unwrap_err();
            let message = error.to_string();
            let wanted = format!("{PATH}, line {line}, key {key}");
            assert!(message.starts_with(&wanted), "{message}");
            assert!(error.to_line().contains("hypervisord check-config"));
        }
    }
}
