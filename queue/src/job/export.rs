//! The export request: what somebody drops into the export service's spool, never a password; and
//! where what was exported went.
//!
//! Unknown fields are kept and told in the job's record, never an error.
use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};
use crate::job::manifest::Output;
use crate::job::{Priority, VmName};

/// The largest request that is read, in bytes.
pub const MAX_BYTES: u64 = 1024 * 1024;
/// What this version writes; every 1.x is read.
pub const VERSION: &str = "1.0";
const MAX_VM_BYTES: usize = 4096;
/// Fields that would put a secret into files which are kept.
const SECRETS: [&str; 4] = ["password", "passwd", "secret", "token"];

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExportRequest {
    /// Also what says that a JSON file is one.
    pub export_version: String,
    /// Names the section of the service's configuration with its provider, address, credential.
    pub server: String,
    /// `vsphere`, `local`; one that is not the server's is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// In the provider's words: a name, a path, a UUID, an id.
    pub vm: String,
    /// What the VM is called from here on; else as the provider calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Into whose queue the VM goes.
    #[serde(default = "default_instance")]
    pub instance: String,
    /// What of the conversion's result is wished for, as in a manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Output>,
    #[serde(default)]
    pub options: ExportOptions,
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExportOptions {
    /// Of the export and of the conversion after it.
    pub priority: Priority,
    pub format: ExportFormat,
    /// Whether the conversion may begin while disks still arrive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    #[serde(flatten)]
    pub unknown: BTreeMap<String, Value>,
}

/// How the disks lie in the job directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportFormat {
    #[default]
    Vmdk,
    Ova,
}

/// Whether `vm` is an address that tells more than where a file lies: a user, a query, a fragment.
pub fn has_secret(vm: &str) -> bool {
    let Some((_, rest)) = vm.split_once("://") else {
        return false;
    };
    let authority = rest.split(['/', '\\']).next().unwrap_or(rest);
    authority.contains('@') || rest.contains(['?', '#'])
}

fn default_instance() -> String {
    crate::job::name::DEFAULT_INSTANCE.to_owned()
}

/// A job directory that an export has put into an instance's queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Delivery {
    pub instance: String,
    /// The queue directory, absolute.
    pub queue: PathBuf,
    /// The name under which it was dropped there.
    pub drop: String,
}

impl ExportRequest {
    /// A request for `vm` of `server`, with everything else as usual.
    pub fn new(server: &str, vm: &str) -> Self {
        Self {
            export_version: VERSION.to_owned(),
            server: server.to_owned(),
            provider: None,
            vm: vm.to_owned(),
            name: None,
            instance: default_instance(),
            output: None,
            options: ExportOptions::default(),
            unknown: BTreeMap::new(),
        }
    }

    /// Parses and checks the bytes of a request.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let request: Self = serde_json::from_slice(bytes).map_err(|error| {
            Error::invalid("the export request cannot be read")
                .with_remedy("write export_version \"1.0\", server and vm")
                .with_source(error)
        })?;
        request.check()?;
        Ok(request)
    }

    fn check(&self) -> Result<()> {
        let version = &self.export_version;
        if version != "1" && !version.starts_with("1.") {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("export_version {version:?} is not 1.x"),
            )
            .with_remedy("write export_version \"1.0\""));
        }
        if self.options.format == ExportFormat::Ova {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "an export request for an ova: a queue takes the disks as they are",
            )
            .with_remedy("leave options.format out; `hyperexport --format ova` makes appliances"));
        }
        let is_bad = |text: &str| {
            text.is_empty() || text.len() > MAX_VM_BYTES || text.chars().any(char::is_control)
        };
        let named = [&self.provider, &self.name];
        let mut texts = named.into_iter().flatten().chain([&self.server, &self.vm]);
        if texts.any(|text| is_bad(text)) {
            return Err(Error::invalid(
                "vm, server, provider and name of an export request are lines of text",
            )
            .with_remedy("name the VM as the provider does, in at most 4096 bytes"));
        }
        crate::job::name::check_instance(&self.instance)?;
        if has_secret(&self.vm) {
            return Err(Error::invalid(
                "vm of the export request is an address with a password or ticket in it",
            )
            .with_remedy("change that password; give the address of a file that needs none"));
        }
        let is_secret = |key: &&String| {
            let key = key.to_ascii_lowercase();
            SECRETS.iter().any(|secret| key.contains(secret))
        };
        if let Some(key) = self.unknown.keys().find(is_secret) {
            return Err(
                Error::invalid(format!("the export request holds a secret: {key}"))
                    .with_remedy("change that password; give it to the service by LoadCredential="),
            );
        }
        Ok(())
    }

    /// What the VM is called until the provider has told.
    pub fn vm_name(&self) -> VmName {
        let given = self.name.as_deref().unwrap_or(&self.vm);
        let last = given.trim_end_matches('/').rsplit('/').next();
        VmName::of_file(last.filter(|name| !name.is_empty()).unwrap_or(given))
    }

    /// What nobody here understands, for the record.
    pub fn notes(&self) -> Vec<String> {
        let outer = self.unknown.keys().cloned();
        let inner = self.options.unknown.keys();
        let inner = inner.map(|key| format!("options.{key}"));
        let output = self.output.iter().flat_map(|output| output.unknown.keys());
        let output = output.map(|key| format!("output.{key}"));
        outer
            .chain(inner)
            .chain(output)
            .map(|key| format!("export request: {key} is not known and has no effect"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_hyperctl_writes() {
        let request = ExportRequest::new("vc.example.com", "/dc/vm/web-01");
        let text = serde_json::to_vec(&request).unwrap();
        assert_eq!(ExportRequest::parse(&text).unwrap(), request);
        assert_eq!(request.vm_name().as_str(), "web-01");
    }

    #[test]
    fn unknown_fields_are_noted() {
        let text = r#"{"export_version": "1.7", "server": "nas", "vm": "/srv/x", "colour": 1,
                       "options": {"priority": "high", "speed": 2}, "output": {"hue": 3}}"#;
        let request = ExportRequest::parse(text.as_bytes()).unwrap();
        assert_eq!(request.options.priority, Priority::High);
        assert_eq!(request.instance, "default");
        let notes = request.notes().join("\n");
        for key in ["colour", "options.speed", "output.hue"] {
            assert!(notes.contains(key), "{notes}");
        }
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        for (text, about) in [
            ("{", "cannot be read"),
            (r#"{"vm": "x", "server": "s"}"#, "cannot be read"),
            (
                r#"{"export_version": "2", "vm": "x", "server": "s"}"#,
                "not 1.x",
            ),
            (r#"{"export_version": "1.0", "vm": "x"}"#, "cannot be read"),
            (
                r#"{"export_version": "1.0", "vm": "", "server": "s"}"#,
                "lines",
            ),
            (
                r#"{"export_version": "1.0", "vm": "a\nb", "server": "s"}"#,
                "lines",
            ),
            (
                r#"{"export_version": "1.0", "vm": "x", "server": "s",
                    "options": {"format": "ova"}}"#,
                "for an ova",
            ),
            (
                r#"{"export_version": "1.0", "vm": "x", "server": "s", "instance": "../x"}"#,
                "instance",
            ),
            (
                r#"{"export_version": "1.0", "vm": "x", "server": "s", "vcPassword": "geheim"}"#,
                "a secret: vcPassword",
            ),
            (
                r#"{"export_version": "1.0", "vm": "https://u:geheim@nas/x", "server": "s"}"#,
                "a password or ticket",
            ),
            (
                r#"{"export_version": "1.0", "vm": "http://nas/x.ova?geheim", "server": "s"}"#,
                "a password or ticket",
            ),
        ] {
            let error = ExportRequest::parse(text.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(about), "{error}");
            assert!(!error.to_line().contains("geheim"), "{error}");
        }
    }
}
