//! Guests are hostile: no file of theirs makes a repair panic, and whatever a repair did to it,
//! a second one leaves alone.
use proptest::prelude::*;
use proptest::sample::{Index, select};
use queue::instance::config::{FstabMode, Guest as Settings};

use super::tree::Sample;
use crate::guest::linux::bootloader::entries::{self, Format};
use crate::guest::linux::bootloader::{console, defaults, device_map, fallback};
use crate::guest::linux::edit::{Edit, MAX_FILE_BYTES};
use crate::guest::linux::initramfs::{config, listing};
use crate::guest::linux::network::identity::{Pairing, Pin};
use crate::guest::linux::network::{ifcfg, ifupdown, keyfile, netplan, networkd, rules, wicked};
use crate::guest::linux::plan::{Action, plan};
use crate::guest::linux::storage::devices::Devices;
use crate::guest::linux::storage::{crypttab, fstab, lvm, units};
use crate::guest::linux::{agents, modules, selinux};
use crate::guest::model::BlockDevice;

/// Every repair of one file.
fn repairs(text: &[u8], devices: &[BlockDevice], pairing: &Pairing) -> Vec<(&'static str, Edit)> {
    let devices = &Devices::new(devices, &[]);
    let menu = |format| entries::stabilise(text, format, devices);
    vec![
        (
            "fstab",
            fstab::stabilise(text, devices, FstabMode::StabilizeAll),
        ),
        (
            "by path",
            fstab::stabilise(text, devices, FstabMode::BypathOnly),
        ),
        (
            "unit",
            units::stabilise(text, devices, FstabMode::StabilizeAll),
        ),
        ("lvm.conf", lvm::revise_filters(text)),
        (
            "crypttab",
            crypttab::stabilise(text, devices, FstabMode::StabilizeAll),
        ),
        ("grub2", menu(Format::Grub2)),
        ("grub", menu(Format::GrubLegacy)),
        ("entry", menu(Format::Entry)),
        ("syslinux", menu(Format::Syslinux)),
        ("cmdline", menu(Format::Bare)),
        ("grubenv", entries::stabilise_environment(text, devices)),
        ("default/grub", defaults::stabilise(text, devices, false)),
        ("inittab", console::add_login(text)),
        ("omissions", config::dracut_omissions(text)),
        ("initramfs modules", config::initramfs_tools_modules(text)),
        ("policy", config::initramfs_tools_policy(text)),
        ("resume", config::resume(text, devices)),
        (
            "features",
            config::add_words(text, "MODULES", &["virtio_blk"]),
        ),
        ("modprobe.conf", config::modprobe_adapters(text)),
        ("loads", modules::revise_loads(text)),
        ("modprobe", modules::revise_modprobe(text)),
        ("ifcfg", ifcfg::revise_ifcfg("ifcfg-eth0", text, pairing)),
        ("keyfile", keyfile::revise_keyfile(text, pairing)),
        ("network", networkd::revise_network(text, pairing)),
        ("link", networkd::revise_link(text, pairing)),
        ("netplan", netplan::revise_netplan(text)),
        ("interfaces", ifupdown::revise_interfaces(text, pairing)),
        ("wicked", wicked::revise_wicked(text, pairing)),
        ("rules", rules::revise_rules(text, pairing)),
    ]
}

fn machine() -> (Vec<BlockDevice>, Pairing) {
    let device = |name: &str, fs_type: &str, uuid: &str| BlockDevice {
        name: name.to_owned(),
        fs_type: fs_type.to_owned(),
        uuid: Some(uuid.to_owned()),
        partuuid: Some(format!("{uuid}-p")),
        ..BlockDevice::default()
    };
    let pin = |name: &str, mac: &str| Pin {
        name: name.to_owned(),
        mac: mac.to_owned(),
    };
    let devices = vec![
        device("/dev/sda1", "ext4", "aaaa"),
        device("/dev/sda2", "swap", "bbbb"),
        device("/dev/sda3", "crypto_LUKS", "cccc"),
        device("/dev/sdb1", "xfs", "dddd"),
    ];
    let pins = vec![
        pin("eth0", "00:50:56:9a:10:01"),
        pin("ens192", "00:50:56:9a:10:02"),
    ];
    (
        devices,
        Pairing {
            pins,
            doubts: Vec::new(),
        },
    )
}

/// Words that mean something in one of the formats, and what may stand between them.
fn words() -> impl Strategy<Value = Vec<u8>> {
    let words = [
        "/dev/sda1",
        "/dev/sdb1",
        "/dev/sda2",
        "/dev/disk/by-path/pci-0-scsi-0:0:1:0-part1",
        "ext4",
        "swap",
        "root=/dev/sda1",
        "resume=",
        "console=tty1",
        "console=ttyS0",
        "linux",
        "initrd",
        "kernel",
        "title",
        "options",
        "APPEND",
        "menuentry",
        "{",
        "}",
        "\"",
        "'",
        "=",
        "+=",
        "(",
        ")",
        "#",
        "\\",
        ":",
        ",",
        ";",
        "[Match]",
        "[ethernet]",
        "[Link]",
        "Path=",
        "Driver=vmxnet3",
        "mac-address=00:50:56:9a:10:01",
        "MACAddress=00:50:56:9a:10:01",
        "Name=eth0",
        "HWADDR=",
        "00:50:56:9a:10:01",
        "DEVICE=eth0",
        "iface eth0 inet static",
        "hwaddress ether",
        "NAME=",
        "KERNELS==\"0000:03:00.0\"",
        "ATTR{address}==\"00:50:56:9a:10:01\"",
        "NAME=\"eth0\"",
        "DRIVERS==\"vmxnet3\"",
        "GRUB_CMDLINE_LINUX=",
        "MODULES=",
        "dep",
        "RESUME=/dev/sda2",
        "omit_drivers",
        "virtio_blk",
        "blacklist",
        "install",
        "/bin/true",
        "alias",
        "vmxnet3",
        "post-up ethtool -G eth0",
        "ETHTOOL_OPTS=\"-G eth0 rx 1; -K eth0 lro off\"",
        "<interface>",
        "<name namespace=\"ethernet\">",
        "</name>",
        "<ethernet><ring>",
        "</ring></ethernet>",
        "</interface>",
        "1:2345:respawn:/sbin/mingetty",
        "ttyS0",
        "kernelopts=",
        "set",
        "match:",
        "driver: vmxnet3",
        "iso9660",
        "vmhgfs",
        "none",
        "/dev/urandom",
        "cryptdevice=/dev/sda3:x",
        "[Mount]",
        "What=/dev/sda1",
        "filter = [ \"a|/dev/sda|\" ]",
        "IDTYPE=sys_wwid",
    ];
    let piece = prop_oneof![
        6 => select(words.to_vec()).prop_map(|word| word.as_bytes().to_vec()),
        3 => select(&[" ", "\t", "\n", "\r\n", "  ", ""][..])
            .prop_map(|blank| blank.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..4),
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

fn check(text: &[u8]) -> Result<(), TestCaseError> {
    let (devices, pairing) = machine();
    let first = repairs(text, &devices, &pairing);
    for (index, (name, edit)) in first.into_iter().enumerate() {
        let is_changed = edit.text != text;
        prop_assert_eq!(is_changed, !edit.changes.is_empty(), "{} {:?}", name, edit);
        let (_, again) = repairs(&edit.text, &devices, &pairing).swap_remove(index);
        prop_assert_eq!(&again.text, &edit.text, "{} twice", name);
    }
    let _ = (
        device_map::is_stale(text),
        selinux::is_enforcing(text),
        agents::wanted_by(text),
    );
    let _ = (
        listing::modules(text),
        netplan::read(text),
        wicked::read(text),
    );
    let text = String::from_utf8_lossy(text);
    let files: Vec<String> = text.lines().map(str::to_owned).collect();
    let _ = fallback::missing(&files, "x86_64");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_bytes_are_survived(text in proptest::collection::vec(any::<u8>(), 0..200)) {
        check(&text)?;
    }

    #[test]
    fn any_words_are_survived_and_repaired_once(text in words()) {
        check(&text)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Samples with lines and bytes of one file lost, doubled and changed.
    #[test]
    fn damaged_guests_are_repaired_once(
        sample in any::<Index>(),
        damage in proptest::collection::vec((any::<Index>(), any::<Index>(), 0_u8..4), 1..8),
    ) {
        let names = Sample::names();
        let name = &names[sample.index(names.len())];
        let mut sample = Sample::load(name);
        let paths: Vec<String> = sample.files.contents.keys().cloned().collect();
        for (path, line, kind) in damage {
            let contents = sample.files.contents.get_mut(&paths[path.index(paths.len())]).unwrap();
            let mut lines: Vec<Vec<u8>> =
                contents.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
            if lines.is_empty() {
                continue;
            }
            let at = line.index(lines.len());
            match kind {
                0 => drop(lines.remove(at)),
                1 => lines.insert(at, lines[at].clone()),
                2 => {
                    let half = lines[at].len() / 2;
                    lines[at].truncate(half);
                }
                _ => {
                    let middle = lines[at].len() / 2;
                    lines[at].insert(middle, 0xe9);
                }
            }
            *contents = lines.concat();
        }
        let settings = Settings::default();
        let actions = plan(&sample.guest, &settings, &mut sample.files).unwrap();
        sample.files.apply(&actions);
        sample.rebuilt();
        let mut again = plan(&sample.guest, &settings, &mut sample.files).unwrap();
        again.retain(|action| !matches!(action, Action::Warn { .. }));
        prop_assert!(again.is_empty(), "{}: {:?}", name, again);
    }
}

#[test]
fn a_huge_file_is_left_alone() {
    let (devices, pairing) = machine();
    let text = b"/dev/sda1 / ext4 defaults 0 0\n".repeat(MAX_FILE_BYTES / 30 + 1);
    for (name, edit) in repairs(&text, &devices, &pairing) {
        assert_eq!(edit.text.len(), text.len(), "{name}");
        assert!(edit.changes.is_empty(), "{name}");
    }
}
