//! /etc/fstab, fstab(5): names of disks that change with the hardware become lasting ones, and
//! what cannot be there any more must not hold up the boot.
use queue::instance::config::FstabMode;

use super::devices::{Devices, Kind, PARTITION, Spelling, kind};
use super::entry::Entry;
use crate::guest::linux::edit::{Edit, Fate, Notes, quote, revise};

/// Shared folders of other hypervisors.
const FOREIGN: [&str; 6] = [
    "vmhgfs",
    "fuse.vmhgfs-fuse",
    "vmhgfs-fuse",
    "fuse.vmware-vmblock",
    "vboxsf",
    "prl_fs",
];

/// Mount options that name a further device.
const DEVICE_OPTIONS: [&str; 4] = ["logdev=", "rtdev=", "device=", "journal_path="];

pub fn stabilise(fstab: &[u8], devices: &Devices<'_>, mode: FstabMode) -> Edit {
    if mode == FstabMode::Noop {
        return Edit::unchanged(fstab);
    }
    revise(fstab, |line, notes| {
        let mut entry = Entry::parse(line, 6);
        if entry.len() < 3 {
            return Fate::Keep;
        }
        revise_device(&mut entry, devices, mode, notes);
        if mode == FstabMode::StabilizeAll {
            revise_options(&mut entry, devices, notes);
            revise_absent(&mut entry, notes);
        }
        let new = entry.text();
        if new == line {
            Fate::Keep
        } else {
            Fate::Replace(new)
        }
    })
}

/// The names of disks in an fstab that would be changed if something were known of them.
pub fn is_unstable(name: &str, mode: FstabMode) -> bool {
    match kind(name) {
        Kind::ByPath => mode != FstabMode::Noop,
        Kind::Unstable => mode == FstabMode::StabilizeAll,
        _ => false,
    }
}

fn revise_device(entry: &mut Entry, devices: &Devices<'_>, mode: FstabMode, notes: &mut Notes) {
    let name = entry.field(0).to_owned();
    let fs = entry.field(2).to_owned();
    let is_disc = fs.split(',').any(|fs| matches!(fs, "iso9660" | "udf"));
    if is_disc || !is_unstable(&name, mode) {
        return;
    }
    let fs = (!fs.contains(',')).then_some(fs.as_str());
    match devices.rename(&name, fs, entry.field(1)) {
        Ok(new) => {
            notes.change(format!("{} is {new} on any hardware", quote(&name)));
            entry.set(0, new);
        }
        Err(why) => notes.skip(format!("{} stays: {why}", quote(&name))),
    }
}

fn revise_options(entry: &mut Entry, devices: &Devices<'_>, notes: &mut Notes) {
    let options: Vec<String> = entry.field(3).split(',').map(str::to_owned).collect();
    let mut revised = options.clone();
    for option in &mut revised {
        let found = DEVICE_OPTIONS
            .iter()
            .find_map(|key| Some((key, option.strip_prefix(key)?)));
        let Some((key, name)) = found.filter(|(_, name)| is_unstable_disk(name)) else {
            continue;
        };
        // An external log has no UUID of its own; a btrfs's members share one.
        let new = devices.find(name, None).and_then(|device| {
            devices
                .name(device, PARTITION, Spelling::Path)
                .ok_or_else(|| "it has no PARTUUID".to_owned())
        });
        match new {
            Ok(new) => {
                notes.change(format!("{} is {new} on any hardware", quote(name)));
                *option = format!("{key}{new}");
            }
            Err(why) => notes.skip(format!("{} stays: {why}", quote(option))),
        }
    }
    if revised != options {
        entry.set(3, revised.join(","));
    }
}

fn is_unstable_disk(name: &str) -> bool {
    is_unstable(name, FstabMode::StabilizeAll)
}

/// A drive or a shared folder that the new machine may lack: systemd would wait for it, and then
/// stop the boot.
fn revise_absent(entry: &mut Entry, notes: &mut Notes) {
    let fs = entry.field(2);
    let is_shared = FOREIGN.contains(&fs) || entry.field(0).starts_with(".host:");
    let is_disc = fs.split(',').any(|fs| matches!(fs, "iso9660" | "udf"));
    let is_drive = kind(entry.field(0)) == Kind::Removable || is_disc;
    let is_file = !entry.field(0).starts_with("/dev/");
    if !is_shared && (!is_drive || is_file) {
        return;
    }
    let has = |wanted: &str| entry.field(3).split(',').any(|option| option == wanted);
    let (wanted, reason) = match (is_shared, has("noauto"), has("nofail")) {
        (_, true, _) | (false, _, true) => return,
        (true, _, true) => ("noauto", "the old hypervisor's folders are not there"),
        (true, _, false) => (
            "noauto,nofail",
            "the old hypervisor's folders are not there",
        ),
        (false, ..) => ("nofail", "the boot goes on without this drive"),
    };
    let options = match entry.field(3) {
        "" => wanted.to_owned(),
        options => format!("{options},{wanted}"),
    };
    notes.change(format!("{} added: {reason}", quote(wanted)));
    entry.set(3, options);
}
