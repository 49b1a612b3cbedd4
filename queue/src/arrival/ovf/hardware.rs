//! The machine around the disks, and the order in which its disks hang on its controllers.
//!
//! DSP0243 section 8, with the extensions of VMware (`vmw:Config`, subtype `vmware.vtpm`) and
//! VirtualBox (`vbox:Machine`). What the descriptor does not say stays unknown; nothing is guessed.
use std::collections::HashMap;

use crate::job::{Firmware, Machine, Nic};
use roxmltree::Node;

use super::items::{self, Item};
use super::units;
use super::xml::{attribute, child, child_text, children, quote};

const MAX_NICS: usize = 64;

/// What a disk item of the hardware points to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// `ovf:/disk/<diskId>`
    Disk(String),
    /// `ovf:/file/<id>`
    File(String),
}

#[derive(Debug, Clone)]
pub struct Attachment {
    pub backing: Backing,
    pub bus: Option<String>,
}

/// Reads one VirtualSystem: its machine, and its disks in hardware order.
pub fn read(envelope: Node<'_, '_>, system: Node<'_, '_>) -> (Machine, Vec<Attachment>) {
    let mut machine = Machine {
        name: child_text(system, "Name")
            .or_else(|| attribute(system, "id").filter(|id| !id.is_empty()))
            .map(str::to_owned),
        os_hint: os_hint(system),
        ..Machine::default()
    };
    let mut notes = Vec::new();
    let mut sections = children(system, "VirtualHardwareSection");
    let section = sections.next();
    if sections.next().is_some() {
        notes.push("the descriptor offers several hardware sections; the first is used".to_owned());
    }
    let mut attachments = Vec::new();
    if let Some(section) = section {
        let items = items::read(envelope, section, &mut notes);
        machine.cpus = cpus(&items, &mut notes);
        machine.memory_bytes = memory_bytes(&items, &mut notes);
        machine.nics = nics(&items, &mut notes);
        if items.iter().any(|item| item.subtype_has("vmware.vtpm")) {
            machine.tpm = Some(true);
        }
        read_vmware(section, &mut machine);
        attachments = disks_in_order(&items, &mut notes);
        note_removable(&items, &mut notes);
    } else {
        notes.push("the descriptor has no hardware section".to_owned());
    }
    read_virtualbox(system, &mut machine, &mut notes);
    machine.notes = notes;
    (machine, attachments)
}

/// The hardware family that the descriptor was written for.
pub fn system_type(system: Node<'_, '_>) -> Option<String> {
    let section = child(system, "VirtualHardwareSection")?;
    let named = child(section, "System")?;
    child_text(named, "VirtualSystemType").map(str::to_owned)
}

fn os_hint(system: Node<'_, '_>) -> Option<String> {
    let section = child(system, "OperatingSystemSection")?;
    attribute(section, "osType")
        .filter(|hint| !hint.is_empty())
        .or_else(|| child_text(section, "Description"))
        .or_else(|| child_text(section, "OSType"))
        .map(str::to_owned)
}

fn of_type(items: &[Item], resource_type: u32) -> impl Iterator<Item = &Item> {
    items
        .iter()
        .filter(move |item| item.resource_type == Some(resource_type))
}

fn cpus(items: &[Item], notes: &mut Vec<String>) -> Option<u32> {
    let mut total: u32 = 0;
    for item in of_type(items, items::CPU) {
        let count = quantity(item).and_then(|count| u32::try_from(count).ok());
        match count.and_then(|count| total.checked_add(count)) {
            Some(sum) => total = sum,
            None => notes.push(format!(
                "the number of CPUs of {} cannot be read",
                item.label()
            )),
        }
    }
    (total > 0).then_some(total)
}

fn memory_bytes(items: &[Item], notes: &mut Vec<String>) -> Option<u64> {
    let mut total: u64 = 0;
    for item in of_type(items, items::MEMORY) {
        let bytes = quantity(item).and_then(|quantity| match &item.units {
            Some(unit) => units::to_bytes(quantity, unit),
            None => {
                notes.push(format!(
                    "the memory of {} has no unit; MiB are assumed",
                    item.label()
                ));
                units::to_bytes(quantity, "MegaBytes")
            }
        });
        match bytes.and_then(|bytes| total.checked_add(bytes)) {
            Some(sum) => total = sum,
            None => notes.push(format!("the memory of {} cannot be read", item.label())),
        }
    }
    (total > 0).then_some(total)
}

fn quantity(item: &Item) -> Option<u64> {
    item.quantity.as_ref()?.parse().ok()
}

fn nics(items: &[Item], notes: &mut Vec<String>) -> Vec<Nic> {
    let mut nics: Vec<Nic> = Vec::new();
    for item in of_type(items, items::ETHERNET) {
        if nics.len() >= MAX_NICS {
            notes.push(format!("only the first {MAX_NICS} network cards are kept"));
            break;
        }
        let mac = item.address.as_ref().and_then(|address| {
            let mac = Nic::normal_mac(address);
            if mac.is_none() {
                notes.push(format!(
                    "{} has the MAC address {}, which no network card can have; it is left out",
                    item.label(),
                    quote(address)
                ));
            }
            mac
        });
        nics.push(Nic {
            mac,
            network: item.connection.clone(),
            model: item.subtype.clone(),
        });
    }
    nics
}

/// `vmw:Config` of the hardware section and of its items.
fn read_vmware(section: Node<'_, '_>, machine: &mut Machine) {
    let configs = section
        .descendants()
        .filter(|node| matches!(node.tag_name().name(), "Config" | "ExtraConfig"));
    for config in configs {
        let (Some(key), Some(value)) = (attribute(config, "key"), attribute(config, "value"))
        else {
            continue;
        };
        match key {
            "firmware" => machine.firmware = firmware(value),
            "bootOptions.efiSecureBootEnabled" | "uefi.secureBoot.enabled" => {
                machine.secure_boot = flag(value);
            }
            _ => {}
        }
    }
}

fn firmware(value: &str) -> Firmware {
    let value = value.to_ascii_lowercase();
    if value == "bios" {
        Firmware::Bios
    } else if value == "uefi" || value.starts_with("efi") {
        Firmware::Uefi
    } else {
        Firmware::Unknown
    }
}

fn flag(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" => Some(true),
        "false" | "0" | "no" => Some(false),
        _ => None,
    }
}

/// VirtualBox keeps the firmware, the TPM and the MAC addresses in its own `vbox:Machine`.
fn read_virtualbox(system: Node<'_, '_>, machine: &mut Machine, notes: &mut Vec<String>) {
    let hardware = child(system, "Machine").and_then(|node| child(node, "Hardware"));
    let Some(hardware) = hardware else {
        return;
    };
    if machine.firmware == Firmware::Unknown
        && let Some(kind) = child(hardware, "Firmware").and_then(|node| attribute(node, "type"))
    {
        machine.firmware = firmware(kind);
    }
    let tpm = child(hardware, "TrustedPlatformModule").and_then(|node| attribute(node, "type"));
    if tpm.is_some_and(|kind| kind != "None") {
        machine.tpm = Some(true);
    }
    let macs: Vec<Option<&str>> = child(hardware, "Network")
        .into_iter()
        .flat_map(|network| children(network, "Adapter"))
        .filter(|adapter| attribute(*adapter, "enabled").and_then(flag) == Some(true))
        .map(|adapter| attribute(adapter, "MACAddress"))
        .collect();
    if macs.len() != machine.nics.len() {
        if machine.nics.iter().any(|nic| nic.mac.is_none()) && !macs.is_empty() {
            notes.push("the network cards' MAC addresses cannot be told apart".to_owned());
        }
        return;
    }
    for (nic, mac) in machine.nics.iter_mut().zip(macs) {
        nic.mac = nic.mac.take().or_else(|| mac.and_then(Nic::normal_mac));
    }
}

/// Disks by controller (kinds in the descriptor's order, then bus number), then by address on it.
fn disks_in_order(items: &[Item], notes: &mut Vec<String>) -> Vec<Attachment> {
    let mut controllers: HashMap<&str, (usize, &Item)> = HashMap::new();
    let mut kinds: HashMap<(Option<u32>, Option<&str>), usize> = HashMap::new();
    for (place, item) in items.iter().enumerate() {
        if item.resource_type != Some(items::DISK)
            && let Some(id) = &item.instance_id
        {
            controllers.entry(id).or_insert((place, item));
            kinds
                .entry((item.resource_type, bus(item)))
                .or_insert(place);
        }
    }
    let mut disks = Vec::new();
    for (place, item) in items.iter().enumerate() {
        if item.resource_type != Some(items::DISK) {
            continue;
        }
        let Some(backing) = backing(item) else {
            notes.push(format!(
                "the disk {} names no file of this package and is left out",
                item.label()
            ));
            continue;
        };
        let parent = item
            .parent
            .as_ref()
            .and_then(|id| controllers.get(id.as_str()));
        let of_controller = parent.map_or((usize::MAX, u64::MAX, usize::MAX), |(at, parent)| {
            let kind = kinds.get(&(parent.resource_type, bus(parent))).copied();
            let number = parent.address.as_ref().and_then(|text| text.parse().ok());
            (kind.unwrap_or(*at), number.unwrap_or(u64::MAX), *at)
        });
        let key = (
            of_controller,
            item.address_on_parent.unwrap_or(u64::MAX),
            place,
        );
        let bus = parent
            .and_then(|(_, parent)| bus(parent))
            .map(str::to_owned);
        disks.push((key, Attachment { backing, bus }));
    }
    disks.sort_by_key(|(key, _)| *key);
    disks.into_iter().map(|(_, disk)| disk).collect()
}

/// The bus that a controller drives.
fn bus(controller: &Item) -> Option<&'static str> {
    match controller.resource_type? {
        items::IDE => Some("ide"),
        items::SCSI => Some("scsi"),
        items::USB => Some("usb"),
        items::OTHER_STORAGE => [
            ("nvme", "nvme"),
            ("sata", "sata"),
            ("ahci", "sata"),
            ("scsi", "scsi"),
        ]
        .into_iter()
        .find(|(word, _)| controller.subtype_has(word))
        .map(|(_, bus)| bus),
        _ => None,
    }
}

fn backing(item: &Item) -> Option<Backing> {
    item.host_resources.iter().find_map(|resource| {
        let path = resource.strip_prefix("ovf:").unwrap_or(resource);
        let (kind, id) = path.trim_start_matches('/').split_once('/')?;
        match kind {
            "disk" => Some(Backing::Disk(id.to_owned())),
            "file" => Some(Backing::File(id.to_owned())),
            _ => None,
        }
    })
}

fn note_removable(items: &[Item], notes: &mut Vec<String>) {
    let removable = items.iter().filter(|item| {
        matches!(
            item.resource_type,
            Some(items::FLOPPY | items::CD | items::DVD)
        )
    });
    for item in removable.filter(|item| backing(item).is_some()) {
        notes.push(format!("the medium in {} is left out", item.label()));
    }
}
