//! A VM as a provider finds it and hands it over, and the trait that every provider implements.
//!
//! Knows no provider and no queue.
use std::path::Path;

use queue::job::Machine;
use serde::Serialize;

use crate::error::Result;
use crate::transfer::{Algorithm, Monitor};

/// A VM before its export.
#[derive(Debug, Clone)]
pub struct Vm {
    pub name: String,
    /// The provider's own id for it.
    pub id: Option<String>,
    pub machine: Machine,
    /// In hardware order, as far as the provider knows it.
    pub disks: Vec<Disk>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Unique within the VM: `disk-0`, `disk-1` …
    pub id: String,
    /// The file that stands for the disk, a plain name.
    pub file: String,
    /// As a manifest spells it: vmdk, vhd, vhdx, raw, qcow2, vdi.
    pub format: String,
    /// Of all its files.
    pub size_bytes: u64,
}

/// A disk that lies in the directory it was exported to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Delivered {
    pub id: String,
    pub file: String,
    pub format: String,
    /// Of the file that stands for the disk.
    pub size_bytes: u64,
    /// Of the same: `sha256:<hex>` or `blake3:<hex>`.
    pub checksum: String,
}

/// One place that VMs come from, and one VM there.
pub trait Provider: Send + Sync {
    /// As `source.provider` of a manifest names it.
    fn name(&self) -> &'static str;
    /// As `source.export_method` of a manifest names it.
    fn method(&self) -> &'static str;
    /// Finds the VM and tells what it is; changes nothing.
    fn describe(&self) -> Result<Vm>;
    /// Brings all disks into the directory `into`, or fails; what lies there of a failed export is
    /// the caller's to remove. The VM and its disks are never modified.
    fn export(
        &self,
        vm: &Vm,
        into: &Path,
        checksum: Algorithm,
        monitor: &dyn Monitor,
    ) -> Result<Vec<Delivered>>;
}
