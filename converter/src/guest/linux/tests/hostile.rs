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

type Repair = fn(&[u8], &Devices<'_>, &Pairing) -> Edit;

/// Every repair of one file.
const REPAIRS: [(&str, Repair); 29] = [
    ("fstab", |t, d, _| {
        fstab::stabilise(t, d, FstabMode::StabilizeAll)
    }),
    ("by path", |t, d, _| {
        fstab::stabilise(t, d, FstabMode::BypathOnly)
    }),
    ("unit", |t, d, _| {
        units::stabilise(t, d, FstabMode::StabilizeAll)
    }),
    ("crypttab", |t, d, _| {
        crypttab::stabilise(t, d, FstabMode::StabilizeAll)
    }),
    ("lvm.conf", |t, _, _| lvm::revise_filters(t)),
    ("grub2", |t, d, _| entries::stabilise(t, Format::Grub2, d)),
    ("grub", |t, d, _| {
        entries::stabilise(t, Format::GrubLegacy, d)
    }),
    ("entry", |t, d, _| entries::stabilise(t, Format::Entry, d)),
    ("syslinux", |t, d, _| {
        entries::stabilise(t, Format::Syslinux, d)
    }),
    ("cmdline", |t, d, _| entries::stabilise(t, Format::Bare, d)),
    ("grubenv", |t, d, _| entries::stabilise_environment(t, d)),
    ("default/grub", |t, d, _| defaults::stabilise(t, d, false)),
    ("inittab", |t, _, _| console::add_login(t)),
    ("omissions", |t, _, _| config::dracut_omissions(t)),
    ("initramfs modules", |t, _, _| {
        config::initramfs_tools_modules(t)
    }),
    ("policy", |t, _, _| config::initramfs_tools_policy(t)),
    ("resume", |t, d, _| config::resume(t, d)),
    ("features", |t, _, _| {
        config::add_words(t, "MODULES", &["virtio_blk"])
    }),
    ("modprobe.conf", |t, _, _| config::modprobe_adapters(t)),
    ("loads", |t, _, _| modules::revise_loads(t)),
    ("modprobe", |t, _, _| modules::revise_modprobe(t)),
    ("ifcfg", |t, _, p| ifcfg::revise_ifcfg("ifcfg-eth0", t, p)),
    ("keyfile", |t, _, p| keyfile::revise_keyfile(t, p)),
    ("network", |t, _, p| networkd::revise_network(t, p)),
    ("link", |t, _, p| networkd::revise_link(t, p)),
    ("netplan", |t, _, _| netplan::revise_netplan(t)),
    ("interfaces", |t, _, p| ifupdown::revise_interfaces(t, p)),
    ("wicked", |t, _, p| wicked::revise_wicked(t, p)),
    ("rules", |t, _, p| rules::revise_rules(t, p)),
];

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
            ..Pairing::default()
        },
    )
}

/// Words that mean something in one of the formats, and what may stand between them.
const WORDS: [&str; 82] = [
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

fn words() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        6 => select(&WORDS[..]).prop_map(|word| word.as_bytes().to_vec()),
        3 => select(&[" ", "\t", "\n", "\r\n", "  ", ""][..])
            .prop_map(|blank| blank.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..4),
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

fn check(text: &[u8]) -> Result<(), TestCaseError> {
    let (devices, pairing) = machine();
    let devices = Devices::new(&devices, &[]);
    for (name, repair) in REPAIRS {
        let edit = repair(text, &devices, &pairing);
        let is_changed = edit.text != text;
        prop_assert_eq!(is_changed, !edit.changes.is_empty(), "{} {:?}", name, edit);
        let again = repair(&edit.text, &devices, &pairing);
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
    #![proptest_config(ProptestConfig::with_cases(1000))]

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
    let devices = Devices::new(&devices, &[]);
    for (name, repair) in REPAIRS {
        let edit = repair(&text, &devices, &pairing);
        assert_eq!(edit.text.len(), text.len(), "{name}");
        assert!(edit.changes.is_empty(), "{name}");
    }
}
