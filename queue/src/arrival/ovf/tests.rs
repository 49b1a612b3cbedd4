//! Descriptors as ESXi, ovftool, VirtualBox and open-vmdk write them, and as nobody should.
use crate::job::{Firmware, Nic};

use super::*;

const ESXI: &str = include_str!("samples/esxi7-two-disks.ovf");
const VIRTUALBOX: &str = include_str!("samples/virtualbox7.ovf");
const OPEN_VMDK: &str = include_str!("samples/open-vmdk.ovf");

fn disk(href: &str, capacity_bytes: u64, bus: Option<&str>) -> OvfDisk {
    OvfDisk {
        href: href.to_owned(),
        capacity_bytes: Some(capacity_bytes),
        compression: None,
        chunk_size_bytes: None,
        size_bytes: None,
        bus: bus.map(str::to_owned),
    }
}

fn nic(mac: Option<&str>, network: &str, model: &str) -> Nic {
    Nic {
        mac: mac.map(str::to_owned),
        network: Some(network.to_owned()),
        model: Some(model.to_owned()),
    }
}

#[test]
fn esxi_machine_with_two_controllers_listed_backwards() {
    let ovf = parse(ESXI.as_bytes()).unwrap();
    assert_eq!(
        ovf.disks,
        [
            disk("web-01-disk1.vmdk", 20 << 30, Some("scsi")),
            disk("web-01-disk2.vmdk", 512 << 20, Some("scsi")),
        ]
    );
    let machine = ovf.machine;
    assert_eq!(machine.name.as_deref(), Some("web-01"));
    assert_eq!(machine.cpus, Some(4));
    assert_eq!(machine.memory_bytes, Some(8 << 30));
    assert_eq!(machine.firmware, Firmware::Uefi);
    assert_eq!((machine.secure_boot, machine.tpm), (Some(true), Some(true)));
    assert_eq!(machine.os_hint.as_deref(), Some("debian11_64Guest"));
    assert_eq!(
        machine.nics,
        [
            nic(Some("00:50:56:ab:12:34"), "VM Network", "VmxNet3"),
            nic(None, "DMZ", "E1000e"),
        ]
    );
    assert_eq!(machine.notes.len(), 1, "{:?}", machine.notes);
    assert!(machine.notes[0].contains("\"00:50:56\""));
    assert!(ovf.notes.is_empty(), "{:?}", ovf.notes);
}

#[test]
fn virtualbox_machine_with_its_own_section() {
    let ovf = parse(VIRTUALBOX.as_bytes()).unwrap();
    assert_eq!(
        ovf.disks,
        [disk("build box-disk001.vmdk", 10 << 30, Some("sata"))]
    );
    let machine = ovf.machine;
    assert_eq!(machine.name.as_deref(), Some("build box"));
    assert_eq!(
        (machine.cpus, machine.memory_bytes),
        (Some(1), Some(2 << 30))
    );
    assert_eq!(machine.firmware, Firmware::Uefi);
    assert_eq!((machine.secure_boot, machine.tpm), (None, Some(true)));
    assert_eq!(machine.os_hint.as_deref(), Some("Debian_64"));
    assert_eq!(
        machine.nics,
        [nic(Some("08:00:27:51:d5:b1"), "NAT", "E1000")]
    );
    assert_eq!(machine.notes, ["the medium in \"cdrom1\" is left out"]);
}

#[test]
fn open_vmdk_machine_with_deployment_options() {
    let ovf = parse(OPEN_VMDK.as_bytes()).unwrap();
    assert_eq!(ovf.disks, [disk("photon.vmdk", 16 << 30, Some("nvme"))]);
    let machine = ovf.machine;
    assert_eq!(machine.name.as_deref(), Some("photon"));
    assert_eq!(
        (machine.cpus, machine.memory_bytes),
        (Some(8), Some(2 << 30))
    );
    assert_eq!(machine.firmware, Firmware::Bios);
    assert_eq!((machine.secure_boot, machine.tpm), (None, None));
    assert!(machine.nics.is_empty());
    assert_eq!(
        machine.notes,
        ["the hardware is that of the deployment option \"large\""]
    );
}

/// A descriptor in the fewest words: its files, its disks, and the hardware's items.
fn minimal(files: &str, disks: &str, items: &str) -> String {
    format!(
        "<Envelope xmlns='http://schemas.dmtf.org/ovf/envelope/2' \
         xmlns:ovf='http://schemas.dmtf.org/ovf/envelope/2'>\
         <References>{files}</References><DiskSection>{disks}</DiskSection>\
         <VirtualSystem ovf:id='vm'><VirtualHardwareSection>{items}</VirtualHardwareSection>\
         </VirtualSystem></Envelope>"
    )
}

const FILE: &str = "<File ovf:id='f' ovf:href='a.vmdk'/>";
const DISK: &str = "<Disk ovf:diskId='d' ovf:fileRef='f' ovf:capacity='1'/>";

fn attached(resource: &str) -> String {
    format!("<Item><ResourceType>17</ResourceType><HostResource>{resource}</HostResource></Item>")
}

#[test]
fn reads_what_the_specification_allows() {
    let gzip = "<File ovf:id='f' ovf:href='a.gz' ovf:compression='gzip' ovf:chunkSize='4096'/>";
    let ovf = parse(minimal(gzip, DISK, &attached("ovf:/disk/d")).as_bytes()).unwrap();
    assert_eq!(ovf.disks[0].compression.as_deref(), Some("gzip"));
    assert_eq!(ovf.disks[0].chunk_size_bytes, Some(4096));
    assert_eq!(ovf.machine.name.as_deref(), Some("vm"));

    let by_file = parse(minimal(FILE, "", &attached("ovf:/file/f")).as_bytes()).unwrap();
    assert_eq!(by_file.disks[0].href, "a.vmdk");
    assert_eq!(by_file.disks[0].capacity_bytes, None);

    let loose = parse(minimal(FILE, DISK, "").as_bytes()).unwrap();
    assert_eq!(loose.disks.len(), 1);
    assert!(loose.notes[0].contains("hangs on no controller"));

    let twice = attached("ovf:/disk/d").repeat(2);
    let twice = parse(minimal(FILE, DISK, &twice).as_bytes()).unwrap();
    assert_eq!(twice.disks.len(), 1);
    assert!(twice.notes[0].contains("attached twice"));

    let empty = "<Disk ovf:diskId='e' ovf:capacity='5' ovf:capacityAllocationUnits='GB'/>";
    let items = format!("{}{}", attached("ovf:/disk/e"), attached("ovf:/disk/d"));
    let empty = parse(minimal(FILE, &format!("{DISK}{empty}"), &items).as_bytes()).unwrap();
    assert_eq!(empty.disks.len(), 1);
    assert!(empty.notes[0].contains("is empty"));

    let property = DISK.replace("'1'", "'${size}'");
    let property = parse(minimal(FILE, &property, "").as_bytes()).unwrap();
    assert_eq!(property.disks[0].capacity_bytes, None);
}

#[test]
fn orders_disks_by_controller_then_address() {
    let files: String = (0..5)
        .map(|i| format!("<File ovf:id='f{i}' ovf:href='{i}.vmdk'/>"))
        .collect();
    let disks: String = (0..5)
        .map(|i| format!("<Disk ovf:diskId='d{i}' ovf:fileRef='f{i}' ovf:capacity='1'/>"))
        .collect();
    let controller = |id: u32, kind: u32, address: u32, subtype: &str| {
        format!(
            "<Item><InstanceID>{id}</InstanceID><ResourceType>{kind}</ResourceType>\
             <Address>{address}</Address><ResourceSubType>{subtype}</ResourceSubType></Item>"
        )
    };
    let on = |disk: u32, parent: u32, address: &str| {
        format!(
            "<Item><ResourceType>17</ResourceType><Parent>{parent}</Parent>\
             <HostResource>ovf:/disk/d{disk}</HostResource>\
             <AddressOnParent>{address}</AddressOnParent></Item>"
        )
    };
    let items = [
        controller(3, 6, 0, "VirtualSCSI"),
        controller(4, 5, 1, "IDE"),
        controller(5, 5, 0, "IDE"),
        controller(6, 20, 0, "vmware.sata.ahci"),
        on(4, 6, "0"),
        on(3, 4, "0"),
        on(2, 5, "1"),
        on(1, 3, "10"),
        on(0, 3, "2"),
    ]
    .concat();
    let ovf = parse(minimal(&files, &disks, &items).as_bytes()).unwrap();
    let order: Vec<(&str, &str)> = ovf
        .disks
        .iter()
        .map(|disk| (disk.href.as_str(), disk.bus.as_deref().unwrap()))
        .collect();
    assert_eq!(
        order,
        [
            ("0.vmdk", "scsi"),
            ("1.vmdk", "scsi"),
            ("2.vmdk", "ide"),
            ("3.vmdk", "ide"),
            ("4.vmdk", "sata"),
        ]
    );
}

#[track_caller]
fn refused(cases: &[(String, &str)], kind: ErrorKind) {
    for (text, about) in cases {
        let error = parse(text.as_bytes()).unwrap_err();
        assert_eq!(error.kind, kind, "{error} ({about})");
        assert!(error.to_string().contains(about), "{error} ({about})");
        assert!(error.remedy.is_some(), "{error}");
    }
}

fn changed_disk(from: &str, to: &str) -> String {
    let items = attached("ovf:/disk/d");
    minimal(FILE, &DISK.replace(from, to), &items)
}

#[test]
fn refuses_what_is_no_single_machine() {
    let second = "</VirtualSystem><VirtualSystem ovf:id='b'/>";
    let two = ESXI.replace("</VirtualSystem>", second);
    let opening = "<VirtualSystemCollection ovf:id='shop'><VirtualSystem ";
    let collection = two
        .replacen("<VirtualSystem ", opening, 1)
        .replace("</Envelope>", "</VirtualSystemCollection></Envelope>");
    let elsewhere = "<File ovf:id='f' ovf:href='http://h/a'/>";
    let unsupported = [
        (collection, "\"shop\") of 2"),
        (two, "of 2 virtual machines"),
        (minimal(elsewhere, DISK, ""), "elsewhere"),
        (changed_disk("'1'", "'1' ovf:parentRef='x'"), "delta"),
    ];
    refused(&unsupported, ErrorKind::Unsupported);
    let dtd = "<!DOCTYPE x SYSTEM 'file:///etc/passwd'><Envelope ";
    let invalid = [
        ("<domain/>".to_owned(), "no OVF envelope"),
        (minimal("", "", ""), "no disk"),
        (ESXI.replace("<Envelope ", dtd), "document type"),
    ];
    refused(&invalid, ErrorKind::Invalid);
}

#[test]
fn refuses_what_contradicts_itself() {
    let attached = attached("ovf:/disk/d");
    let units = "'1' ovf:capacityAllocationUnits='byte * 2^64'";
    let corrupt = [
        (minimal("", DISK, &attached), "not listed"),
        (minimal(FILE, "", &attached), "described nowhere"),
        (minimal(FILE, &DISK.repeat(2), ""), "stands twice"),
        (minimal(&FILE.repeat(2), DISK, ""), "stands twice"),
        (minimal("<File ovf:id='f'/>", DISK, ""), "no href"),
        (changed_disk("'1'", "'-1'"), "capacity"),
        (changed_disk("'1'", "'99999999999999999999'"), "capacity"),
        (changed_disk("'1'", units), "capacity"),
        ("not xml".to_owned(), "well-formed"),
        (ESXI.replace(">web-01<", ">&name;<"), "well-formed"),
        (ESXI.replace("Envelope>", "Envelop>"), "well-formed"),
    ];
    refused(&corrupt, ErrorKind::Corrupt);
}

#[test]
fn bounds_disks_network_cards_and_notes() {
    let many = |count: u32| -> (String, String) {
        (0..count)
            .map(|i| {
                (
                    format!("<File ovf:id='f{i}' ovf:href='{i}'/>"),
                    format!("<Disk ovf:diskId='d{i}' ovf:fileRef='f{i}'/>"),
                )
            })
            .unzip()
    };
    let (files, disks) = many(257);
    assert!(parse(minimal(&files, &disks, "").as_bytes()).is_err());
    let (files, disks) = many(200);
    let item = "<Item><ResourceType>10</ResourceType><Address>x</Address></Item>";
    let ovf = parse(minimal(&files, &disks, &item.repeat(5000)).as_bytes()).unwrap();
    assert_eq!(ovf.machine.nics.len(), 64);
    assert_eq!((ovf.disks.len(), ovf.notes.len()), (200, 101));
}
