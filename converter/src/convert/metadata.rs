//! `metadata.json`: what stands beside the converted disks and says where they come from.
//!
//! Readers ignore fields that they do not know; sizes are bytes, times RFC 3339 in UTC.
use std::collections::BTreeMap;

use queue::job::{Finding, JobId, Machine};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::guest;
use crate::guest::boot::Proof;
use crate::guest::model::Os;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    /// Of `hyper2kvm convert`, a job of which there is no record.
    pub job_id: Option<JobId>,
    /// How often a worker began it; see each disk's `resumed_bytes`.
    #[serde(default)]
    pub attempts: u32,
    pub vm_name: String,
    pub source: Origin,
    pub machine: Machine,
    /// In hardware order.
    pub disks: Vec<Disk>,
    pub guest: Guest,
    pub notes: Vec<String>,
    pub converter: Converter,
    pub created_at: String,
    pub host: String,
}

/// Where the VM came from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    pub provider: Option<String>,
    pub vm_id: Option<String>,
    pub datacenter: Option<String>,
    pub export_timestamp: Option<String>,
    pub export_method: Option<String>,
    /// The name under which it was dropped into the queue, or the path that was given.
    pub drop: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The source's name for it: its file, or its id in the manifest.
    pub name: String,
    /// e.g. `vmdk (streamOptimized)`.
    pub source_format: String,
    pub virtual_size_bytes: u64,
    pub source_bytes: u64,
    pub output_bytes: u64,
    /// Compressed clusters that hold a deflate stream of the source as it was, and those that were
    /// compressed here.
    #[serde(default)]
    pub grains_transplanted: u64,
    #[serde(default)]
    pub clusters_encoded: u64,
    /// Bytes that the file shared with the source when it was written, by reflink.
    #[serde(default)]
    pub shared_bytes: u64,
    /// Source bytes that an earlier, interrupted attempt had read and that were not read again.
    #[serde(default)]
    pub resumed_bytes: u64,
    /// Content digest, `blake3:<hex>`; absent if not all data was read.
    pub digest: Option<String>,
    /// The source's, where the repair changed the content.
    #[serde(default)]
    pub source_digest: Option<String>,
    /// The file beside this one, e.g. `web-01-disk2.qcow2`.
    pub file: String,
}

/// Whether the guest was prepared for its new hardware, and what is known of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Guest {
    pub repaired: bool,
    /// Why not: a stable word, and a text.
    pub code: Option<String>,
    pub reason: Option<String>,
    /// What its owner should know, each with a stable code.
    pub findings: Vec<Finding>,
    /// Whether domain.xml gives it virtio devices.
    pub virtio: bool,
    pub os: Option<Os>,
    /// What was found before the repair; the changes are in change-report.json.
    pub inspection: Option<guest::model::Guest>,
    pub boot: Option<Proof>,
    /// Seconds per step of the repair.
    pub timings: BTreeMap<String, f64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Converter {
    pub version: String,
}

impl Default for Converter {
    fn default() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

impl From<&queue::job::manifest::Source> for Origin {
    fn from(source: &queue::job::manifest::Source) -> Self {
        Self {
            provider: source.provider.clone(),
            vm_id: source.vm_id.clone(),
            datacenter: source.datacenter.clone(),
            export_timestamp: source.export_timestamp.clone(),
            export_method: source.export_method.clone(),
            drop: String::new(),
        }
    }
}

impl Metadata {
    /// The file's text: JSON for people, ending in a line break.
    pub fn to_json(&self) -> Result<String> {
        let mut text = serde_json::to_string_pretty(self).map_err(|error| {
            Error::new(ErrorKind::Internal, "write metadata.json").with_source(error)
        })?;
        text.push('\n');
        Ok(text)
    }

    pub fn parse(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|error| {
            Error::invalid("metadata.json cannot be read")
                .with_remedy("give the metadata.json that was published with the image")
                .with_source(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_its_text() {
        let metadata = Metadata {
            job_id: Some(JobId::new()),
            attempts: 2,
            vm_name: "web-01".to_owned(),
            source: Origin {
                provider: Some("local".to_owned()),
                drop: "web-01.ova".to_owned(),
                ..Origin::default()
            },
            machine: Machine::default(),
            disks: vec![Disk {
                name: "web-01-disk1.vmdk".to_owned(),
                source_format: "vmdk (streamOptimized)".to_owned(),
                virtual_size_bytes: 1 << 40,
                source_bytes: 4096,
                output_bytes: 196_624,
                grains_transplanted: 16,
                clusters_encoded: 1,
                shared_bytes: 0,
                resumed_bytes: 512,
                digest: Some("blake3:00".to_owned()),
                source_digest: None,
                file: "web-01.qcow2".to_owned(),
            }],
            guest: Guest {
                repaired: false,
                reason: Some("not in this version".to_owned()),
                ..Guest::default()
            },
            notes: vec!["a \"note\"".to_owned()],
            converter: Converter::default(),
            created_at: "2025-01-01T00:00:00.000Z".to_owned(),
            host: "build".to_owned(),
        };
        let text = metadata.to_json().unwrap();
        assert!(text.ends_with("}\n"));
        assert_eq!(Metadata::parse(text.as_bytes()).unwrap(), metadata);
        assert!(Metadata::parse(b"{}").is_err());
    }
}
