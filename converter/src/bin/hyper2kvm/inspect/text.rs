//! What `inspect` found, as lines for people. Texts come from files: nothing of them may steer the
//! terminal, and no list fills it.
use converter::convert::examine::Examined;
use converter::guest::model::Guest;
use indicatif::BinaryBytes;
use serde_json::Value;

use super::{Disk, Inspection};
use crate::output::{self, plain};

/// Lines of one list; `--json` has all.
const MOST_LINES: usize = 32;

pub(super) fn show(inspection: &Inspection) {
    output::line(&plain(&inspection.source.display().to_string()));
    show_machine(inspection);
    for (number, disk) in (1..).zip(&inspection.disks) {
        show_disk(number, disk);
    }
    if let Some(examined) = &inspection.guest {
        show_guest(examined);
    }
    let notes = inspection.notes.iter().chain(&inspection.machine.notes);
    for note in notes {
        field("note", Some(note));
    }
}

fn show_guest(examined: &Examined) {
    let Some(guest) = &examined.guest else {
        return field("system", examined.reason.as_deref());
    };
    field("system", Some(&guest.os.name));
    let os = [&guest.os.distro, &guest.os.version, &guest.os.arch];
    let os: Vec<&str> = os
        .map(String::as_str)
        .into_iter()
        .filter(|it| !it.is_empty())
        .collect();
    field("version", Some(&os.join(" ")));
    field("hostname", guest.os.hostname.as_deref());
    field("root", Some(&guest.root));
    for root in guest.other_roots.iter().take(MOST_LINES) {
        field("other root", Some(root));
    }
    for device in guest.locked.iter().take(MOST_LINES) {
        field("locked", Some(device));
    }
    let boots = format!("{:?}, {:?}", guest.firmware, guest.boot_loader).to_lowercase();
    field("boots by", Some(&boots));
    for device in guest.devices.iter().take(MOST_LINES) {
        let at = device.mountpoint.as_ref().map(|path| format!(" on {path}"));
        let (uuid, at) = (
            device.uuid.as_deref().unwrap_or_default(),
            at.unwrap_or_default(),
        );
        let line = format!("{} {} {uuid}{at}", device.name, device.fs_type);
        field("device", Some(&line));
    }
    for kernel in guest.kernels.iter().take(MOST_LINES) {
        let line = format!("{}: {}", kernel.version, kernel.drivers.join(" "));
        field("kernel", Some(&line));
    }
    show_network(guest);
    for agent in guest.agents.iter().take(MOST_LINES) {
        field("agent", Some(agent));
    }
    field(
        "selinux",
        Some(&format!("{:?}", guest.selinux).to_lowercase()),
    );
}

fn show_network(guest: &Guest) {
    for nic in guest.nics.iter().take(MOST_LINES) {
        let parts = [nic.mac.as_deref(), nic.name.as_deref()];
        let parts: Vec<&str> = parts.into_iter().flatten().collect();
        field("card", Some(&parts.join(" is ")));
    }
    for interface in guest.interfaces.iter().take(MOST_LINES) {
        let (name, mac) = (interface.name.as_deref(), interface.mac.as_deref());
        let line = format!(
            "{} {} ({})",
            name.or(mac).unwrap_or("any"),
            interface.addresses.join(" "),
            interface.files.join(", ")
        );
        field("interface", Some(&line));
    }
}

/// A line, unless nothing is known.
fn field(name: &str, value: Option<&str>) {
    if let Some(value) = value.filter(|value| !value.is_empty()) {
        output::line(&format!("  {name:<10} {}", plain(value)));
    }
}

fn show_machine(inspection: &Inspection) {
    let machine = &inspection.machine;
    field("name", machine.name.as_deref());
    let cpus = machine.cpus.map(|cpus| cpus.to_string());
    field("cpus", cpus.as_deref());
    let memory = machine.memory_bytes.map(size);
    field("memory", memory.as_deref());
    if machine.firmware != queue::job::Firmware::Unknown {
        let firmware = format!("{:?}", machine.firmware).to_lowercase();
        field("firmware", Some(&firmware));
    }
    for (name, value) in [("secure boot", machine.secure_boot), ("tpm", machine.tpm)] {
        field(name, value.map(|value| if value { "yes" } else { "no" }));
    }
    field("guest", machine.os_hint.as_deref());
    for nic in &machine.nics {
        let parts = [&nic.model, &nic.mac, &nic.network];
        let parts: Vec<_> = parts.into_iter().flatten().map(String::as_str).collect();
        field("network", Some(&parts.join(", ")));
    }
    if let Some(package) = &inspection.package {
        field("ovf", Some(&package.descriptor));
        let digests = package.digests.as_deref();
        field("digests", Some(digests.unwrap_or("none (no .mf)")));
        field("hardware", package.system_type.as_deref());
    }
}

fn size(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", BinaryBytes(bytes))
}

fn show_disk(number: usize, disk: &Disk) {
    let shown = format!("{}: {}", disk.name, disk.format);
    field(&format!("disk {number}"), Some(&shown));
    field("capacity", Some(&size(disk.capacity_bytes)));
    if disk.sector_bytes != 512 {
        field("sectors", Some(&format!("{} bytes", disk.sector_bytes)));
    }
    let map = &disk.map;
    let mapped = format!(
        "{} in {} extents, {} of them compressed; {} zeros, {} holes",
        BinaryBytes(map.mapped_bytes),
        map.mapped_extents,
        BinaryBytes(map.compressed_bytes),
        BinaryBytes(map.zero_bytes),
        BinaryBytes(map.hole_bytes)
    );
    field("mapped", Some(&mapped));
    let stored = format!(
        "{} in files, {} allocated",
        BinaryBytes(disk.source_bytes),
        BinaryBytes(disk.allocated_bytes)
    );
    field("stored", Some(&stored));
    field("bus", disk.bus.as_deref());
    for file in disk.files.iter().take(MOST_LINES) {
        let mapped = BinaryBytes(file.mapped_bytes);
        let shown = format!("{} ({mapped} of the disk)", file.path.display());
        field("file", Some(&shown));
    }
    show_rest("file", disk.files.len());
    for layer in disk.layers.iter().take(MOST_LINES) {
        let shown = format!("{} {}", layer.format, layer.path.display());
        field("layer", Some(&shown));
        show_value(4, "", &layer.fields);
    }
    show_rest("layer", disk.layers.len());
}

fn show_rest(name: &str, count: usize) {
    let more = count.saturating_sub(MOST_LINES);
    if more > 0 {
        field(name, Some(&format!("and {more} more")));
    }
}

/// One line for each field that is there, those of lists and objects with their path as the name.
fn show_value(indent: usize, name: &str, value: &Value) {
    let below = |key: &str| match name {
        "" => key.to_owned(),
        _ => format!("{name}.{key}"),
    };
    match value {
        Value::Null => {}
        Value::Object(fields) => {
            for (key, value) in fields {
                show_value(indent, &below(key), value);
            }
        }
        Value::Array(values) => {
            for (number, value) in values.iter().enumerate().take(MOST_LINES) {
                show_value(indent, &format!("{name}[{number}]"), value);
            }
            let more = values.len().saturating_sub(MOST_LINES);
            if more > 0 {
                output::line(&format!("{:indent$}{name}: and {more} more", ""));
            }
        }
        Value::String(text) => {
            let (name, text) = (plain(name), plain(text));
            output::line(&format!("{:indent$}{name}: {text}", ""));
        }
        other => output::line(&format!("{:indent$}{}: {other}", "", plain(name))),
    }
}
