//! Names of disks: which last, which are looked up, and what they become.
use queue::instance::config::FstabMode;

use crate::guest::linux::bootloader::cmdline::{self, Console, Setting};
use crate::guest::linux::bootloader::device_map;
use crate::guest::linux::bootloader::entries::{ENVIRONMENT_BYTES, stabilise_environment};
use crate::guest::linux::storage::devices::{Devices, Kind, kind};
use crate::guest::linux::storage::{crypttab, fstab, lvm, units};
use crate::guest::model::BlockDevice;

fn device(name: &str, fs_type: &str, uuid: &str, partuuid: &str, label: &str) -> BlockDevice {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    BlockDevice {
        name: name.to_owned(),
        fs_type: fs_type.to_owned(),
        uuid: some(uuid),
        partuuid: some(partuuid),
        label: some(label),
        ..BlockDevice::default()
    }
}

/// A system disk, a data disk, and a third with oddities.
fn devices() -> Vec<BlockDevice> {
    vec![
        device("/dev/sda1", "ext4", "root-1", "aa-01", "root"),
        device("/dev/sda2", "swap", "swap-2", "aa-02", ""),
        device("/dev/sda3", "LVM2_member", "pv-3", "aa-03", ""),
        device("/dev/sda4", "crypto_LUKS", "luks-4", "aa-04", ""),
        device("/dev/sdb1", "xfs", "data-1", "bb-01", ""),
        device("/dev/sdb2", "ext4", "", "bb-02", "two"),
        device("/dev/sdb3", "ext4", "", "", "only label"),
        device("/dev/sdb4", "", "", "bb-04", ""),
        device("/dev/sdc", "btrfs", "pool", "", ""),
        device("/dev/sdd", "btrfs", "pool", "", ""),
        device("/dev/sde1", "xfs", "twin", "ee-01", ""),
        device("/dev/sde2", "xfs", "twin", "ee-02", ""),
        device("/dev/sde3", "ext4", "evil uuid\nx", "ee/../03", ""),
        device("/dev/sde5", "vfat", "1A2B-3C4D", "ee-05", ""),
        device("/dev/mapper/vg-root", "ext4", "lv-root", "", ""),
    ]
}

#[test]
fn kinds_of_names() {
    for (name, expected) in [
        ("/dev/sda1", Kind::Unstable),
        ("/dev/sdaa12", Kind::Unstable),
        ("/dev/hdc", Kind::Unstable),
        ("/dev/xvda", Kind::Unstable),
        ("/dev/vdb3", Kind::Unstable),
        ("/dev/nvme0n1p3", Kind::Unstable),
        ("/dev/cciss/c0d1p2", Kind::Unstable),
        ("/dev/dm-0", Kind::Unstable),
        ("/dev/disk/by-id/scsi-36000c29-part1", Kind::Unstable),
        ("/dev/disk/by-id/wwn-0x6000c29-part1", Kind::Unstable),
        (
            "/dev/disk/by-id/ata-VMware_Virtual_SATA_Hard_Drive_01-part1",
            Kind::Unstable,
        ),
        (
            "/dev/disk/by-path/pci-0000:03:00.0-scsi-0:0:0:0-part1",
            Kind::ByPath,
        ),
        ("/dev/disk/by-id/dm-name-vg-root", Kind::Stable),
        ("/dev/disk/by-id/lvm-pv-uuid-x", Kind::Stable),
        ("/dev/disk/by-uuid/x", Kind::Stable),
        ("/dev/mapper/vg-root", Kind::Stable),
        ("/dev/vg/root", Kind::Stable),
        ("/dev/md0", Kind::Stable),
        ("/dev/md/boot", Kind::Stable),
        ("/dev/sdx/y", Kind::Stable),
        ("UUID=x", Kind::Stable),
        ("LABEL=/", Kind::Stable),
        ("PARTUUID=x", Kind::Stable),
        ("/dev/sr0", Kind::Removable),
        ("/dev/scd0", Kind::Removable),
        ("/dev/cdrom", Kind::Removable),
        ("/dev/fd0", Kind::Removable),
        ("tmpfs", Kind::NoDisk),
        ("nas:/home", Kind::NoDisk),
        ("//files/x", Kind::NoDisk),
        ("/swap.img", Kind::NoDisk),
    ] {
        assert_eq!(kind(name), expected, "{name}");
    }
}

/// Lines of fstab, before and after.
const FSTAB: [(&str, &str); 30] = [
    ("/dev/sda1 / ext4", "UUID=root-1 / ext4"),
    ("/dev/hda1\t/\text3", "UUID=root-1\t/\text3"),
    ("/dev/xvda1 / auto", "UUID=root-1 / auto"),
    ("/dev/cciss/c0d0p1 / ext4", "UUID=root-1 / ext4"),
    ("/dev/nvme1n1p1 /d xfs", "UUID=data-1 /d xfs"),
    ("/dev/sda2 none swap", "UUID=swap-2 none swap"),
    ("/dev/sdb2 /d ext4", "PARTUUID=bb-02 /d ext4"),
    ("/dev/sdb3 /d ext4", "/dev/sdb3 /d ext4"),
    ("/dev/sdc /d btrfs subvol=a", "UUID=pool /d btrfs subvol=a"),
    ("/dev/sde1 /d xfs", "PARTUUID=ee-01 /d xfs"),
    ("/dev/sde3 /d ext4", "/dev/sde3 /d ext4"),
    (
        "/dev/sde5 /efi vfat umask=0077",
        "UUID=1A2B-3C4D /efi vfat umask=0077",
    ),
    // What is there is not what fstab says.
    ("/dev/sda2 /d ext4", "/dev/sda2 /d ext4"),
    ("/dev/sda3 /d auto", "/dev/sda3 /d auto"),
    ("/dev/sdz1 /d ext4", "/dev/sdz1 /d ext4"),
    ("/dev/mapper/vg-root / ext4", "/dev/mapper/vg-root / ext4"),
    ("LABEL=root / ext4", "LABEL=root / ext4"),
    (
        "/dev/disk/by-path/pci-0000:03:00.0-scsi-0:0:0:0-part1 / ext4",
        "UUID=root-1 / ext4",
    ),
    (
        "/dev/disk/by-path/pci-0000:03:00.0-scsi-0:0:1:0-part1 /d xfs",
        "UUID=data-1 /d xfs",
    ),
    (
        "/dev/disk/by-id/wwn-0x60-part5 /e vfat",
        "UUID=1A2B-3C4D /e vfat",
    ),
    (
        "/dev/disk/by-id/wwn-0x60-part1 /d xfs",
        "/dev/disk/by-id/wwn-0x60-part1 /d xfs",
    ),
    ("/dev/sr0 /cd iso9660 ro", "/dev/sr0 /cd iso9660 ro,nofail"),
    (
        "/dev/hdc /cd iso9660 ro,noauto",
        "/dev/hdc /cd iso9660 ro,noauto",
    ),
    (
        "/dev/hdc /cd udf,iso9660 ro",
        "/dev/hdc /cd udf,iso9660 ro,nofail",
    ),
    ("/iso/a.iso /cd iso9660 loop", "/iso/a.iso /cd iso9660 loop"),
    (
        ".host:/ /mnt/hgfs vmhgfs defaults",
        ".host:/ /mnt/hgfs vmhgfs defaults,noauto,nofail",
    ),
    (
        "share /mnt/s vboxsf nofail",
        "share /mnt/s vboxsf nofail,noauto",
    ),
    (
        "UUID=x /d xfs logdev=/dev/sdb2,noatime",
        "UUID=x /d xfs logdev=/dev/disk/by-partuuid/bb-02,noatime",
    ),
    ("# /dev/sda1 / ext4", "# /dev/sda1 / ext4"),
    ("/dev/sda1", "/dev/sda1"),
];

#[test]
fn names_in_fstab() {
    let devices = devices();
    for (before, after) in FSTAB {
        let devices = Devices::new(&devices, &[before]);
        let edit = fstab::stabilise(before.as_bytes(), &devices, FstabMode::StabilizeAll);
        assert_eq!(
            String::from_utf8_lossy(&edit.text),
            after,
            "{:?}",
            edit.skipped
        );
        let noop = fstab::stabilise(before.as_bytes(), &devices, FstabMode::Noop);
        assert_eq!(noop.text, before.as_bytes());
        let bypath = fstab::stabilise(before.as_bytes(), &devices, FstabMode::BypathOnly);
        let is_linked = before.starts_with("/dev/disk/by-path");
        assert_eq!(bypath.text != before.as_bytes(), is_linked, "{before}");
    }
}

#[test]
fn two_controllers_leave_a_target_in_doubt() {
    let devices = devices();
    let two = "/dev/disk/by-path/pci-0000:03:00.0-scsi-0:0:0:0-part1 / ext4\n\
               /dev/disk/by-path/pci-0000:0b:00.0-scsi-0:0:0:0-part1 /d xfs\n";
    let devices = Devices::new(&devices, &[two]);
    let edit = fstab::stabilise(two.as_bytes(), &devices, FstabMode::StabilizeAll);
    // Only one ext4 is a first partition; of xfs there are two.
    assert!(String::from_utf8_lossy(&edit.text).starts_with("UUID=root-1 / ext4\n/dev/disk/"));
    assert_eq!(edit.skipped.len(), 1);
}

#[test]
fn two_families_of_names_are_two_sets_of_disks() {
    let mut devices = devices();
    let two = "/dev/nvme0n1p2 /d xfs\n/dev/sda1 / ext4\n/dev/sda2 none swap\n\
               /dev/nvme0n1p1 /n xfs\n# /dev/vda\n/dev/hdc /cd iso9660 noauto\n";
    // By position, nvme0n1p2 would be the first disk's swap.
    let expected = "PARTUUID=ee-02 /d xfs\nUUID=root-1 / ext4\nUUID=swap-2 none swap\n\
                    PARTUUID=ee-01 /n xfs\n# /dev/vda\n/dev/hdc /cd iso9660 noauto\n";
    for device in devices
        .iter_mut()
        .filter(|device| device.name == "/dev/sde1")
    {
        device.mountpoint = Some("/n".to_owned());
    }
    let devices = Devices::new(&devices, &[two]);
    let edit = fstab::stabilise(two.as_bytes(), &devices, FstabMode::StabilizeAll);
    assert_eq!(String::from_utf8_lossy(&edit.text), expected);
}

#[test]
fn a_disk_is_known_by_its_partitions() {
    let devices = devices();
    // Of the disks with a second and a fifth partition there is one, under two spellings.
    let two = "/dev/disk/by-id/scsi-36000c29-part2 /d xfs\n\
               /dev/disk/by-id/wwn-0x6000c29-part5 /e vfat\n";
    let devices = Devices::new(&devices, &[two]);
    let edit = fstab::stabilise(two.as_bytes(), &devices, FstabMode::StabilizeAll);
    let expected = "PARTUUID=ee-02 /d xfs\nUUID=1A2B-3C4D /e vfat\n";
    assert_eq!(String::from_utf8_lossy(&edit.text), expected);
}

#[test]
fn names_in_units() {
    let devices = devices();
    let devices = Devices::new(&devices, &[]);
    for (before, after) in [
        (
            "[Unit]\nWhat=/dev/sda1\n[Mount]\nWhat = /dev/sdb1\nWhere=/d\nType=xfs\n",
            "[Unit]\nWhat=/dev/sda1\n[Mount]\nWhat=/dev/disk/by-uuid/data-1\nWhere=/d\nType=xfs\n",
        ),
        (
            "[Swap]\nWhat=/dev/sda2\n",
            "[Swap]\nWhat=/dev/disk/by-uuid/swap-2\n",
        ),
        ("[Swap]\nWhat=/dev/sda1\n", "[Swap]\nWhat=/dev/sda1\n"),
        ("[Mount]\nWhat=tmpfs\n", "[Mount]\nWhat=tmpfs\n"),
    ] {
        let edit = units::stabilise(before.as_bytes(), &devices, FstabMode::StabilizeAll);
        assert_eq!(String::from_utf8_lossy(&edit.text), after);
    }
}

#[test]
fn lvm_finds_its_volumes() {
    for (line, is_kept) in [
        ("    filter = [ \"a|^/dev/sd[ab]|\", \"r|.*|\" ]", false),
        (
            "global_filter = [ \"a|/dev/disk/by-id/scsi-36000.*|\", \"r|.*|\" ]",
            false,
        ),
        ("filter=['a/xvd/','r/.*/']", false),
        ("    filter = [ \"a|.*|\" ]", true),
        ("    filter = [ \"r|/dev/sdb|\" ]", true),
        ("    filter = [ \"a|/dev/mapper/.*|\", \"r|.*|\" ]", true),
        ("    # filter = [ \"a|/dev/sda|\" ]", true),
        ("    devices_filter = [ \"a|/dev/sda|\" ]", true),
    ] {
        let edit = lvm::revise_filters(line.as_bytes());
        assert_eq!(edit.text == line.as_bytes(), is_kept, "{line}");
    }
    let file = "# LVM uses devices listed in this file.\nVERSION=1.1.2\n";
    assert!(!lvm::is_stale(file.as_bytes()));
    let entry = "IDTYPE=sys_wwid IDNAME=naa.6000c29 DEVNAME=/dev/sda3 PVID=x PART=3\n";
    assert!(lvm::is_stale(format!("{file}{entry}").as_bytes()));
    assert!(!lvm::is_stale(
        b"IDTYPE=crypt_uuid IDNAME=CRYPT-LUKS2-x DEVNAME=/dev/dm-0\n"
    ));
}

#[test]
fn names_in_crypttab() {
    let devices = devices();
    let devices = Devices::new(&devices, &[]);
    for (before, after) in [
        ("r /dev/sda4 none luks", "r UUID=luks-4 none luks"),
        (
            "s /dev/sdb4 /dev/urandom swap",
            "s /dev/disk/by-partuuid/bb-04 /dev/urandom swap",
        ),
        (
            "s /dev/sda2 /dev/urandom swap",
            "s /dev/disk/by-partuuid/aa-02 /dev/urandom swap",
        ),
        // Never a random key over somebody's file system.
        (
            "s /dev/sda1 /dev/urandom swap",
            "s /dev/sda1 /dev/urandom swap",
        ),
        ("r UUID=x none luks", "r UUID=x none luks"),
        ("# r /dev/sda4", "# r /dev/sda4"),
    ] {
        let edit = crypttab::stabilise(before.as_bytes(), &devices, FstabMode::StabilizeAll);
        assert_eq!(String::from_utf8_lossy(&edit.text), after);
    }
}

#[test]
fn command_lines() {
    let devices = devices();
    let devices = Devices::new(&devices, &[]);
    let both = format!("{} {}", cmdline::SERIAL, cmdline::SCREEN);
    let serial = cmdline::SERIAL;
    for (before, after) in [
        (
            "root=/dev/sda1 ro  quiet",
            format!("root=UUID=root-1 ro  quiet {both}"),
        ),
        (
            "ro resume=/dev/hda2 root=/dev/sda1 ",
            format!("ro resume=UUID=swap-2 root=UUID=root-1 {both} "),
        ),
        (
            "root=/dev/mapper/vg-root",
            format!("root=/dev/mapper/vg-root {both}"),
        ),
        ("root=/dev/sda3", format!("root=/dev/sda3 {both}")),
        (
            "cryptdevice=/dev/sda4:r:discard",
            "cryptdevice=UUID=luks-4:r:discard".to_owned(),
        ),
        (
            "cryptdevice=/dev/disk/by-id/ata-X-part4:r",
            "cryptdevice=/dev/disk/by-id/ata-X-part4:r".to_owned(),
        ),
        (
            "root=UUID=x console=tty1 q",
            format!("root=UUID=x {serial} console=tty1 q"),
        ),
        (
            "root=UUID=x console=ttyS0 console=tty0",
            "root=UUID=x console=ttyS0 console=tty0".into(),
        ),
        (
            "root=UUID=x console=hvc0",
            format!("root=UUID=x {serial} console=hvc0 console=tty0"),
        ),
        ("quiet", "quiet".to_owned()),
    ] {
        let setting = Setting {
            has_initramfs: true,
            console: Console::WithRoot,
        };
        let revised = cmdline::revise(before, &devices, setting);
        assert_eq!(revised.line, after, "{:?}", revised.skipped);
        let again = cmdline::revise(&revised.line, &devices, setting);
        assert_eq!(again.line, revised.line);
    }
    let bare = Setting {
        has_initramfs: false,
        console: Console::No,
    };
    assert_eq!(
        cmdline::revise("root=/dev/sda1", &devices, bare).line,
        "root=PARTUUID=aa-01"
    );
}

#[test]
fn an_environment_block_keeps_its_length() {
    let devices = devices();
    let devices = Devices::new(&devices, &[]);
    for length in [10, 800, 900, 960] {
        let mut block = format!(
            "# GRUB Environment Block\nkernelopts=root=/dev/sda1 {}\n",
            "x".repeat(length)
        );
        block.push_str(&"#".repeat(ENVIRONMENT_BYTES - block.len()));
        let edit = stabilise_environment(block.as_bytes(), &devices);
        assert_eq!(edit.text.len(), ENVIRONMENT_BYTES);
        assert!(String::from_utf8_lossy(&edit.text).contains("root=UUID=root-1"));
    }
}

#[test]
fn maps_of_old_disks_go() {
    for (map, is_stale) in [
        ("(hd0) /dev/sda\n", true),
        ("(fd0) /dev/fd0\n(hd0)\t/dev/disk/by-id/scsi-3600\n", true),
        ("(fd0) /dev/fd0\n", false),
        ("# (hd0) /dev/sda\n(hd0) /dev/mapper/x\n", false),
    ] {
        assert_eq!(device_map::is_stale(map.as_bytes()), is_stale, "{map}");
    }
}
