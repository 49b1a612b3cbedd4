//! The Artifact Manifest of an export, as HyperSDK and our own converter read it.
use std::time::SystemTime;

use queue::job::manifest::{Disk, MADE_BY, Manifest, ManifestNic, Source, Vm as ManifestVm};
use queue::job::record::timestamp;
use queue::job::{JobId, Machine};
use serde_json::Value;

use crate::machine::{Delivered, Exported, Provider, Vm};

pub const FILE_NAME: &str = "manifest.json";

/// `is_growing`: the disks begin to arrive.
pub fn build(
    provider: &dyn Provider,
    vm: &Vm,
    exported: &Exported,
    job: JobId,
    is_growing: bool,
) -> Manifest {
    let now = timestamp(SystemTime::now());
    Manifest {
        manifest_version: "1.0".to_owned(),
        source: Some(Source {
            provider: Some(provider.name().to_owned()),
            vm_id: Some(vm.id.clone()),
            vm_name: Some(vm.name.clone()),
            export_timestamp: Some(now.clone()),
            export_method: Some(exported.method.to_owned()),
            datacenter: vm.datacenter.clone(),
            ..Source::default()
        }),
        vm: hardware(&vm.machine),
        disks: exported
            .disks
            .iter()
            .enumerate()
            .map(|(index, delivered)| disk(index, delivered, vm, is_growing))
            .collect(),
        nics: vm.machine.nics.iter().enumerate().map(nic).collect(),
        notes: notes(vm, exported),
        warnings: exported
            .warnings
            .iter()
            .map(|text| warning(text, &now))
            .collect(),
        metadata: Some(serde_json::json!({
            MADE_BY: env!("CARGO_PKG_VERSION"),
            "job_id": job.to_string(),
            "created_at": now,
            "tags": vm.tags,
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

fn notes(vm: &Vm, exported: &Exported) -> Vec<Value> {
    let said = vm.annotation.iter().chain(&vm.machine.notes);
    let said = said.chain(&exported.notes);
    said.map(|text| Value::from(text.as_str())).collect()
}

fn warning(text: &str, now: &str) -> Value {
    serde_json::json!({"stage": "export", "message": text, "timestamp": now})
}

fn disk(index: usize, delivered: &Delivered, vm: &Vm, is_growing: bool) -> Disk {
    let known = vm.disks.iter().find(|disk| disk.id == delivered.id);
    Disk {
        id: delivered.id.clone(),
        source_format: delivered.format.clone(),
        bytes: delivered.size_bytes,
        local_path: delivered.file.clone(),
        checksum: (!is_growing).then(|| delivered.checksum.clone()),
        boot_order_hint: i64::try_from(index).ok(),
        label: known.and_then(|disk| disk.label.clone()),
        disk_type: None,
        bus: known.and_then(|disk| disk.bus.clone()),
        pieces: delivered.pieces.clone(),
        growing: is_growing,
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
