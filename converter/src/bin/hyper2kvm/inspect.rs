//! `hyper2kvm inspect`: what a source holds, from its headers and maps; with --guest, its system.
use std::path::PathBuf;
use std::process::ExitCode;

use converter::convert::examine::{self, Care, Examined};
use converter::convert::vm;
use converter::disk::{Image, Stored};
use converter::error::{Error, Result};
use converter::guest::model::Guest;
use converter::source::{self, Appliance, SourceDisk};
use indicatif::BinaryBytes;
use queue::instance::Config;
use queue::job::Machine;
use serde::Serialize;

use crate::args::InspectArgs;
use crate::convert::locate;
use crate::output;
use crate::progress::{Interrupt, Progress};

#[derive(Serialize)]
struct Inspection {
    source: PathBuf,
    machine: Machine,
    disks: Vec<Disk>,
    notes: Vec<String>,
    /// With --guest: the system on the disks, or why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    guest: Option<Examined>,
}

#[derive(Serialize)]
struct Disk {
    name: String,
    format: String,
    capacity_bytes: u64,
    /// The sizes of its files together, and what the file system holds for them.
    source_bytes: u64,
    allocated_bytes: u64,
    /// Guest bytes that the map says are stored, and how many extents they are.
    mapped_bytes: u64,
    mapped_extents: u64,
    bus: Option<String>,
    boot_order: Option<i64>,
    files: Vec<DiskFile>,
}

#[derive(Serialize)]
struct DiskFile {
    path: PathBuf,
    length_bytes: u64,
}

pub fn run(args: &InspectArgs) -> ExitCode {
    let inspection = match inspect(args) {
        Ok(inspection) => inspection,
        Err(error) => return output::trouble(&error, args.json, output::FAILED),
    };
    if args.json {
        output::json(&inspection);
    } else {
        show(&inspection);
    }
    ExitCode::SUCCESS
}

fn inspect(args: &InspectArgs) -> Result<Inspection> {
    let (roots, owner) = locate(&args.source, &args.source_roots)?;
    let appliance = source::open(&roots, &owner, false)?;
    let guest = args.guest.then(|| examine(args, &appliance)).transpose()?;
    Ok(Inspection {
        guest,
        source: owner,
        machine: appliance.machine,
        disks: appliance.disks.iter().map(look).collect::<Result<_>>()?,
        notes: appliance.notes,
    })
}

fn examine(args: &InspectArgs, appliance: &Appliance) -> Result<Examined> {
    let mut settings = Config::default().guest;
    settings.accel = args.accel.into();
    let mut caring = Care::of(&settings, &examine::cache_dir());
    caring.keys.extend(read_keys(&args.key_files)?);
    let interrupt = Interrupt::listen()?;
    let progress = Progress::new(vm::work_bytes(appliance), args.json, &interrupt);
    examine::examine(appliance, &caring, &progress)
}

pub fn read_keys(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>> {
    let read = |path: &PathBuf| std::fs::read(path).map_err(|e| Error::io("read", path, e));
    paths.iter().map(read).collect()
}

fn look(disk: &SourceDisk) -> Result<Disk> {
    let (mut mapped_bytes, mut mapped_extents) = (0u64, 0u64);
    for extent in disk.image.extents() {
        let extent = extent?;
        if !matches!(extent.stored, Stored::Hole | Stored::Zero) {
            mapped_bytes = mapped_bytes.saturating_add(extent.length_bytes);
            mapped_extents += 1;
        }
    }
    Ok(Disk {
        name: disk.name.clone(),
        format: disk.format.clone(),
        capacity_bytes: disk.capacity_bytes,
        source_bytes: disk.source_bytes,
        allocated_bytes: disk.allocated_bytes,
        mapped_bytes,
        mapped_extents,
        bus: disk.bus.clone(),
        boot_order: disk.boot_order,
        files: files(disk.image.as_ref()),
    })
}

fn files(image: &dyn Image) -> Vec<DiskFile> {
    let describe = |window: &converter::disk::Window| DiskFile {
        path: window.path().to_path_buf(),
        length_bytes: window.length_bytes(),
    };
    image.files().iter().map(describe).collect()
}

fn show(inspection: &Inspection) {
    let machine = &inspection.machine;
    output::line(&inspection.source.display().to_string());
    let field = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            output::line(&format!("  {name:<10} {value}"));
        }
    };
    field("name", machine.name.clone());
    field("cpus", machine.cpus.map(|cpus| cpus.to_string()));
    let memory = machine
        .memory_bytes
        .map(|bytes| BinaryBytes(bytes).to_string());
    field("memory", memory);
    if machine.firmware != queue::job::Firmware::Unknown {
        field(
            "firmware",
            Some(format!("{:?}", machine.firmware).to_lowercase()),
        );
    }
    field("guest", machine.os_hint.clone());
    for nic in &machine.nics {
        let parts = [&nic.model, &nic.mac, &nic.network];
        let parts: Vec<_> = parts.into_iter().flatten().map(String::as_str).collect();
        field("network", Some(parts.join(", ")));
    }
    for (number, disk) in (1..).zip(&inspection.disks) {
        let label = format!("disk {number}");
        field(&label, Some(format!("{}: {}", disk.name, disk.format)));
        let exact = disk.capacity_bytes;
        field(
            "capacity",
            Some(format!("{} ({exact} bytes)", BinaryBytes(exact))),
        );
        let mapped = format!(
            "{} in {} extents; {} of {} in files allocated",
            BinaryBytes(disk.mapped_bytes),
            disk.mapped_extents,
            BinaryBytes(disk.allocated_bytes),
            BinaryBytes(disk.source_bytes)
        );
        field("mapped", Some(mapped));
        field("bus", disk.bus.clone());
        for file in &disk.files {
            field("file", Some(file.path.display().to_string()));
        }
    }
    match &inspection.guest {
        None => {}
        Some(Examined {
            guest: Some(guest), ..
        }) => show_guest(guest, &field),
        Some(none) => field("system", none.reason.clone()),
    }
    for note in inspection.notes.iter().chain(&machine.notes) {
        field("note", Some(note.clone()));
    }
}

fn show_guest(guest: &Guest, field: &dyn Fn(&str, Option<String>)) {
    let word = |value: String| Some(value.to_lowercase());
    field("system", Some(guest.os.name.clone()));
    field("hostname", guest.os.hostname.clone());
    field("root", Some(guest.root.clone()));
    for root in &guest.other_roots {
        field("other root", Some(root.clone()));
    }
    field(
        "boots by",
        word(format!("{:?}, {:?}", guest.firmware, guest.boot_loader)),
    );
    for device in &guest.devices {
        let at = device.mountpoint.as_ref().map(|path| format!(" on {path}"));
        let uuid = device.uuid.as_deref().unwrap_or_default();
        let at = at.unwrap_or_default();
        field(
            "device",
            Some(format!("{} {} {uuid}{at}", device.name, device.fs_type)),
        );
    }
    for kernel in &guest.kernels {
        let drivers = kernel.drivers.join(" ");
        field("kernel", Some(format!("{}: {drivers}", kernel.version)));
    }
    for agent in &guest.agents {
        field("agent", Some(agent.clone()));
    }
    field("selinux", word(format!("{:?}", guest.selinux)));
}
