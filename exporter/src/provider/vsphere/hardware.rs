//! A VM's configuration as the server tells it, turned into what an export needs to know.
use std::collections::BTreeMap;

use queue::job::{Firmware, Machine, Nic};
use roxmltree::Node;

use super::inventory::{power, unescape};
use super::properties::Found;
use super::soap;
use crate::error::{Error, Result};
use crate::machine::{Disk, Power, Vm};

pub const PROPERTIES: [&str; 16] = [
    "name",
    "config.hardware",
    "config.firmware",
    "config.bootOptions",
    "config.guestId",
    "config.guestFullName",
    "config.annotation",
    "config.template",
    "guest.toolsRunningStatus",
    "runtime.powerState",
    "runtime.connectionState",
    "snapshot",
    "layoutEx.disk",
    "layoutEx.file",
    "network",
    "tag",
];

/// A VM and what only this provider needs of it.
#[derive(Debug, Clone, Default)]
pub struct Described {
    pub vm: Vm,
    /// As a lease names the VM's devices: `ParaVirtualSCSIController0:1`; beside `vm.disks`.
    pub keys: Vec<String>,
    pub tools_run: bool,
    /// The networks that the VM is in, to be asked for their names.
    pub networks: Vec<soap::Moref>,
    /// Of each card: the key of its portgroup or opaque network, where its name is not told.
    pub cards: Vec<Option<String>>,
}

/// From a VM's `PROPERTIES`.
pub fn describe(found: &Found<'_, '_>) -> Result<Described> {
    let name = unescape(found.text("name").unwrap_or_default());
    let state = found.text("runtime.connectionState").unwrap_or("connected");
    let Some(hardware) = found
        .get("config.hardware")
        .filter(|_| state == "connected")
    else {
        return Err(
            Error::invalid(format!("the server cannot reach {name}: it is {state}"))
                .with_remedy("bring its host and its datastore back, or register it again"),
        );
    };
    if found.text("config.template") == Some("true") {
        return Err(Error::invalid(format!("{name} is a template"))
            .with_remedy("deploy a VM from it, and export that"));
    }
    let mut described = Described {
        vm: Vm {
            name,
            id: found.object.id.clone(),
            power: power(found.text("runtime.powerState")),
            machine: machine(found, hardware),
            annotation: found
                .text("config.annotation")
                .filter(|text| !text.is_empty())
                .map(str::to_owned),
            tags: tags(found),
            ..Vm::default()
        },
        tools_run: found.text("guest.toolsRunningStatus") == Some("guestToolsRunning"),
        networks: references(found.get("network")),
        ..Described::default()
    };
    let devices: Vec<Node<'_, '_>> = soap::children(hardware, "device").collect();
    for device in &devices {
        if let Some((nic, key)) = card(*device) {
            described.vm.machine.nics.push(nic);
            described.cards.push(key);
        }
    }
    let sizes = sizes(found);
    for (index, disk) in disks(&devices, found)?.into_iter().enumerate() {
        let capacity = disk.capacity_bytes;
        described.keys.push(disk.key);
        described.vm.disks.push(Disk {
            id: format!("disk-{index}"),
            file: String::new(),
            format: "vmdk".to_owned(),
            size_bytes: sizes.get(&disk.device).copied().unwrap_or(capacity),
            capacity_bytes: Some(capacity),
            label: disk.label,
            bus: Some(disk.bus.to_owned()),
        });
    }
    if described.vm.disks.is_empty() {
        let name = &described.vm.name;
        return Err(Error::invalid(format!("{name} has no disks"))
            .with_remedy("there is nothing to export"));
    }
    Ok(described)
}

fn machine(found: &Found<'_, '_>, hardware: Node<'_, '_>) -> Machine {
    let firmware = match found.text("config.firmware") {
        Some("efi") => Firmware::Uefi,
        Some("bios") => Firmware::Bios,
        _ => Firmware::Unknown,
    };
    let boot = found.get("config.bootOptions");
    let is_tpm = |device: Node<'_, '_>| soap::kind(device) == Some("VirtualTPM");
    let guest = found
        .text("config.guestId")
        .or(found.text("config.guestFullName"));
    Machine {
        name: Some(unescape(found.text("name").unwrap_or_default())),
        cpus: soap::number(hardware, "numCPU"),
        memory_bytes: soap::number::<u64>(hardware, "memoryMB").map(|mib| mib << 20),
        firmware,
        secure_boot: boot.and_then(|boot| soap::flag(boot, "efiSecureBootEnabled")),
        tpm: Some(soap::children(hardware, "device").any(is_tpm)),
        os_hint: guest.map(str::to_owned),
        ..Machine::default()
    }
}

fn tags(found: &Found<'_, '_>) -> Vec<String> {
    let tags = found.get("tag").into_iter();
    tags.flat_map(|list| list.children().filter(Node::is_element).collect::<Vec<_>>())
        .filter_map(|tag| soap::text(tag, "key").map(str::to_owned))
        .collect()
}

pub fn references(list: Option<Node<'_, '_>>) -> Vec<soap::Moref> {
    let nodes = list.into_iter().flat_map(|list| list.children());
    nodes.filter_map(soap::Moref::read).collect()
}

/// A network card, and the key of its network where its name is not told.
fn card(device: Node<'_, '_>) -> Option<(Nic, Option<String>)> {
    let model = match soap::kind(device)? {
        "VirtualE1000" => "E1000",
        "VirtualE1000e" => "E1000e",
        "VirtualVmxnet3" | "VirtualVmxnet3Vrdma" => "VmxNet3",
        "VirtualVmxnet2" | "VirtualVmxnet" => "VmxNet2",
        "VirtualPCNet32" => "PCNet32",
        "VirtualSriovEthernetCard" => "SR-IOV",
        _ => return None,
    };
    let key = ["backing/port/portgroupKey", "backing/opaqueNetworkId"]
        .iter()
        .find_map(|path| soap::text(device, path));
    let nic = Nic {
        mac: soap::text(device, "macAddress").and_then(Nic::normal_mac),
        network: soap::text(device, "backing/deviceName").map(str::to_owned),
        model: Some(model.to_owned()),
    };
    Some((nic, key.map(str::to_owned)))
}

struct HardDisk {
    device: i64,
    key: String,
    place: (i64, i64),
    bus: &'static str,
    label: Option<String>,
    capacity_bytes: u64,
}

/// In the order of their controllers and units; one that the firmware is told to boot comes first.
fn disks(devices: &[Node<'_, '_>], found: &Found<'_, '_>) -> Result<Vec<HardDisk>> {
    let mut controllers = BTreeMap::new();
    for device in devices {
        if let (Some(kind), Some(key), Some(bus)) = (
            soap::kind(*device),
            soap::number::<i64>(*device, "key"),
            soap::number::<i64>(*device, "busNumber"),
        ) {
            controllers.insert(key, (kind, bus));
        }
    }
    let mut disks = Vec::new();
    for device in devices
        .iter()
        .filter(|device| soap::kind(**device) == Some("VirtualDisk"))
    {
        let controller = soap::number(*device, "controllerKey").unwrap_or(-1);
        let unit = soap::number(*device, "unitNumber").unwrap_or(0);
        let (kind, bus) = controllers.get(&controller).copied().unwrap_or(("", 0));
        let label = soap::text(*device, "deviceInfo/label").map(str::to_owned);
        refuse_foreign(*device, label.as_deref().unwrap_or("a disk"))?;
        let kib = soap::number::<u64>(*device, "capacityInKB").map(|kib| kib.saturating_mul(1024));
        disks.push(HardDisk {
            device: soap::number(*device, "key").unwrap_or(-1),
            key: format!("{kind}{bus}:{unit}"),
            place: (controller, unit),
            bus: bus_of(kind),
            label,
            capacity_bytes: soap::number(*device, "capacityInBytes")
                .or(kib)
                .unwrap_or(0),
        });
    }
    let boot = found
        .get("config.bootOptions")
        .into_iter()
        .flat_map(|options| soap::children(options, "bootOrder").collect::<Vec<_>>())
        .find_map(|entry| soap::number::<i64>(entry, "deviceKey"));
    disks.sort_by_key(|disk| (Some(disk.device) != boot, disk.place));
    Ok(disks)
}

/// A disk whose data is not in a VMDK of the server's own.
fn refuse_foreign(device: Node<'_, '_>, label: &str) -> Result<()> {
    let Some(backing) = soap::child(device, "backing") else {
        return Ok(());
    };
    let mode = soap::text(backing, "compatibilityMode");
    if mode == Some("physicalMode") {
        return Err(Error::new(
            crate::error::ErrorKind::Unsupported,
            format!("{label} is a raw device in physical mode, which the server does not export"),
        )
        .with_remedy("copy its LUN by itself, or detach it from the VM for the export"));
    }
    Ok(())
}

fn bus_of(controller: &str) -> &'static str {
    match controller {
        "VirtualAHCIController" => "sata",
        "VirtualNVMEController" => "nvme",
        "VirtualIDEController" => "ide",
        _ => "scsi",
    }
}

/// What each disk with its snapshots takes on its datastore, by device key.
fn sizes(found: &Found<'_, '_>) -> BTreeMap<i64, u64> {
    let files: BTreeMap<i64, u64> = elements(found.get("layoutEx.file"))
        .filter_map(|file| Some((soap::number(file, "key")?, soap::number(file, "size")?)))
        .collect();
    elements(found.get("layoutEx.disk"))
        .filter_map(|disk| {
            let keys = soap::children(disk, "chain")
                .flat_map(|unit| soap::children(unit, "fileKey").collect::<Vec<_>>())
                .filter_map(|key| key.text()?.trim().parse::<i64>().ok());
            let size = keys.filter_map(|key| files.get(&key)).sum::<u64>();
            Some((soap::number(disk, "key")?, size))
        })
        .filter(|(_, size)| *size > 0)
        .collect()
}

fn elements<'a, 'input>(list: Option<Node<'a, 'input>>) -> impl Iterator<Item = Node<'a, 'input>> {
    list.into_iter()
        .flat_map(|list| list.children())
        .filter(Node::is_element)
}

/// What the administrator should know before an export in this state.
pub fn warnings(vm: &Vm) -> Vec<String> {
    let mut warnings = Vec::new();
    if vm.power == Power::Suspended {
        warnings.push(format!(
            "{} is suspended: its memory is not exported, its disks are as after a power failure",
            vm.name
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn property(name: &str, kind: &str, value: &str) -> String {
        format!("<propSet><name>{name}</name><val xsi:type=\"{kind}\">{value}</val></propSet>")
    }

    fn device(kind: &str, key: i64, more: &str) -> String {
        format!("<device xsi:type=\"{kind}\"><key>{key}</key>{more}</device>")
    }

    fn disk(key: i64, controller: i64, unit: i64, backing: &str) -> String {
        let more = format!(
            "<deviceInfo><label>Hard disk {key}</label><summary>1 KB</summary></deviceInfo>\
             <backing xsi:type=\"VirtualDiskFlatVer2BackingInfo\"><fileName>[d] a.vmdk</fileName>\
             {backing}</backing><controllerKey>{controller}</controllerKey><unitNumber>{unit}\
             </unitNumber><capacityInKB>2048</capacityInKB>"
        );
        device("VirtualDisk", key, &more)
    }

    fn described(hardware: &str, more: &str) -> Result<Described> {
        let hardware = format!("<numCPU>4</numCPU><memoryMB>8192</memoryMB>{hardware}");
        let xml = format!(
            "<objects xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\"><obj \
             type=\"VirtualMachine\">vm-7</obj>{}{}{more}</objects>",
            property("name", "xsd:string", "web%2f01"),
            property("config.hardware", "VirtualHardware", &hardware),
        );
        let document = roxmltree::Document::parse(&xml).unwrap();
        describe(&Found::read(document.root_element()).unwrap())
    }

    /// As vCenter 7 tells of a VM with Secure Boot, a TPM and cards in three kinds of networks.
    fn everything() -> String {
        [
            disk(2001, 1001, 1, ""),
            device("VirtualTPM", 11000, ""),
            device("VirtualIDEController", 200, "<busNumber>0</busNumber>"),
            device(
                "ParaVirtualSCSIController",
                1001,
                "<busNumber>1</busNumber>",
            ),
            device("VirtualNVMEController", 31000, "<busNumber>0</busNumber>"),
            device(
                "VirtualVmxnet3",
                4000,
                "<backing xsi:type=\"VirtualEthernetCardDistributedVirtualPortBackingInfo\"><port>\
                 <switchUuid>50</switchUuid><portgroupKey>dvportgroup-9</portgroupKey></port>\
                 </backing><macAddress>00:50:56:AA:bb:01</macAddress>",
            ),
            device(
                "VirtualE1000e",
                4001,
                "<backing xsi:type=\"VirtualEthernetCardNetworkBackingInfo\"><deviceName>VM Network\
                 </deviceName></backing><macAddress>00:50:56:aa:bb:02</macAddress>",
            ),
            device(
                "VirtualVmxnet3",
                4002,
                "<backing xsi:type=\"VirtualEthernetCardOpaqueNetworkBackingInfo\">\
                 <opaqueNetworkId>nsx-1</opaqueNetworkId></backing>",
            ),
            disk(2000, 1001, 0, ""),
            disk(2002, 31000, 0, ""),
        ]
        .concat()
    }

    fn everything_else() -> String {
        let layout = "<VirtualMachineFileLayoutExDiskLayout><key>2000</key><chain>\
             <fileKey>4</fileKey>\
             <fileKey>5</fileKey></chain><chain><fileKey>6</fileKey></chain>\
             </VirtualMachineFileLayoutExDiskLayout>";
        let file = |key: u8, size: u32| {
            format!(
                "<VirtualMachineFileLayoutExFileInfo><key>{key}</key><size>{size}</size>\
                 </VirtualMachineFileLayoutExFileInfo>"
            )
        };
        let files = [file(4, 500), file(5, 1_000_000), file(6, 24), file(9, 7)].concat();
        [
            property("config.firmware", "xsd:string", "efi"),
            property(
                "config.bootOptions",
                "VirtualMachineBootOptions",
                "<efiSecureBootEnabled>true</efiSecureBootEnabled><bootOrder \
                 xsi:type=\"VirtualMachineBootOptionsBootableDiskDevice\"><deviceKey>2002\
                 </deviceKey></bootOrder>",
            ),
            property("config.guestId", "xsd:string", "rhel8_64Guest"),
            property(
                "runtime.powerState",
                "VirtualMachinePowerState",
                "poweredOn",
            ),
            property(
                "guest.toolsRunningStatus",
                "xsd:string",
                "guestToolsRunning",
            ),
            property("layoutEx.disk", "ArrayOfX", layout),
            property("layoutEx.file", "ArrayOfX", &files),
            property("tag", "ArrayOfTag", "<Tag><key>prod</key></Tag>"),
        ]
        .concat()
    }

    #[test]
    fn a_vm_with_everything() {
        let described = described(&everything(), &everything_else()).unwrap();
        let vm = &described.vm;
        assert_eq!((vm.name.as_str(), vm.id.as_str()), ("web/01", "vm-7"));
        assert_eq!((vm.power, described.tools_run), (Power::On, true));
        assert_eq!(vm.tags, ["prod"]);
        let machine = &vm.machine;
        assert_eq!(
            (machine.cpus, machine.memory_bytes),
            (Some(4), Some(8 << 30))
        );
        assert_eq!(machine.firmware, Firmware::Uefi);
        assert_eq!((machine.secure_boot, machine.tpm), (Some(true), Some(true)));
        assert_eq!(machine.os_hint.as_deref(), Some("rhel8_64Guest"));
        let macs: Vec<Option<&str>> = machine.nics.iter().map(|nic| nic.mac.as_deref()).collect();
        assert_eq!(
            macs,
            [Some("00:50:56:aa:bb:01"), Some("00:50:56:aa:bb:02"), None]
        );
        assert_eq!(machine.nics[1].network.as_deref(), Some("VM Network"));
        let cards: Vec<Option<&str>> = described.cards.iter().map(Option::as_deref).collect();
        assert_eq!(cards, [Some("dvportgroup-9"), None, Some("nsx-1")]);
        // The one to boot first, then by place.
        let keys = ["VirtualNVMEController0:0", "ParaVirtualSCSIController1:0"];
        assert_eq!(described.keys[..2], keys);
        let sizes: Vec<u64> = vm.disks.iter().map(|disk| disk.size_bytes).collect();
        assert_eq!(sizes, [2 << 20, 1_000_524, 2 << 20]);
        let buses: Vec<Option<&str>> = vm.disks.iter().map(|disk| disk.bus.as_deref()).collect();
        assert_eq!(buses, [Some("nvme"), Some("scsi"), Some("scsi")]);
        assert_eq!(vm.disks[1].label.as_deref(), Some("Hard disk 2000"));
    }

    #[test]
    fn what_cannot_be_exported_is_refused() {
        let raw = "<compatibilityMode>physicalMode</compatibilityMode>";
        let state = |state| property("runtime.connectionState", "X", state);
        let template = property("config.template", "xsd:boolean", "true");
        for (hardware, more, kind, about) in [
            (
                disk(1, 2, 0, raw),
                String::new(),
                ErrorKind::Unsupported,
                "physical mode",
            ),
            (
                disk(1, 2, 0, ""),
                state("inaccessible"),
                ErrorKind::Invalid,
                "it is inaccessible",
            ),
            (
                disk(1, 2, 0, ""),
                template,
                ErrorKind::Invalid,
                "a template",
            ),
            (
                String::new(),
                String::new(),
                ErrorKind::Invalid,
                "has no disks",
            ),
        ] {
            let error = described(&hardware, &more).unwrap_err();
            assert!(error.to_line().contains(about), "{}", error.to_line());
            assert_eq!(error.kind, kind);
        }
    }
}
