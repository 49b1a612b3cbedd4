//! The Artifact Manifest 1.x: what an exporter says about the VM whose disks it delivers.
//!
//! Read as existing exporters (HyperSDK) write it. Unknown fields are kept and reported, never an
//! error; `bytes` is never trusted, neither as a file's size nor as a disk's capacity.
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::job::pipeline::{Pipeline, Unknown};
use crate::job::{Firmware, Machine, Nic, Priority};

/// The largest manifest that is read, in bytes.
pub const MAX_BYTES: u64 = 1024 * 1024;
/// In `metadata`, what exporters of this product are known by.
pub const MADE_BY: &str = "hyperexport_version";
/// The fixed names that legacy exporters overwrite in place.
pub const FIXED_NAMES: [&str; 2] = ["manifest.json", "artifact-manifest.json"];
const MAX_DISKS: usize = 256;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub manifest_version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<Vm>,
    pub disks: Vec<Disk>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<ManifestNic>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<Pipeline>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Output>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<Options>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Source {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datacenter: Option<String>,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub export_timestamp: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub export_method: Option<String>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Vm {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_gb: Option<f64>,
    /// MiB; exact, and preferred to `mem_gb`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_mb: Option<u64>,
    pub firmware: Firmware,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secureboot: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tpm: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os_hint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Disk {
    pub id: String,
    pub source_format: String,
    /// The file's size or the capacity, depending on who wrote it: never trusted.
    pub bytes: u64,
    pub local_path: String,
    /// `sha256:<hex>` or `blake3:<hex>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
    /// The other files that the disk is made of: extents, parents, what an OVF names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pieces: Vec<Piece>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_order_hint: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// `boot`, `data` or `unknown`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus: Option<String>,
    /// Its producer still appends to it, and says in `<local_path>.end` when that is over. Only in
    /// a job directory, beside the manifest.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub growing: bool,
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A file that belongs to a disk, beside the one that stands for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    pub local_path: String,
    pub bytes: u64,
    /// `sha256:<hex>` or `blake3:<hex>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ManifestNic {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip: Vec<String>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Output {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verbose: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<Value>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Manifest {
    /// Parses and checks the bytes of a manifest.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| {
            Error::invalid("the manifest cannot be read")
                .with_remedy("write an Artifact Manifest 1.0: manifest_version and disks[]")
                .with_source(error)
        })?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Whether JSON bytes parse as JSON at all: a half-written manifest does not.
    pub fn is_whole_json(bytes: &[u8]) -> bool {
        serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok()
    }

    fn check(&self) -> Result<()> {
        let bad = |context: String, remedy: &str| Err(Error::invalid(context).with_remedy(remedy));
        if self.manifest_version != "1" && !self.manifest_version.starts_with("1.") {
            return bad(
                format!("manifest version {:?} is not known", self.manifest_version),
                "write manifest_version \"1.0\"",
            );
        }
        if self.disks.is_empty() || self.disks.len() > MAX_DISKS {
            return bad(
                format!("the manifest has {} disks", self.disks.len()),
                "a manifest names 1 to 256 disks",
            );
        }
        let mut ids = BTreeSet::new();
        for disk in &self.disks {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
            if disk.id.is_empty() || !disk.id.bytes().all(plain) {
                return bad(
                    format!("disk id {:?} is not valid", disk.id),
                    "a disk id is made of letters, digits, _ and -",
                );
            }
            if !ids.insert(&disk.id) {
                return bad(
                    format!("disk id {:?} appears twice", disk.id),
                    "give each disk an id of its own",
                );
            }
            if disk.local_path.is_empty() {
                return bad(
                    format!("disk {:?} has no local_path", disk.id),
                    "set local_path to the disk's file",
                );
            }
            if disk.growing && disk.local_path.contains(['/', '\0']) {
                return bad(
                    format!("disk {:?} grows, but not beside its manifest", disk.id),
                    "give a growing disk's local_path as a plain file name",
                );
            }
        }
        Ok(())
    }

    /// The VM's name as the manifest says it: `source.vm_name`, else the first disk's file name.
    pub fn vm_name(&self) -> Option<String> {
        let named = self
            .source
            .as_ref()
            .and_then(|source| source.vm_name.clone());
        named.filter(|name| !name.trim().is_empty()).or_else(|| {
            let path = std::path::Path::new(&self.disks.first()?.local_path);
            Some(path.file_stem()?.to_string_lossy().into_owned())
        })
    }

    pub fn priority(&self) -> Priority {
        self.options
            .as_ref()
            .and_then(|options| options.priority)
            .unwrap_or_default()
    }

    /// The hardware around the disks.
    pub fn machine(&self) -> Machine {
        let vm = self.vm.clone().unwrap_or_default();
        let from_gb = vm
            .mem_gb
            .filter(|gb| gb.is_finite() && *gb > 0.0 && *gb < 1e6)
            .map(|gb| (gb * 1024.0).round() as u64);
        let memory_mib = vm.mem_mb.filter(|mib| *mib > 0).or(from_gb);
        Machine {
            name: self.vm_name(),
            cpus: vm.cpu.filter(|cpus| *cpus > 0),
            memory_bytes: memory_mib.and_then(|mib| mib.checked_mul(1024 * 1024)),
            firmware: vm.firmware,
            secure_boot: vm.secureboot,
            tpm: vm.tpm,
            os_hint: vm.os_hint,
            nics: self
                .nics
                .iter()
                .map(|nic| Nic {
                    mac: nic.mac.clone(),
                    network: nic.network.clone(),
                    model: nic.model.clone(),
                })
                .collect(),
            notes: Vec::new(),
        }
    }

    /// The names of the fields this version does not know, e.g. `disks[0].colour`.
    pub fn unknown_fields(&self) -> Vec<String> {
        let mut names: Vec<String> = self.unknown.keys().cloned().collect();
        let mut add = |at: &str, unknown: &Unknown| {
            names.extend(unknown.keys().map(|key| format!("{at}.{key}")));
        };
        if let Some(source) = &self.source {
            add("source", &source.unknown);
        }
        if let Some(vm) = &self.vm {
            add("vm", &vm.unknown);
        }
        for (index, disk) in self.disks.iter().enumerate() {
            add(&format!("disks[{index}]"), &disk.unknown);
        }
        for (index, nic) in self.nics.iter().enumerate() {
            add(&format!("nics[{index}]"), &nic.unknown);
        }
        if let Some(pipeline) = &self.pipeline {
            add("pipeline", &pipeline.unknown);
            let stages = [
                ("inspect", pipeline.inspect.as_ref().map(|it| &it.unknown)),
                ("fix", pipeline.fix.as_ref().map(|it| &it.unknown)),
                ("convert", pipeline.convert.as_ref().map(|it| &it.unknown)),
                ("validate", pipeline.validate.as_ref().map(|it| &it.unknown)),
            ];
            for (stage, unknown) in stages {
                if let Some(unknown) = unknown {
                    add(&format!("pipeline.{stage}"), unknown);
                }
            }
        }
        if let Some(output) = &self.output {
            add("output", &output.unknown);
        }
        if let Some(options) = &self.options {
            add("options", &options.unknown);
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn minimal() -> Value {
        json!({"manifest_version": "1.0", "disks": [
            {"id": "disk-0", "source_format": "vmdk", "bytes": 1, "local_path": "web-01.vmdk"}]})
    }

    #[test]
    fn reads_the_minimal_manifest_and_keeps_what_it_does_not_know() {
        let mut value = minimal();
        value["disks"][0]["colour"] = json!("blue");
        value["vm"] = json!({"cpu": 2, "mem_gb": 1.5, "firmware": "efi", "socket": 3});
        let manifest = Manifest::parse(value.to_string().as_bytes()).unwrap();
        assert_eq!(manifest.vm_name().as_deref(), Some("web-01"));
        assert_eq!(manifest.unknown_fields(), ["vm.socket", "disks[0].colour"]);
        let machine = manifest.machine();
        assert_eq!(machine.memory_bytes, Some(1536 * 1024 * 1024));
        assert_eq!(machine.firmware, Firmware::Uefi);
        assert_eq!(
            serde_json::to_value(&manifest).unwrap()["disks"][0]["colour"],
            "blue"
        );
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        type Change = fn(&mut Value);
        let cases: [(&str, Change); 6] = [
            ("version", |v| v["manifest_version"] = json!("2.0")),
            ("no disks", |v| v["disks"] = json!([])),
            ("bad id", |v| v["disks"][0]["id"] = json!("../x")),
            ("empty path", |v| v["disks"][0]["local_path"] = json!("")),
            ("twice", |v| {
                let disk = v["disks"][0].clone();
                v["disks"].as_array_mut().unwrap().push(disk);
            }),
            ("no bytes", |v| {
                v["disks"][0].as_object_mut().unwrap().remove("bytes");
            }),
        ];
        for (what, change) in cases {
            let mut value = minimal();
            change(&mut value);
            assert!(
                Manifest::parse(value.to_string().as_bytes()).is_err(),
                "{what}"
            );
        }
    }
}
