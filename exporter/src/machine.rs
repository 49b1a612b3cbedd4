//! A VM as a provider finds it and hands it over, and the trait that every provider implements.
//!
//! Knows no provider and no queue.
use std::path::Path;

use queue::job::Machine;
use queue::job::manifest::Piece;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::transfer::download::Sink;
use crate::transfer::{Algorithm, Monitor};

/// What `discover` tells of a VM: what costs the server little.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    pub name: String,
    /// The provider's own id; `describe` of it finds this VM and no other.
    pub id: String,
    /// Where it stands in the provider's inventory, as people read it.
    pub location: Option<String>,
    pub power: Power,
    pub cpus: Option<u32>,
    pub memory_bytes: Option<u64>,
    /// As the provider spells it.
    pub guest_os: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    On,
    Off,
    Suspended,
    /// The provider does not know, or has no such thing.
    #[default]
    Unknown,
}

impl Power {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
            Self::Suspended => "suspended",
            Self::Unknown => "unknown",
        }
    }
}

/// A VM before its export.
#[derive(Debug, Clone, Default)]
pub struct Vm {
    pub name: String,
    /// The provider's own id; `describe` of it finds this VM again.
    pub id: String,
    pub location: Option<String>,
    pub datacenter: Option<String>,
    pub power: Power,
    pub machine: Machine,
    /// In hardware order, as far as the provider knows it.
    pub disks: Vec<Disk>,
    /// What its owners wrote about it.
    pub annotation: Option<String>,
    pub tags: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Unique within the VM: `disk-0`, `disk-1` …
    pub id: String,
    /// The file that stands for the disk, relative to where it is exported to.
    pub file: String,
    /// As a manifest spells it: vmdk, vhd, vhdx, raw, qcow2, vdi; ova or ovf for all disks in one.
    pub format: String,
    /// Of all its files, or what an export of it is expected to take.
    pub size_bytes: u64,
    /// As the guest sees it.
    pub capacity_bytes: Option<u64>,
    /// As its owners see it: `Hard disk 1`.
    pub label: Option<String>,
    /// Its controller: `scsi`, `sata`, `nvme`, `ide`.
    pub bus: Option<String>,
}

/// A disk that lies in the directory it was exported to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Delivered {
    /// As `Disk::id`.
    pub id: String,
    pub file: String,
    pub format: String,
    /// Of the file that stands for the disk.
    pub size_bytes: u64,
    /// Of the same: `sha256:<hex>` or `blake3:<hex>`.
    pub checksum: String,
    /// Its other files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pieces: Vec<Piece>,
}

/// How an export is to be done, whatever the provider.
#[derive(Clone, Copy)]
pub struct Order<'a> {
    pub checksum: Algorithm,
    /// Where the disks go if each of them arrives from its first byte to its last; else they go
    /// into the directory.
    pub stream: Option<&'a dyn Stream>,
}

/// Whoever reads the disks of an export while they arrive.
pub trait Stream: Sync {
    /// All disks begin to arrive. Of `expected`, the checksums are not known.
    fn begin(&self, expected: &Exported) -> Result<()>;
    /// Whether nobody reads any longer: the export is to end, however it stands. Asked all the
    /// time while disks arrive.
    fn is_over(&self) -> bool;
    /// Where the disk of this file is appended to.
    fn sink(&self, file: &str) -> Result<Box<dyn Sink + '_>>;
    /// This disk is there. It may still turn out to be damaged.
    fn end(&self, disk: &Delivered) -> Result<()>;
    /// All disks are there, and are what the provider has sent: the export has succeeded.
    fn finish(&self, disks: &[Delivered]) -> Result<()>;
    /// A disk has to be fetched anew, for this reason: what was read cannot be taken back. The
    /// error to end the export with.
    fn fail(&self, why: &str) -> Error;
}

/// What an export brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// As `source.export_method` of a manifest names it.
    pub method: &'static str,
    /// In the order of the VM's disks.
    pub disks: Vec<Delivered>,
    /// The OVF descriptor that lies beside the disks, where the provider has one.
    pub descriptor: Option<String>,
    /// What is worth keeping of it, one line each.
    pub notes: Vec<String>,
    /// What the administrator should know of this export, one line each.
    pub warnings: Vec<String>,
    /// Whether the disks went to `Order::stream`.
    pub is_streamed: bool,
}

/// Something that an export leaves on the server for as long as it runs, and no longer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Debt {
    pub provider: String,
    /// Of several that the provider can talk to: only this one can settle it.
    pub server: String,
    /// The provider's word for it: `snapshot`, `lease`.
    pub kind: String,
    /// What it belongs to, and its own name, both as the provider spells them.
    pub of: String,
    pub name: String,
}

/// Remembers debts, so that an export that dies can be cleaned up after.
pub trait Ledger: Send + Sync {
    /// Durable when it returns; called before the thing is made.
    fn owe(&self, debt: &Debt) -> Result<()>;
    /// The thing is gone, or was never made.
    fn settle(&self, debt: &Debt) -> Result<()>;
}

/// One place that VMs come from. Every call may be made from several threads at once.
pub trait Provider: Send + Sync {
    /// As `source.provider` of a manifest names it.
    fn name(&self) -> &'static str;
    /// The VMs that `pattern` means: a name, an inventory path, a glob over either, a UUID, or the
    /// provider's own id. None is no error.
    fn discover(&self, pattern: &str) -> Result<Vec<Summary>>;
    /// The one VM that `vm` means, in the words of `discover`; several are an error that lists
    /// them. Changes nothing.
    fn describe(&self, vm: &str) -> Result<Vm>;
    /// Brings all disks into the directory `into`, or into the stream of `order` if the provider
    /// can, or fails; what lies there of a failed export is the caller's to remove. The VM and its
    /// disks are never modified. What has to be made on the server meanwhile is in the ledger
    /// first, and gone when this returns, also in failure and when the monitor cancels; what could
    /// not be removed stays in the ledger.
    fn export(
        &self,
        vm: &Vm,
        into: &Path,
        order: Order<'_>,
        ledger: &dyn Ledger,
        monitor: &dyn Monitor,
    ) -> Result<Exported>;
    /// Removes what exports left behind that died; each debt is settled in the ledger when its
    /// thing is gone, whoever removed it. Debts of other providers and servers are left alone.
    fn clean_up(&self, debts: &[Debt], ledger: &dyn Ledger) -> Result<()>;
}
