//! What a `.vmx` says of the machine, and which disks hang on which controller.
use std::collections::BTreeSet;

use queue::job::{Firmware, Machine, Nic};

use super::Vmx;
use crate::error::{Error, ErrorKind, Result};

/// In the order in which vSphere numbers the controllers.
const BUSES: [&str; 4] = ["ide", "scsi", "sata", "nvme"];
const MAX_NICS: usize = 64;

/// A disk as the `.vmx` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// `scsi`, `sata`, `nvme`, `ide`.
    pub bus: &'static str,
    /// `scsi0:1`
    pub slot: String,
    /// As written: neither resolved nor confined.
    pub file: String,
}

/// A number of CPUs and a firmware that are not told are VMware's defaults: one, and a BIOS.
pub fn machine(vmx: &Vmx) -> Machine {
    let number = |key: &str| {
        vmx.get(key)
            .and_then(|text| text.trim().parse::<u64>().ok())
    };
    let cpus = number("numvcpus").unwrap_or(1);
    let memory_mib = number("memsize").filter(|mib| *mib > 0);
    let firmware = match vmx.get("firmware") {
        Some(name) if name.eq_ignore_ascii_case("efi") => Firmware::Uefi,
        Some(name) if !name.eq_ignore_ascii_case("bios") => Firmware::Unknown,
        _ => Firmware::Bios,
    };
    let added = vmx.get("managedVM.autoAddVTPM").map(|_| true);
    let tpm = vmx.flag("vtpm.present").or(added);
    let mut machine = Machine {
        name: vmx.get("displayName").map(str::to_owned),
        cpus: u32::try_from(cpus).ok().filter(|cpus| *cpus > 0),
        memory_bytes: memory_mib.and_then(|mib| mib.checked_mul(1 << 20)),
        firmware,
        secure_boot: vmx.flag("uefi.secureBoot.enabled"),
        tpm,
        os_hint: vmx.get("guestOS").map(str::to_owned),
        nics: nics(vmx),
        notes: Vec::new(),
    };
    if tpm == Some(true) {
        let note = "the TPM's content stays behind: what was sealed to it asks for a recovery key";
        machine.notes.push(note.to_owned());
    }
    let passed = (0..16).map(|number| format!("pciPassthru{number}.present"));
    let passed = passed.filter(|key| vmx.flag(key) == Some(true)).count();
    if passed > 0 {
        let note = format!("{passed} passed-through PCI devices are not carried across");
        machine.notes.push(note);
    }
    machine
}

fn nics(vmx: &Vmx) -> Vec<Nic> {
    let numbers: BTreeSet<u32> = vmx.keys().filter_map(nic_number).collect();
    let is_there = |number: &u32| vmx.flag(&format!("ethernet{number}.present")) == Some(true);
    let nic = |number: u32| {
        let get = |key: &str| vmx.get(&format!("ethernet{number}.{key}"));
        let is_static = get("addressType").is_some_and(|kind| kind.eq_ignore_ascii_case("static"));
        let (first, second) = match is_static {
            true => ("address", "generatedAddress"),
            false => ("generatedAddress", "address"),
        };
        let address = get(first).or(get(second));
        let network = get("networkName").or(get("dvs.portgroupId"));
        let network = network.or(get("vnet")).or(get("connectionType"));
        Nic {
            mac: address.and_then(Nic::normal_mac),
            network: network.map(str::to_owned),
            model: get("virtualDev").map(str::to_owned),
        }
    };
    let numbers = numbers.into_iter().filter(is_there).take(MAX_NICS);
    numbers.map(nic).collect()
}

fn nic_number(key: &str) -> Option<u32> {
    let (number, _) = key.strip_prefix("ethernet")?.split_once('.')?;
    number.parse().ok()
}

/// The hard disks that are attached: those of `bios.hddOrder` first, then by bus, controller, unit.
/// Also what was left out, one line each.
pub fn disks(vmx: &Vmx) -> Result<(Vec<Attached>, Vec<String>)> {
    let mut slots: Vec<Slot> = vmx.keys().filter_map(Slot::of_key).collect();
    let order = vmx.get("bios.hddOrder").unwrap_or_default();
    let order: Vec<String> = order
        .split(',')
        .map(|slot| slot.trim().to_ascii_lowercase())
        .collect();
    slots.sort_by_key(|slot| {
        let first = order.iter().position(|name| *name == slot.name());
        (first.unwrap_or(usize::MAX), *slot)
    });
    let (mut disks, mut left_out) = (Vec::new(), Vec::new());
    for slot in slots {
        let name = slot.name();
        let Some(file) = slot.disk(vmx)? else {
            continue;
        };
        let controller = format!("{}{}.present", slot.bus(), slot.controller);
        if [format!("{name}.present"), controller]
            .iter()
            .any(|key| vmx.flag(key) == Some(false))
        {
            left_out.push(format!("{name} ({file}) is not connected and left out"));
            continue;
        }
        disks.push(Attached {
            bus: slot.bus(),
            slot: name,
            file,
        });
    }
    Ok((disks, left_out))
}

/// A place on a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Slot {
    /// In `BUSES`.
    bus: usize,
    controller: u32,
    unit: u32,
}

impl Slot {
    /// Of `scsi0:1.filename`.
    fn of_key(key: &str) -> Option<Self> {
        let place = key.strip_suffix(".filename")?;
        let bus = BUSES.iter().position(|bus| place.starts_with(bus))?;
        let numbers = place.strip_prefix(BUSES.get(bus)?)?;
        let (controller, unit) = numbers.split_once(':')?;
        Some(Self {
            bus,
            controller: controller.parse().ok()?,
            unit: unit.parse().ok()?,
        })
    }

    fn bus(self) -> &'static str {
        BUSES.get(self.bus).copied().unwrap_or("scsi")
    }

    fn name(self) -> String {
        format!("{}{}:{}", self.bus(), self.controller, self.unit)
    }

    /// The file of the hard disk in this slot; `None` for a CD drive or an empty one.
    fn disk(self, vmx: &Vmx) -> Result<Option<String>> {
        let name = self.name();
        let file = vmx.get(&format!("{name}.fileName")).unwrap_or_default();
        let kind = vmx.get(&format!("{name}.deviceType")).unwrap_or_default();
        let kind = kind.to_ascii_lowercase();
        let is_vmdk = file.to_ascii_lowercase().ends_with(".vmdk");
        if kind.contains("cdrom") || (kind.is_empty() && !is_vmdk) || file.is_empty() {
            return Ok(None);
        }
        if !is_vmdk || kind == "rawdisk" || kind.contains("passthru") {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{name} is a device of its host ({file:?}), not a VMDK"),
            )
            .with_remedy("copy that device by itself, or detach it from the VM for the export"));
        }
        Ok(Some(file.to_owned()))
    }
}
