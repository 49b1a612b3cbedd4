//! The repairs, on samples of real systems: each folder of `samples/` is a guest, its files before
//! and after, and what else is done to it.
//!
//! `WRITE_SAMPLES=1` writes the second half from the first; whoever does so reads what comes out.
mod boot;
mod hostile;
mod images;
mod network;
mod storage;
mod tree;

use std::collections::BTreeSet;

use queue::instance::config::Guest as Settings;

use super::plan::{Action, plan};
use tree::{Sample, describe};

#[test]
fn every_sample_is_repaired_as_written_down() {
    let names = Sample::names();
    assert!(names.len() > 20, "only {} samples", names.len());
    let is_written = std::env::var_os("WRITE_SAMPLES").is_some();
    let mut wrong = Vec::new();
    for name in names {
        let mut sample = Sample::load(&name);
        let actions = plan(&sample.guest, &Settings::default(), &mut sample.files).unwrap();
        let told = describe(&actions);
        let before = sample.files.contents.clone();
        sample.files.apply(&actions);
        let after = sample.files.contents.clone();
        if is_written {
            sample.write(&before, &told);
            continue;
        }
        let (expected, written) = sample.expected(&before);
        if told != written {
            wrong.push(format!("{name}: actions\n{told}\nnot\n{written}"));
        }
        let paths: BTreeSet<&String> = after.keys().chain(expected.keys()).collect();
        for path in paths {
            let shown = |files: &tree::Contents| {
                files
                    .get(path)
                    .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
            };
            if after.get(path) != expected.get(path) {
                let (is, should) = (shown(&after), shown(&expected));
                wrong.push(format!("{name}{path}: is\n{is:?}\nnot\n{should:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// What systems ship to say how they boot and where their network is, by a part of the path.
const SHIPPED: [(&str, &str); 24] = [
    (
        "debian-10",
        "fstab crypttab grub.cfg modprobe.d/ network/interfaces",
    ),
    (
        "debian-11",
        "fstab crypttab grub.cfg modprobe.d/ network/interfaces",
    ),
    (
        "debian-12",
        "fstab crypttab grub.cfg modprobe.d/ network/interfaces .network",
    ),
    (
        "debian-13",
        "fstab crypttab grub.cfg modprobe.d/ network/interfaces .network .link",
    ),
    (
        "ubuntu-18.04",
        "fstab crypttab grub.cfg modprobe.d/ netplan/",
    ),
    (
        "ubuntu-20.04",
        "fstab crypttab grub.cfg modprobe.d/ netplan/",
    ),
    (
        "ubuntu-22.04",
        "fstab crypttab grub.cfg modprobe.d/ netplan/",
    ),
    (
        "ubuntu-24.04",
        "fstab crypttab grub.cfg modprobe.d/ netplan/ .nmconnection",
    ),
    (
        "rhel-7",
        "fstab crypttab grub.cfg modprobe.d/ dracut.conf ifcfg-",
    ),
    (
        "rhel-8",
        "fstab crypttab grub.cfg entries/ modprobe.d/ dracut.conf ifcfg- .nmconnection",
    ),
    (
        "rhel-9",
        "fstab crypttab grub.cfg entries/ modprobe.d/ dracut.conf ifcfg- .nmconnection",
    ),
    ("rocky-8", "fstab grub.cfg entries/ ifcfg-"),
    (
        "rocky-9",
        "fstab grub.cfg entries/ dracut.conf .nmconnection",
    ),
    (
        "alma-8",
        "fstab grub.cfg entries/ modprobe.d/ dracut.conf ifcfg-",
    ),
    ("alma-9", "fstab grub.cfg entries/ .nmconnection"),
    (
        "fedora",
        "fstab crypttab grub.cfg entries/ modprobe.d/ dracut.conf .nmconnection",
    ),
    (
        "sles-12",
        "fstab crypttab grub.cfg modprobe.d/ dracut.conf ifcfg-",
    ),
    (
        "sles-15",
        "fstab crypttab grub.cfg modprobe.d/ dracut.conf ifcfg- wicked/",
    ),
    (
        "opensuse",
        "fstab crypttab grub.cfg modprobe.d/ dracut.conf wicked/ .nmconnection",
    ),
    (
        "arch",
        "fstab crypttab grub.cfg entries/ modprobe.d/ mkinitcpio.conf .network .nmconnection",
    ),
    (
        "alpine",
        "fstab grub.cfg extlinux.conf modprobe.d/ mkinitfs.conf network/interfaces",
    ),
    (
        "amazon-linux-2",
        "fstab grub.cfg modprobe.d/ dracut.conf ifcfg-",
    ),
    (
        "amazon-linux-2023",
        "fstab entries/ modprobe.d/ dracut.conf .network",
    ),
    ("centos-6", "fstab grub.conf modprobe.d/ ifcfg-"),
];

#[test]
fn every_system_is_sampled_with_what_it_ships() {
    let names = Sample::names();
    for (system, parts) in SHIPPED {
        let is_of = |name: &&String| {
            let rest = name.strip_prefix(system);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        let samples: Vec<Sample> = names
            .iter()
            .filter(is_of)
            .map(|name| Sample::load(name))
            .collect();
        for part in parts.split(' ') {
            let has =
                |sample: &Sample| sample.files.contents.keys().any(|path| path.contains(part));
            assert!(samples.iter().any(has), "{system} has no {part}");
        }
    }
}

#[test]
fn a_second_repair_changes_nothing() {
    for name in Sample::names() {
        let mut sample = Sample::load(&name);
        let settings = Settings::default();
        let actions = plan(&sample.guest, &settings, &mut sample.files).unwrap();
        assert!(!actions.is_empty(), "{name}");
        sample.files.apply(&actions);
        sample.rebuilt();
        let again = plan(&sample.guest, &settings, &mut sample.files).unwrap();
        let again: Vec<&Action> = again
            .iter()
            .filter(|action| !matches!(action, Action::Warn { .. }))
            .collect();
        assert!(again.is_empty(), "{name}: {again:?}");
    }
}

#[test]
fn what_is_switched_off_is_left_alone() {
    let off = Settings {
        fstab_mode: queue::instance::config::FstabMode::Noop,
        regen_initramfs: false,
        update_grub: false,
        fix_network: false,
        remove_vmware_tools: false,
        ..Settings::default()
    };
    for name in Sample::names() {
        let mut sample = Sample::load(&name);
        let actions = plan(&sample.guest, &off, &mut sample.files).unwrap();
        for action in actions {
            let text = describe(std::slice::from_ref(&action));
            let is_allowed = ["modprobe", "qemu-guest-agent", ".autorelabel"]
                .iter()
                .any(|part| text.contains(part));
            assert!(is_allowed, "{name}: {text}");
        }
    }
}
