//! `domain.xml`: a q35 machine with the source's disks, network cards, firmware, CPU and memory.
//!
//! Follows libvirt's domain format (formatdomain) and its schema. Pure: paths in, text out.
use std::path::{Path, PathBuf};

use queue::instance::config::{Libvirt, OutFormat};
use queue::job::{Machine, Nic, VmName};

use super::hardware::{Hardware, resolve};
use super::xml::{Writer, is_representable};
use crate::error::{Error, Result};

/// Which device models the guest has drivers for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Devices {
    /// virtio disks and network cards: only for a guest that was prepared for them.
    Virtio,
    /// AHCI disks and e1000e network cards: drivers that guests bring along.
    Compatible,
}

#[derive(Debug, Clone)]
pub struct DomainDisk {
    /// Where the disk is once it is published: absolute.
    pub path: PathBuf,
    pub format: OutFormat,
    /// What the guest takes for a sector: 512 or 4096.
    pub sector_bytes: u64,
}

impl DomainDisk {
    fn has_large_sectors(&self) -> bool {
        self.sector_bytes > 512
    }
}

#[derive(Debug, Clone, Copy)]
pub struct DomainSpec<'a> {
    pub name: &'a VmName,
    /// See `domain_uuid`.
    pub uuid: &'a str,
    pub machine: &'a Machine,
    /// In boot order.
    pub disks: &'a [DomainDisk],
    pub devices: Devices,
    pub settings: &'a Libvirt,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    pub xml: String,
    /// What the source did not say, or what differs from it; also in the domain's description.
    pub notes: Vec<String>,
}

/// The identity of a VM's domain: the same for every result of that VM in that place on that host,
/// so that libvirt takes a later one for the same domain. An RFC 9562 UUID of version 8.
pub fn domain_uuid(host: &str, result: &Path) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("hyper2kvm libvirt domain uuid");
    hasher.update(host.as_bytes()).update(b"\0");
    hasher.update(result.as_os_str().as_encoded_bytes());
    let mut bits = 0;
    for byte in hasher.finalize().as_bytes().iter().take(16) {
        bits = bits << 8 | u128::from(*byte);
    }
    bits = bits & !(0xf << 76) | 0x8 << 76;
    bits = bits & !(0x3 << 62) | 0x2 << 62;
    let digits = format!("{bits:032x}");
    let mut uuid = String::with_capacity(36);
    for (at, digit) in digits.char_indices() {
        if matches!(at, 8 | 12 | 16 | 20) {
            uuid.push('-');
        }
        uuid.push(digit);
    }
    uuid
}

/// Renders the domain; fails only on a path that XML cannot hold.
pub fn domain_xml(spec: &DomainSpec<'_>) -> Result<Domain> {
    let mut hardware = resolve(spec.machine, spec.settings);
    let mut notes = std::mem::take(&mut hardware.notes);
    notes.extend(network_notes(spec));
    notes.extend(sector_notes(spec));
    let mut xml = Writer::default();
    xml.open("domain", &[("type", "kvm")]);
    write_identity(&mut xml, spec, &notes);
    write_machine(&mut xml, &hardware);
    xml.open("devices", &[]);
    for (index, disk) in spec.disks.iter().enumerate() {
        write_disk(&mut xml, index, disk, spec.devices)?;
    }
    let has_scsi =
        spec.devices == Devices::Compatible && spec.disks.iter().any(DomainDisk::has_large_sectors);
    if has_scsi {
        xml.empty("controller", &[("type", "scsi"), ("model", "virtio-scsi")]);
    }
    for nic in &spec.machine.nics {
        write_nic(&mut xml, nic, spec);
    }
    write_fixed_devices(&mut xml, spec.devices);
    if hardware.tpm {
        xml.open("tpm", &[("model", "tpm-crb")]);
        xml.empty("backend", &[("type", "emulator"), ("version", "2.0")]);
        xml.close();
    }
    Ok(Domain {
        xml: xml.finish(),
        notes,
    })
}

fn network_notes(spec: &DomainSpec<'_>) -> Vec<String> {
    let target = &spec.settings.network;
    let mut notes = Vec::new();
    for (index, nic) in spec.machine.nics.iter().enumerate() {
        let number = index.saturating_add(1);
        if let Some(network) = nic.network.as_ref().filter(|network| *network != target) {
            notes.push(format!(
                "network card {number} was on {network:?}; it is on {target:?} here"
            ));
        }
        if mac(nic).is_none() {
            notes.push(format!(
                "network card {number} has no usable MAC address; libvirt will choose one"
            ));
        }
    }
    notes
}

fn sector_notes(spec: &DomainSpec<'_>) -> Vec<String> {
    let disks = (1..).zip(spec.disks);
    let large = disks.filter(|(_, disk)| disk.has_large_sectors());
    let note = |(number, disk): (usize, &DomainDisk)| {
        let sector_bytes = disk.sector_bytes;
        let place = match spec.devices {
            Devices::Virtio => "",
            Devices::Compatible => ", which AHCI disks cannot have: it hangs on virtio-scsi",
        };
        format!("disk {number} has sectors of {sector_bytes} bytes{place}")
    };
    large.map(note).collect()
}

fn mac(nic: &Nic) -> Option<String> {
    nic.mac.as_ref().and_then(|mac| Nic::normal_mac(mac))
}

fn write_identity(xml: &mut Writer, spec: &DomainSpec<'_>, notes: &[String]) {
    xml.text("name", &[], spec.name.as_str());
    xml.text("uuid", &[], spec.uuid);
    let said = spec.machine.name.as_ref();
    if let Some(name) = said.filter(|name| *name != spec.name.as_str()) {
        // The schema takes no line breaks in a title.
        let title: String = name
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        if !title.trim().is_empty() {
            xml.text("title", &[], &title);
        }
    }
    let mut description = "converted by hyper2kvm".to_owned();
    for note in notes {
        description.push_str("; ");
        description.push_str(note);
    }
    xml.text("description", &[], &description);
}

fn write_machine(xml: &mut Writer, hardware: &Hardware) {
    xml.text(
        "memory",
        &[("unit", "KiB")],
        &hardware.memory_kib.to_string(),
    );
    xml.text("vcpu", &[], &hardware.cpus.to_string());
    let os: &[(&str, &str)] = if hardware.uefi {
        &[("firmware", "efi")]
    } else {
        &[]
    };
    let secure = if hardware.secure_boot { "yes" } else { "no" };
    xml.open("os", os);
    xml.text("type", &[("arch", "x86_64"), ("machine", "q35")], "hvm");
    if hardware.uefi {
        xml.open("firmware", &[]);
        for feature in ["enrolled-keys", "secure-boot"] {
            xml.empty("feature", &[("enabled", secure), ("name", feature)]);
        }
        xml.close();
        if hardware.secure_boot {
            xml.empty("loader", &[("secure", "yes")]);
        }
    }
    xml.close();
    xml.open("features", &[]);
    xml.empty("acpi", &[]);
    xml.empty("apic", &[]);
    xml.empty("vmport", &[("state", "off")]);
    if hardware.secure_boot {
        xml.empty("smm", &[("state", "on")]);
    }
    xml.close();
    xml.empty("cpu", &[("mode", "host-model")]);
    let offset = if hardware.windows { "localtime" } else { "utc" };
    xml.open("clock", &[("offset", offset)]);
    xml.empty("timer", &[("name", "rtc"), ("tickpolicy", "catchup")]);
    xml.empty("timer", &[("name", "pit"), ("tickpolicy", "delay")]);
    xml.empty("timer", &[("name", "hpet"), ("present", "no")]);
    xml.close();
}

fn write_disk(xml: &mut Writer, index: usize, disk: &DomainDisk, devices: Devices) -> Result<()> {
    let path = representable(&disk.path)?;
    let (prefix, bus) = match devices {
        Devices::Virtio => ("vd", "virtio"),
        // QEMU's AHCI disks have sectors of 512 bytes, always.
        Devices::Compatible if disk.has_large_sectors() => ("sd", "scsi"),
        Devices::Compatible => ("sd", "sata"),
    };
    let driver = [
        ("name", "qemu"),
        ("type", disk.format.as_str()),
        ("discard", "unmap"),
    ];
    xml.open("disk", &[("type", "file"), ("device", "disk")]);
    xml.empty("driver", &driver);
    xml.empty("source", &[("file", path)]);
    xml.empty("target", &[("dev", &target(prefix, index)), ("bus", bus)]);
    if disk.has_large_sectors() {
        let bytes = disk.sector_bytes.to_string();
        let sizes = [
            ("logical_block_size", bytes.as_str()),
            ("physical_block_size", bytes.as_str()),
        ];
        xml.empty("blockio", &sizes);
    }
    xml.empty("boot", &[("order", &index.saturating_add(1).to_string())]);
    xml.close();
    Ok(())
}

fn representable(path: &Path) -> Result<&str> {
    path.to_str()
        .filter(|text| path.is_absolute() && is_representable(text))
        .filter(|text| !text.contains(['\n', '\r']))
        .ok_or_else(|| {
            Error::invalid(format!("the path {path:?} cannot stand in a domain.xml"))
                .with_remedy("choose an absolute output directory whose name is plain UTF-8")
        })
}

/// `sda` … `sdz`, `sdaa` …: the number in base 26 without a zero.
fn target(prefix: &str, index: usize) -> String {
    let mut letters = Vec::new();
    let mut rest = index.saturating_add(1);
    while rest > 0 {
        let digit = u8::try_from((rest - 1) % 26).unwrap_or(0);
        letters.push(char::from(b'a' + digit));
        rest = (rest - 1) / 26;
    }
    let letters: String = letters.into_iter().rev().collect();
    format!("{prefix}{letters}")
}

fn write_nic(xml: &mut Writer, nic: &Nic, spec: &DomainSpec<'_>) {
    let model = match spec.devices {
        Devices::Virtio => "virtio",
        Devices::Compatible => "e1000e",
    };
    xml.open("interface", &[("type", "network")]);
    if let Some(mac) = mac(nic) {
        xml.empty("mac", &[("address", &mac)]);
    }
    xml.empty("source", &[("network", &spec.settings.network)]);
    xml.empty("model", &[("type", model)]);
    xml.close();
}

/// A serial console, a screen on the loopback, a tablet, randomness, a balloon.
fn write_fixed_devices(xml: &mut Writer, devices: Devices) {
    xml.empty("controller", &[("type", "usb"), ("model", "qemu-xhci")]);
    xml.open("serial", &[("type", "pty")]);
    xml.empty("target", &[("port", "0")]);
    xml.close();
    xml.open("console", &[("type", "pty")]);
    xml.empty("target", &[("type", "serial"), ("port", "0")]);
    xml.close();
    if devices == Devices::Virtio {
        xml.open("channel", &[("type", "unix")]);
        xml.empty(
            "target",
            &[("type", "virtio"), ("name", "org.qemu.guest_agent.0")],
        );
        xml.close();
    }
    xml.empty("input", &[("type", "tablet"), ("bus", "usb")]);
    let vnc = [
        ("type", "vnc"),
        ("autoport", "yes"),
        ("listen", "127.0.0.1"),
    ];
    xml.empty("graphics", &vnc);
    xml.open("video", &[]);
    xml.empty("model", &[("type", "vga")]);
    xml.close();
    xml.open("rng", &[("model", "virtio")]);
    xml.text("backend", &[("model", "random")], "/dev/urandom");
    xml.close();
    xml.empty("memballoon", &[("model", "virtio")]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(machine: &Machine, disks: &[DomainDisk], devices: Devices) -> Result<Domain> {
        domain_xml(&DomainSpec {
            name: &VmName::new("a & b").unwrap(),
            uuid: &domain_uuid("host", Path::new("/out/a")),
            machine,
            disks,
            devices,
            settings: &Libvirt::default(),
        })
    }

    fn disk(path: &str) -> DomainDisk {
        DomainDisk {
            path: PathBuf::from(path),
            format: OutFormat::Qcow2,
            sector_bytes: 512,
        }
    }

    #[test]
    fn sectors_of_4096_bytes_are_said_and_not_given_to_ahci() {
        let large = DomainDisk {
            sector_bytes: 4096,
            ..disk("/out/a/b.qcow2")
        };
        let disks = [disk("/out/a/a.qcow2"), large];
        let blockio = "<blockio logical_block_size=\"4096\" physical_block_size=\"4096\"/>";
        for (devices, target) in [
            (Devices::Compatible, "dev=\"sdb\" bus=\"scsi\""),
            (Devices::Virtio, "dev=\"vdb\" bus=\"virtio\""),
        ] {
            let domain = render(&Machine::default(), &disks, devices).unwrap();
            assert_eq!(domain.xml.matches(blockio).count(), 1);
            assert!(domain.xml.contains(target), "{}", domain.xml);
            assert!(domain.notes.iter().any(|note| note.contains("4096")));
            let has_controller = domain.xml.contains("virtio-scsi\"/>");
            assert_eq!(has_controller, devices == Devices::Compatible);
        }
    }

    #[test]
    fn a_result_s_place_and_host_are_its_identity() {
        let uuid = domain_uuid("host", Path::new("/out/a"));
        assert_eq!(uuid, domain_uuid("host", Path::new("/out/a")));
        assert_ne!(uuid, domain_uuid("host", Path::new("/out/b")));
        assert_ne!(uuid, domain_uuid("other", Path::new("/out/a")));
        let parts: Vec<&str> = uuid.split('-').collect();
        let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert!(parts[2].starts_with('8') && parts[3].starts_with(['8', '9', 'a', 'b']));
    }

    #[test]
    fn targets_count_like_the_kernel() {
        for (index, name) in [
            (0, "sda"),
            (25, "sdz"),
            (26, "sdaa"),
            (255, "sdiv"),
            (702, "sdaaa"),
        ] {
            assert_eq!(target("sd", index), name);
        }
    }

    #[test]
    fn models_follow_the_guest() {
        let machine = Machine {
            nics: vec![Nic {
                mac: Some("00-50-56-AB-CD-01".to_owned()),
                network: Some("VM Network".to_owned()),
                model: None,
            }],
            ..Machine::default()
        };
        let disks = [disk("/out/a/a.qcow2")];
        let compatible = render(&machine, &disks, Devices::Compatible).unwrap();
        assert!(
            compatible
                .xml
                .contains("<target dev=\"sda\" bus=\"sata\"/>")
        );
        assert!(compatible.xml.contains("<model type=\"e1000e\"/>"));
        assert!(
            compatible
                .xml
                .contains("<mac address=\"00:50:56:ab:cd:01\"/>")
        );
        assert!(compatible.xml.contains("was on &quot;VM Network&quot;"));
        assert_eq!(compatible.notes.len(), 4);
        let virtio = render(&machine, &disks, Devices::Virtio).unwrap();
        assert!(virtio.xml.contains("<target dev=\"vda\" bus=\"virtio\"/>"));
        assert!(virtio.xml.contains("<model type=\"virtio\"/>"));
    }

    #[test]
    fn paths_that_xml_cannot_hold_are_refused() {
        for path in ["relative.qcow2", "/out/a\u{1}b", "/out/a\nb"] {
            let disks = [disk(path)];
            assert!(render(&Machine::default(), &disks, Devices::Compatible).is_err());
        }
    }
}
