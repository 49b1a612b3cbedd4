//! What the domain gets: the source's facts, else the configuration's, else a default. Every value
//! that the source did not say is stated in the notes, so that nothing is guessed silently.
use queue::instance::config::Libvirt;
use queue::job::{Firmware, Machine};

const DEFAULT_CPUS: u32 = 2;
const DEFAULT_MEMORY_BYTES: u64 = 2 << 30;
/// More than QEMU's q35 machine takes is a descriptor's mistake.
const MAX_CPUS: u32 = 4096;
const MEMORY_BYTES: std::ops::RangeInclusive<u64> = (1 << 20)..=(64 << 40);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hardware {
    pub cpus: u32,
    pub memory_kib: u64,
    pub uefi: bool,
    pub secure_boot: bool,
    pub tpm: bool,
    /// Windows keeps its hardware clock in local time.
    pub windows: bool,
    /// One line for each value that the source did not say.
    pub notes: Vec<String>,
}

pub fn resolve(machine: &Machine, settings: &Libvirt) -> Hardware {
    let mut notes = Vec::new();
    let cpus = resolve_cpus(machine.cpus, settings.vm_vcpus, &mut notes);
    let memory_bytes = resolve_memory(machine.memory_bytes, settings.vm_memory, &mut notes);
    let uefi = resolve_uefi(machine, settings.vm_uefi, &mut notes);
    let asked = machine.secure_boot == Some(true);
    if asked && !uefi {
        notes.push("secure boot needs UEFI and is off".to_owned());
    }
    let windows = machine
        .os_hint
        .as_ref()
        .is_some_and(|hint| hint.to_ascii_lowercase().starts_with("win"));
    Hardware {
        cpus,
        memory_kib: memory_bytes.div_ceil(1024),
        uefi,
        secure_boot: asked && uefi,
        tpm: machine.tpm == Some(true),
        windows,
        notes,
    }
}

fn resolve_cpus(said: Option<u32>, configured: Option<u32>, notes: &mut Vec<String>) -> u32 {
    let plausible = |cpus: &u32| (1..=MAX_CPUS).contains(cpus);
    if let Some(cpus) = said.filter(plausible) {
        return cpus;
    }
    let (cpus, origin) = match configured.filter(plausible) {
        Some(cpus) => (cpus, "vm_vcpus of the configuration"),
        None => (DEFAULT_CPUS, "a default"),
    };
    notes.push(match said {
        Some(said) => format!("the source says {said} vCPUs; {cpus} is {origin}"),
        None => format!("the source names no number of vCPUs; {cpus} is {origin}"),
    });
    cpus
}

fn resolve_memory(said: Option<u64>, configured: Option<u64>, notes: &mut Vec<String>) -> u64 {
    if let Some(bytes) = said.filter(|bytes| MEMORY_BYTES.contains(bytes)) {
        return bytes;
    }
    let configured = configured
        .and_then(|mib| mib.checked_mul(1 << 20))
        .filter(|bytes| MEMORY_BYTES.contains(bytes));
    let (bytes, origin) = match configured {
        Some(bytes) => (bytes, "vm_memory of the configuration"),
        None => (DEFAULT_MEMORY_BYTES, "a default"),
    };
    let mib = bytes >> 20;
    notes.push(match said {
        Some(said) => format!("the source says {said} bytes of memory; {mib} MiB is {origin}"),
        None => format!("the source names no memory size; {mib} MiB is {origin}"),
    });
    bytes
}

fn resolve_uefi(machine: &Machine, configured: Option<bool>, notes: &mut Vec<String>) -> bool {
    match machine.firmware {
        Firmware::Bios => return false,
        Firmware::Uefi => return true,
        Firmware::Unknown => {}
    }
    let (uefi, origin) = if machine.secure_boot == Some(true) {
        (true, "what its secure boot needs")
    } else if let Some(uefi) = configured {
        (uefi, "vm_uefi of the configuration")
    } else {
        (false, "a default")
    };
    let name = if uefi { "UEFI" } else { "BIOS" };
    notes.push(format!("the source names no firmware; {name} is {origin}"));
    uefi
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_comes_first_then_the_configuration_then_a_stated_default() {
        let silent = Machine::default();
        let full = Machine {
            cpus: Some(4),
            memory_bytes: Some(3 << 30),
            firmware: Firmware::Bios,
            os_hint: Some("windows2019srv_64Guest".to_owned()),
            ..Machine::default()
        };
        let absurd = Machine {
            cpus: Some(u32::MAX),
            memory_bytes: Some(u64::MAX),
            ..full.clone()
        };
        let configured = Libvirt {
            vm_vcpus: Some(8),
            vm_memory: Some(1024),
            vm_uefi: Some(true),
            ..Libvirt::default()
        };
        let none = Libvirt::default();
        for (machine, settings, cpus, memory_kib, uefi, notes) in [
            (&full, &configured, 4, 3 << 20, false, 0),
            (&silent, &configured, 8, 1 << 20, true, 3),
            (&silent, &none, 2, 2 << 20, false, 3),
            (&absurd, &none, 2, 2 << 20, false, 2),
        ] {
            let hardware = resolve(machine, settings);
            assert_eq!(hardware.cpus, cpus);
            assert_eq!(hardware.memory_kib, memory_kib);
            assert_eq!(hardware.uefi, uefi);
            assert_eq!(hardware.notes.len(), notes, "{:?}", hardware.notes);
        }
        assert!(resolve(&full, &none).windows);
    }

    #[test]
    fn secure_boot_needs_uefi() {
        let mut machine = Machine {
            secure_boot: Some(true),
            ..Machine::default()
        };
        let hardware = resolve(&machine, &Libvirt::default());
        assert!(hardware.uefi && hardware.secure_boot);
        machine.firmware = Firmware::Bios;
        let hardware = resolve(&machine, &Libvirt::default());
        assert!(!hardware.uefi && !hardware.secure_boot);
        assert!(
            hardware
                .notes
                .iter()
                .any(|note| note.contains("secure boot"))
        );
    }
}
