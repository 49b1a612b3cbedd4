//! Every domain.xml is valid in the eyes of libvirt's own schema.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a panic is how a test fails
use std::path::{Path, PathBuf};
use std::process::Command;

use converter::libvirt::{Devices, DomainDisk, DomainSpec, domain_uuid, domain_xml};
use queue::instance::config::{Libvirt, OutFormat};
use queue::job::{Firmware, Machine, Nic, VmName};

/// Asks virt-xml-validate (libvirt-clients, libxml2-utils) about one text.
fn validate(xml: &str, place: &Path) {
    let path = place.join("domain.xml");
    std::fs::write(&path, xml).unwrap();
    let output = Command::new("virt-xml-validate")
        .arg(&path)
        .arg("domain")
        .output()
        .expect("virt-xml-validate is missing: apt-get install libvirt-clients libxml2-utils");
    assert!(
        output.status.success(),
        "{}{}\n{xml}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
}

fn machine(firmware: Firmware, secure_boot: Option<bool>, tpm: Option<bool>) -> Machine {
    Machine {
        name: Some("web-01".to_owned()),
        cpus: Some(4),
        memory_bytes: Some((8 << 30) + 1),
        firmware,
        secure_boot,
        tpm,
        os_hint: Some("debian12_64Guest".to_owned()),
        nics: vec![
            nic(Some("00:50:56:AB:CD:01")),
            nic(Some("nonsense")),
            nic(None),
        ],
        notes: Vec::new(),
    }
}

fn nic(mac: Option<&str>) -> Nic {
    Nic {
        mac: mac.map(str::to_owned),
        network: Some("VM <Network> & \"co\"".to_owned()),
        model: Some("VmxNet3".to_owned()),
    }
}

fn disks(name: &VmName, count: usize, format: OutFormat) -> Vec<DomainDisk> {
    (1..=count)
        .map(|number| {
            let suffix = if number == 1 {
                String::new()
            } else {
                format!("-disk{number}")
            };
            let file = format!("{name}{suffix}.{}", format.as_str());
            DomainDisk {
                path: Path::new("/var/lib/hyper2kvm/output")
                    .join(name.as_str())
                    .join(file),
                format,
                sector_bytes: 512,
            }
        })
        .collect()
}

#[test]
fn domains_follow_the_schema() {
    let place = tempfile::tempdir().unwrap();
    let settings = Libvirt::default();
    let machines = [
        machine(Firmware::Bios, None, None),
        machine(Firmware::Uefi, None, None),
        machine(Firmware::Uefi, Some(false), Some(true)),
        machine(Firmware::Uefi, Some(true), Some(true)),
        machine(Firmware::Bios, Some(true), Some(true)),
        Machine::default(),
        Machine {
            cpus: Some(u32::MAX),
            memory_bytes: Some(1),
            os_hint: Some("windows2022srvNext_64Guest".to_owned()),
            ..Machine::default()
        },
    ];
    let name = VmName::new("web-01").unwrap();
    for machine in &machines {
        for (count, format, devices) in [
            (1, OutFormat::Qcow2, Devices::Compatible),
            (2, OutFormat::Raw, Devices::Virtio),
            (5, OutFormat::Qcow2, Devices::Compatible),
            (30, OutFormat::Qcow2, Devices::Virtio),
        ] {
            let domain = domain_xml(&DomainSpec {
                name: &name,
                uuid: &domain_uuid("host", Path::new("/out/web-01")),
                machine,
                disks: &disks(&name, count, format),
                devices,
                settings: &settings,
            })
            .unwrap();
            validate(&domain.xml, place.path());
            assert_eq!(domain.xml.matches("<disk ").count(), count);
            assert_eq!(
                domain.xml.matches("<interface ").count(),
                machine.nics.len()
            );
        }
    }
}

#[test]
fn weird_names_stay_data() {
    let place = tempfile::tempdir().unwrap();
    for text in [
        "Domain Controller 2.0",
        "<script>&amp;'\"",
        "../../etc/x",
        "größe 漢字",
        "a\nb\u{1}\u{fffe}",
        "]]>",
        "-x",
        &"x".repeat(500),
    ] {
        let name = VmName::new(text).unwrap();
        let machine = Machine {
            name: Some(text.to_owned()),
            ..Machine::default()
        };
        let mut places = disks(&name, 1, OutFormat::Qcow2);
        places.push(DomainDisk {
            path: PathBuf::from("/srv/it's \"here\" & <there>/50% ü.raw"),
            format: OutFormat::Raw,
            sector_bytes: 512,
        });
        let domain = domain_xml(&DomainSpec {
            name: &name,
            uuid: &domain_uuid("host", Path::new("/out/web-01")),
            machine: &machine,
            disks: &places,
            devices: Devices::Compatible,
            settings: &Libvirt::default(),
        })
        .unwrap();
        validate(&domain.xml, place.path());
    }
}
