//! Which file system a device name of the guest meant on its old hardware, and a name for it that
//! does not depend on controllers, drivers or the order in which disks are found.
//!
//! `/dev/sdb1`, `/dev/xvdb1`, `/dev/hdb1` and `/dev/vdb1` are one place: the second disk's first
//! partition. Identifiers come from hostile file systems: only harmless ones are ever written.
use std::collections::BTreeSet;

use crate::guest::linux::edit::quote;
use crate::guest::model::BlockDevice;

/// What kind of thing a name in fstab, crypttab or on a kernel's command line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// tmpfs, a server's export, a pseudo device.
    NoDisk,
    /// Tags, device mapper, LVM, MD: found by what is on the disk.
    Stable,
    /// CD and floppy drives.
    Removable,
    /// `/dev/disk/by-path/…`
    ByPath,
    /// Named after a driver, a position or the virtual disk's serial number.
    Unstable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    Uuid,
    PartUuid,
    Label,
}

/// The tags of a file system, best first.
pub const FILE_SYSTEM: &[Tag] = &[Tag::Uuid, Tag::PartUuid, Tag::Label];
/// What the kernel finds without an initramfs, and what names a partition without a file system.
pub const PARTITION: &[Tag] = &[Tag::PartUuid];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spelling {
    /// `UUID=…`
    Tag,
    /// `/dev/disk/by-uuid/…`
    Path,
}

/// Disks and partitions are counted from 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    disk: u32,
    partition: Option<u32>,
}

/// The guest's block devices, looked up by their old names.
pub struct Devices<'a> {
    all: Vec<(Option<Place>, &'a BlockDevice)>,
    /// The controllers that the guest's by-path names mention.
    controllers: BTreeSet<String>,
}

impl<'a> Devices<'a> {
    /// `texts` are the guest's files that may hold by-path names: with more than one controller
    /// in them, a SCSI target does not tell which disk is meant.
    pub fn new(devices: &'a [BlockDevice], texts: &[&str]) -> Self {
        let names = texts.iter().flat_map(|text| {
            let pieces = text.split("/dev/disk/by-path/").skip(1);
            pieces.filter_map(|piece| piece.split("-scsi-").next())
        });
        Self {
            all: devices
                .iter()
                .map(|device| (place(&device.name), device))
                .collect(),
            controllers: names
                .filter(|name| name.len() < 64)
                .map(str::to_owned)
                .collect(),
        }
    }

    /// The device that `name` meant; `fs` is the file system that must be on it, if one is known.
    pub fn find(&self, name: &str, fs: Option<&str>) -> Result<&'a BlockDevice, String> {
        self.find_mounted(name, fs, None)
    }

    /// As `find`; where several disks could be meant, the one that was found mounted there.
    pub fn find_mounted(
        &self,
        name: &str,
        fs: Option<&str>,
        mountpoint: Option<&str>,
    ) -> Result<&'a BlockDevice, String> {
        if let Some(place) = place(name) {
            let mut at = self.all.iter().filter(|(known, _)| *known == Some(place));
            let (_, device) = at
                .next()
                .ok_or("no such disk or partition is in the machine")?;
            return fits(device, fs);
        }
        let linked = name
            .strip_prefix("/dev/disk/")
            .ok_or("a name that tells no disk")?;
        let partition = linked
            .rsplit_once("-part")
            .and_then(|(_, number)| number.parse().ok());
        let candidates = self.all.iter().filter(|(place, device)| {
            place.is_some_and(|place| place.partition == partition) && fits(device, fs).is_ok()
        });
        let candidates: Vec<_> = candidates.collect();
        match candidates.as_slice() {
            [] => Err("no file system of that kind is there".to_owned()),
            [(_, device)] => fits(device, fs),
            several => {
                let disk = scsi_target(linked).filter(|_| self.controllers.len() == 1);
                let is_meant = |(place, device): &&&(Option<Place>, &BlockDevice)| {
                    let is_there = mountpoint.is_some() && device.mountpoint.as_deref() == mountpoint;
                    is_there || (disk.is_some() && place.map(|place| place.disk) == disk)
                };
                let mut meant = several.iter().filter(is_meant);
                let (_, device) = meant.next().ok_or("several disks could be meant")?;
                match meant.next() {
                    Some(_) => Err("several disks could be meant".to_owned()),
                    None => fits(device, fs),
                }
            }
        }
    }

    /// The first of `tags` that names `device` and nothing else.
    pub fn name(&self, device: &BlockDevice, tags: &[Tag], as_: Spelling) -> Option<String> {
        tags.iter().find_map(|tag| {
            let value = read_tag(device, *tag)?;
            let one_file_system = *tag == Tag::Uuid && device.fs_type == "btrfs";
            let same = |(_, other): &&(_, &BlockDevice)| read_tag(other, *tag) == Some(value);
            if !one_file_system && self.all.iter().filter(same).count() > 1 {
                return None;
            }
            let (key, directory) = match tag {
                Tag::Uuid => ("UUID", "by-uuid"),
                Tag::PartUuid => ("PARTUUID", "by-partuuid"),
                Tag::Label => ("LABEL", "by-label"),
            };
            match as_ {
                Spelling::Tag => Some(format!("{key}={value}")),
                // udev escapes a slash in its links.
                Spelling::Path if value.contains('/') => None,
                Spelling::Path => Some(format!("/dev/disk/{directory}/{value}")),
            }
        })
    }

    /// A lasting name for what `name` meant, or why there is none.
    pub fn rename(
        &self,
        name: &str,
        fs: Option<&str>,
        mountpoint: &str,
    ) -> Result<String, String> {
        let device = self.find_mounted(name, fs, Some(mountpoint))?;
        self.name(device, FILE_SYSTEM, Spelling::Tag)
            .ok_or_else(|| "its file system has no usable UUID, PARTUUID or label".to_owned())
    }
}

fn fits<'a>(device: &'a BlockDevice, fs: Option<&str>) -> Result<&'a BlockDevice, String> {
    let found = device.fs_type.as_str();
    let is_member = matches!(found, "LVM2_member" | "linux_raid_member" | "zfs_member");
    let is_same = match fs {
        _ if found.is_empty() => true,
        None | Some("auto" | "none") => !is_member,
        Some("ext2" | "ext3" | "ext4") => found.starts_with("ext"),
        Some("vfat" | "msdos") => matches!(found, "vfat" | "msdos"),
        Some("ntfs" | "ntfs3" | "ntfs-3g") => found == "ntfs",
        Some(fs) => fs == found,
    };
    if is_same {
        Ok(device)
    } else {
        Err(format!("a {} is there", quote(found)))
    }
}

fn read_tag(device: &BlockDevice, tag: Tag) -> Option<&str> {
    let (value, extra) = match tag {
        Tag::Uuid => (&device.uuid, "-"),
        Tag::PartUuid => (&device.partuuid, "-"),
        Tag::Label => (&device.label, "-_.:/"),
    };
    let is_harmless = |c: char| c.is_ascii_alphanumeric() || extra.contains(c);
    let value = value.as_deref()?;
    ((1..=64).contains(&value.len()) && value.chars().all(is_harmless)).then_some(value)
}

pub fn kind(name: &str) -> Kind {
    let Some(device) = name.strip_prefix("/dev/") else {
        let is_tag = ["UUID=", "LABEL=", "PARTUUID=", "PARTLABEL="]
            .iter()
            .any(|tag| name.starts_with(tag));
        return if is_tag { Kind::Stable } else { Kind::NoDisk };
    };
    if device.starts_with("disk/by-path/") {
        return Kind::ByPath;
    }
    if let Some(id) = device.strip_prefix("disk/by-id/") {
        let by_contents = ["dm-", "md-", "lvm-"]
            .iter()
            .any(|start| id.starts_with(start));
        return if by_contents {
            Kind::Stable
        } else {
            Kind::Unstable
        };
    }
    let digits = |rest: &str| rest.chars().all(|c| c.is_ascii_digit());
    let numbered = |start: &str| device.strip_prefix(start).is_some_and(digits);
    if ["sr", "scd", "fd", "cdrom", "cdrw", "dvd", "dvdrw", "floppy"]
        .into_iter()
        .any(numbered)
    {
        return Kind::Removable;
    }
    if place(name).is_some() || numbered("dm-") {
        return Kind::Unstable;
    }
    Kind::Stable
}

/// Where `/dev/sdb1` and its like point; none for names that tell no position.
fn place(name: &str) -> Option<Place> {
    let device = name.strip_prefix("/dev/")?;
    let lettered = |prefix: &str| {
        let rest = device.strip_prefix(prefix)?;
        let end = rest
            .find(|c: char| !c.is_ascii_lowercase())
            .unwrap_or(rest.len());
        let (letters, number) = rest.split_at(end);
        let partition = match number {
            "" => None,
            number => Some(number.parse().ok()?),
        };
        Some(Place {
            disk: disk_of_letters(letters)?,
            partition,
        })
    };
    for prefix in ["sd", "hd", "xvd", "vd", "ubd"] {
        if let Some(place) = lettered(prefix) {
            return Some(place);
        }
    }
    if let Some(rest) = device.strip_prefix("nvme") {
        let (disk, rest) = split_number(rest)?;
        let (_, partition) = split_number(rest.strip_prefix('n')?)?;
        return with_p(disk, partition);
    }
    let array = device
        .strip_prefix("cciss/c0d")
        .or(device.strip_prefix("ida/c0d"));
    let (disk, partition) = split_number(array?)?;
    with_p(disk, partition)
}

fn with_p(disk: u32, partition: &str) -> Option<Place> {
    let partition = match partition.strip_prefix('p') {
        Some(number) => Some(number.parse().ok()?),
        None => partition.is_empty().then_some(None)?,
    };
    Some(Place { disk, partition })
}

fn split_number(text: &str) -> Option<(u32, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    Some((number.parse().ok()?, rest))
}

/// `a` is 0, `z` 25, `aa` 26.
fn disk_of_letters(letters: &str) -> Option<u32> {
    if !(1..=2).contains(&letters.len()) {
        return None;
    }
    let number = letters.bytes().fold(0, |number, letter| {
        number * 26 + u32::from(letter - b'a') + 1
    });
    Some(number - 1)
}

/// The SCSI target is the disk's number on VMware's controllers, which keep 7 for themselves.
fn scsi_target(linked: &str) -> Option<u32> {
    let (_, address) = linked.rsplit_once("-scsi-")?;
    let target: u32 = address.split(':').nth(2)?.parse().ok()?;
    Some(if target > 7 { target - 1 } else { target })
}
