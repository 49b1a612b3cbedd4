//! Texts as VMware's products write them, and as nobody should.
use queue::job::Firmware;

use super::Vmx;
use super::hardware::{self, Attached};

/// ESXi 7: UEFI with Secure Boot and a TPM, two controllers, a CD drive, a distributed switch.
const ESXI: &str = r#".encoding = "UTF-8"
config.version = "8"
virtualHW.version = "19"
nvram = "web-01.nvram"
svga.present = "TRUE"
displayName = "web |2201|22 größe"
annotation = "First line|0ASecond |7C line"
guestOS = "rhel8-64"
firmware = "efi"
uefi.secureBoot.enabled = "TRUE"
vtpm.present = "TRUE"
numvcpus = "4"
cpuid.coresPerSocket = "2"
memSize = "8192"
scsi0.virtualDev = "pvscsi"
scsi0.present = "TRUE"
scsi0:1.deviceType = "scsi-hardDisk"
scsi0:1.fileName = "web-01_1.vmdk"
scsi0:1.present = "TRUE"
scsi0:0.deviceType = "scsi-hardDisk"
scsi0:0.fileName = "web-01-000002.vmdk"
sched.scsi0:0.shares = "normal"
scsi0:0.present = "TRUE"
scsi1.present = "TRUE"
scsi1:10.fileName = "/vmfs/volumes/5f3c/web-01/web-01_2.vmdk"
scsi1:10.present = "TRUE"
scsi1:2.fileName = "web-01_3.vmdk"
scsi1:2.present = "TRUE"
sata0.present = "TRUE"
sata0:0.deviceType = "cdrom-image"
sata0:0.fileName = "/vmfs/volumes/5f3c/iso/rhel.iso"
sata0:0.present = "TRUE"
nvme0.present = "TRUE"
nvme0:0.fileName = "web-01_4.vmdk"
nvme0:0.present = "TRUE"
ethernet10.present = "TRUE"
ethernet10.addressType = "static"
ethernet10.address = "00:50:56:00:00:0A"
ethernet10.generatedAddress = "00:50:56:00:00:ff"
ethernet10.virtualDev = "e1000e"
ethernet0.virtualDev = "vmxnet3"
ethernet0.networkName = "VM Network"
ethernet0.addressType = "vpx"
ethernet0.generatedAddress = "00:50:56:AB:CD:01"
ethernet0.present = "TRUE"
ethernet1.present = "TRUE"
ethernet1.dvs.portgroupId = "dvportgroup-21"
ethernet2.present = "FALSE"
ethernet2.networkName = "gone"
pciPassthru0.present = "TRUE"
"#;

/// Workstation on Windows: an IDE disk, NAT, and a disk that is not connected.
const WORKSTATION: &str = "#!/usr/bin/vmware\r\n.encoding = \"windows-1252\"\r\n\
    displayName = \"Gr\u{0}\u{0}n\"\r\nguestOS = \"windows9-64\"\r\nmemsize = \"2048\"\r\n\
    ide0:0.present = \"TRUE\"\r\nide0:0.fileName = \"Windows 10.vmdk\"\r\n\
    ide1:0.present = \"TRUE\"\r\nide1:0.fileName = \"auto detect\"\r\n\
    ide1:0.deviceType = \"cdrom-raw\"\r\nsata0:1.present = \"FALSE\"\r\n\
    sata0:1.fileName = \"old.vmdk\"\r\nsata0.present = \"TRUE\"\r\nfloppy0.present = \"FALSE\"\r\n\
    ethernet0.present = \"TRUE\"\r\nethernet0.connectionType = \"nat\"\r\n\
    ethernet0.addressType = \"generated\"\r\nethernet0.generatedAddress = \"00:0c:29:01:02:03\"\r\n\
    bios.hddOrder = \"\"\r\nplain = unquoted\r\n";

fn parse(text: &str) -> Vmx {
    Vmx::parse(text.as_bytes()).unwrap()
}

fn slots(disks: &[Attached]) -> Vec<(&str, &str)> {
    let slots = disks.iter();
    slots
        .map(|disk| (disk.slot.as_str(), disk.file.as_str()))
        .collect()
}

#[test]
fn a_server_with_everything() {
    let vmx = parse(ESXI);
    let machine = hardware::machine(&vmx);
    assert_eq!(machine.name.as_deref(), Some("web \"01\" größe"));
    assert_eq!(vmx.get("ANNOTATION"), Some("First line\nSecond | line"));
    assert_eq!(
        (machine.cpus, machine.memory_bytes),
        (Some(4), Some(8 << 30))
    );
    assert_eq!(machine.firmware, Firmware::Uefi);
    assert_eq!((machine.secure_boot, machine.tpm), (Some(true), Some(true)));
    assert_eq!(machine.os_hint.as_deref(), Some("rhel8-64"));
    let nics: Vec<_> = machine
        .nics
        .iter()
        .map(|nic| {
            (
                nic.mac.as_deref(),
                nic.network.as_deref(),
                nic.model.as_deref(),
            )
        })
        .collect();
    assert_eq!(
        nics,
        [
            (
                Some("00:50:56:ab:cd:01"),
                Some("VM Network"),
                Some("vmxnet3")
            ),
            (None, Some("dvportgroup-21"), None),
            (Some("00:50:56:00:00:0a"), None, Some("e1000e")),
        ]
    );
    let notes = machine.notes.join("\n");
    assert!(
        notes.contains("TPM") && notes.contains("1 passed-through"),
        "{notes}"
    );
    let (disks, left_out) = hardware::disks(&vmx).unwrap();
    assert_eq!(
        slots(&disks),
        [
            ("scsi0:0", "web-01-000002.vmdk"),
            ("scsi0:1", "web-01_1.vmdk"),
            ("scsi1:2", "web-01_3.vmdk"),
            ("scsi1:10", "/vmfs/volumes/5f3c/web-01/web-01_2.vmdk"),
            ("nvme0:0", "web-01_4.vmdk"),
        ]
    );
    assert!(left_out.is_empty());
    let ordered = parse(&format!("{ESXI}bios.hddOrder = \"nvme0:0, scsi0:1\"\n"));
    let (disks, _) = hardware::disks(&ordered).unwrap();
    let first: Vec<&str> = slots(&disks).iter().map(|(slot, _)| *slot).collect();
    assert_eq!(first[..3], ["nvme0:0", "scsi0:1", "scsi0:0"]);
}

#[test]
fn a_desktop_in_its_own_encoding() {
    let mut bytes = WORKSTATION.as_bytes().to_vec();
    let at = bytes.iter().position(|byte| *byte == 0).unwrap();
    bytes.splice(at..at + 2, [0xfc, 0x80]);
    let vmx = Vmx::parse(&bytes).unwrap();
    let machine = hardware::machine(&vmx);
    assert_eq!(machine.name.as_deref(), Some("Grü€n"));
    assert_eq!((machine.cpus, machine.firmware), (Some(1), Firmware::Bios));
    assert_eq!((machine.secure_boot, machine.tpm), (None, None));
    assert_eq!(machine.nics[0].network.as_deref(), Some("nat"));
    assert_eq!(vmx.get("plain"), Some("unquoted"));
    let (disks, left_out) = hardware::disks(&vmx).unwrap();
    assert_eq!(slots(&disks), [("ide0:0", "Windows 10.vmdk")]);
    assert!(left_out[0].contains("old.vmdk"), "{left_out:?}");
    let off = WORKSTATION.replace('\0', "").replace(
        "ide0:0.present",
        "ide0.present = \"FALSE\"\r\nide0:0.present",
    );
    let (disks, left_out) = hardware::disks(&parse(&off)).unwrap();
    assert!(disks.is_empty() && left_out.len() == 2, "{left_out:?}");
}

#[test]
fn hostile_texts_are_refused() {
    let many: String = (0..20_000).map(|i| format!("k{i} = \"v\"\n")).collect();
    for (text, about) in [
        (b"no line of a vmx\n".to_vec(), "line 1"),
        (b"a = \"1\"\nb = \"2\n".to_vec(), "line 2: a quote"),
        (b"a = \"1\"\nA = \"2\"\n".to_vec(), "stands twice"),
        (b"a\0b = \"1\"\n".to_vec(), "control character"),
        (b" = \"1\"\n".to_vec(), "no plain key"),
        (b"displayName = \"\xff\"\n".to_vec(), "displayname"),
        (b"displayName = \"|FF\"\n".to_vec(), "displayname"),
        (b".encoding = \"Shift_JIS\"\n".to_vec(), "shift_jis"),
        (many.into_bytes(), "keys"),
    ] {
        let error = Vmx::parse(&text).unwrap_err();
        assert!(error.to_string().contains(about), "{error}");
        assert!(error.remedy.is_some());
    }
    for rest in ["", "|", "|2", "|zz", "|é", "\u{feff}"] {
        let vmx = parse(&format!("a = \"{rest}\"\n"));
        assert_eq!(vmx.get("a").unwrap_or_default(), rest);
    }
    for line in [
        "scsi0:0.fileName = \"/dev/sda\"\nscsi0:0.deviceType = \"rawDisk\"",
        "scsi0:0.fileName = \"x.vmdk\"\nscsi0:0.deviceType = \"scsi-passthru\"",
        "scsi0:0.fileName = \"x.iso\"\nscsi0:0.deviceType = \"disk\"",
    ] {
        assert!(hardware::disks(&parse(line)).is_err(), "{line}");
    }
    let odd = "scsi99999999999:0.fileName = \"x.vmdk\"\nscsi0.fileName = \"y.vmdk\"\n\
               ethernet99999999999.present = \"TRUE\"\nmemsize = \"99999999999999999999\"\n\
               numvcpus = \"-1\"\n";
    let vmx = parse(odd);
    assert!(hardware::disks(&vmx).unwrap().0.is_empty());
    let machine = hardware::machine(&vmx);
    assert!(machine.nics.is_empty() && machine.memory_bytes.is_none());
}

/// What whoever reads a VM asks of its text.
fn read(bytes: &[u8]) {
    let Ok(vmx) = Vmx::parse(bytes) else {
        return;
    };
    let machine = hardware::machine(&vmx);
    assert!(machine.nics.len() <= 64);
    if let Ok((disks, _)) = hardware::disks(&vmx) {
        assert!(disks.iter().all(|disk| !disk.file.is_empty()));
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
        read(&bytes);
    }

    #[test]
    fn any_change_is_read_or_refused(at in 0..ESXI.len(), new: Vec<u8>, gone in 0_usize..40) {
        let mut bytes = ESXI.as_bytes().to_vec();
        let end = bytes.len().min(at + gone);
        bytes.splice(at..end, new);
        read(&bytes);
    }
}
