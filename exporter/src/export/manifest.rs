//! The Artifact Manifest of an export, as HyperSDK and our own converter read it.
use std::time::SystemTime;

use queue::job::manifest::{Disk, Manifest, ManifestNic, Source, Vm as ManifestVm};
use queue::job::record::timestamp;
use queue::job::{JobId, Machine};

use crate::machine::{Delivered, Provider, Vm};

pub const FILE_NAME: &str = "manifest.json";

pub fn build(provider: &dyn Provider, vm: &Vm, disks: &[Delivered], job: JobId) -> Manifest {
    let now = timestamp(SystemTime::now());
    Manifest {
        manifest_version: "1.0".to_owned(),
        source: Some(Source {
            provider: Some(provider.name().to_owned()),
            vm_id: vm.id.clone(),
            vm_name: Some(vm.name.clone()),
            export_timestamp: Some(now.clone()),
            export_method: Some(provider.method().to_owned()),
            ..Source::default()
        }),
        vm: hardware(&vm.machine),
        disks: disks.iter().enumerate().map(disk).collect(),
        nics: vm.machine.nics.iter().enumerate().map(nic).collect(),
        notes: Vec::new(),
        warnings: Vec::new(),
        metadata: Some(serde_json::json!({
            "hyperexport_version": env!("CARGO_PKG_VERSION"),
            "job_id": job.to_string(),
            "created_at": now,
        })),
        pipeline: None,
        output: None,
        options: None,
        unknown: Default::default(),
    }
}

/// What the provider knows of the machine; nothing if it knows nothing.
fn hardware(machine: &Machine) -> Option<ManifestVm> {
    let known = ManifestVm {
        cpu: machine.cpus,
        mem_gb: machine
            .memory_bytes
            .map(|bytes| bytes as f64 / f64::from(1 << 30)),
        mem_mb: machine.memory_bytes.map(|bytes| bytes >> 20),
        firmware: machine.firmware,
        secureboot: machine.secure_boot,
        tpm: machine.tpm,
        os_hint: machine.os_hint.clone(),
        ..ManifestVm::default()
    };
    (known != ManifestVm::default()).then_some(known)
}

fn disk((index, disk): (usize, &Delivered)) -> Disk {
    Disk {
        id: disk.id.clone(),
        source_format: disk.format.clone(),
        bytes: disk.size_bytes,
        local_path: disk.file.clone(),
        checksum: Some(disk.checksum.clone()),
        boot_order_hint: i64::try_from(index).ok(),
        label: None,
        disk_type: None,
        bus: None,
        unknown: Default::default(),
    }
}

fn nic((index, nic): (usize, &queue::job::Nic)) -> ManifestNic {
    ManifestNic {
        id: Some(format!("nic-{index}")),
        mac: nic.mac.clone(),
        network: nic.network.clone(),
        model: nic.model.clone(),
        ..ManifestNic::default()
    }
}
