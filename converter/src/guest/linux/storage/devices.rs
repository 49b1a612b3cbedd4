//! Which file system a device name of the guest meant on its old hardware, and a name for it that
//! does not depend on controllers, drivers or the order in which disks are found.
//!
//! `/dev/sdb1`, `/dev/xvdb1`, `/dev/hdb1` and `/dev/vdb1` are one place: the second disk's first
//! partition. Identifiers come from hostile file systems: only harmless ones are ever written.
use std::collections::{BTreeMap, BTreeSet};

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
    /// The names in /dev/disk that the guest's files mention, each disk with its partitions.
    linked: BTreeMap<String, BTreeSet<u32>>,
    /// The drivers whose names for disks they mention. `/dev/sda` and `/dev/nvme0n1` of one
    /// machine are two disks: with two families of names, a position tells nothing.
    families: BTreeSet<&'static str>,
}

impl<'a> Devices<'a> {
    /// `texts` are the guest's files that may hold names from /dev/disk: which partitions one disk
    /// has in them helps to tell which disk it is.
    pub fn new(devices: &'a [BlockDevice], texts: &[&str]) -> Self {
        let mut linked: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
        for piece in texts
            .iter()
            .flat_map(|text| text.split("/dev/disk/").skip(1))
        {
            let end = piece.find(|c: char| c.is_ascii_whitespace() || "\"',".contains(c));
            let name = piece.get(..end.unwrap_or(piece.len())).unwrap_or_default();
            let (disk, partition) = split_linked(name);
            if name.len() < 256 && linked.len() < 256 {
                linked.entry(disk).or_default().extend(partition);
            }
        }
        Self {
            all: devices
                .iter()
                .map(|device| (place(&device.name), device))
                .collect(),
            linked,
            families: texts.iter().flat_map(|text| families(text)).collect(),
        }
    }

    /// Whether a disk of the machine can be the one of this name.
    fn can_be(&self, disk: u32, linked: &str) -> bool {
        let has = |partition: &u32| {
            let wanted = Place {
                disk,
                partition: Some(*partition),
            };
            self.all.iter().any(|(place, _)| *place == Some(wanted))
        };
        self.linked
            .get(linked)
            .is_none_or(|partitions| partitions.iter().all(has))
    }

    /// With more than one controller, a SCSI target does not tell which disk is meant.
    fn has_one_controller(&self) -> bool {
        let names = self.linked.keys();
        let of_scsi = names.filter_map(|name| Some(name.rsplit_once("-scsi-")?.0));
        of_scsi.collect::<BTreeSet<_>>().len() == 1
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
        let place = place(name);
        if let Some(place) = place.filter(|_| self.families.len() < 2) {
            let mut at = self.all.iter().filter(|(known, _)| *known == Some(place));
            let (_, device) = at
                .next()
                .ok_or("no such disk or partition is in the machine")?;
            return fits(device, fs);
        }
        let (linked, partition) = match (place, name.strip_prefix("/dev/disk/")) {
            (Some(place), _) => (String::new(), place.partition),
            (None, Some(linked)) => split_linked(linked),
            (None, None) => return Err("a name that tells no disk".to_owned()),
        };
        let candidates = self.all.iter().filter(|(place, device)| {
            let is_place = place.is_some_and(|place| {
                place.partition == partition && self.can_be(place.disk, &linked)
            });
            is_place && fits(device, fs).is_ok() && !is_elsewhere(device, mountpoint)
        });
        let candidates: Vec<_> = candidates.collect();
        match candidates.as_slice() {
            [] => Err("no file system of that kind is there".to_owned()),
            [(_, device)] => fits(device, fs),
            several => {
                let disk = scsi_target(&linked).filter(|_| self.has_one_controller());
                let is_meant = |(place, device): &&&(Option<Place>, &BlockDevice)| {
                    let is_there =
                        mountpoint.is_some() && device.mountpoint.as_deref() == mountpoint;
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
    pub fn rename(&self, name: &str, fs: Option<&str>, mountpoint: &str) -> Result<String, String> {
        let device = self.find_mounted(name, fs, Some(mountpoint))?;
        self.name(device, FILE_SYSTEM, Spelling::Tag)
            .ok_or_else(|| "its file system has no usable UUID, PARTUUID or label".to_owned())
    }
}

/// Whether the device was found mounted, and not there; a btrfs may be in many places.
fn is_elsewhere(device: &BlockDevice, mountpoint: Option<&str>) -> bool {
    let found = device
        .mountpoint
        .as_deref()
        .filter(|_| device.fs_type != "btrfs");
    found.is_some() && mountpoint.is_some() && found != mountpoint
}

fn fits<'a>(device: &'a BlockDevice, fs: Option<&str>) -> Result<&'a BlockDevice, String> {
    let found = device.fs_type.as_str();
    let is_member = matches!(found, "LVM2_member" | "linux_raid_member" | "zfs_member");
    let is_same = match fs {
        None | Some("auto" | "none") => !is_member,
        Some("ext2" | "ext3" | "ext4") => found.starts_with("ext"),
        Some("vfat" | "msdos") => matches!(found, "vfat" | "msdos"),
        Some("ntfs" | "ntfs3" | "ntfs-3g") => found == "ntfs",
        Some(fs) => fs == found,
    };
    if is_same {
        Ok(device)
    } else if found.is_empty() {
        Err("nothing that is known is there".to_owned())
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

/// Names with a letter for the disk and a number for the partition.
const LETTERED: [&str; 5] = ["sd", "hd", "xvd", "vd", "ubd"];
/// Compaq's arrays: a number for the drive, `p` and a number for the partition.
const NUMBERED: [&str; 2] = ["cciss/c0d", "ida/c0d"];

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
    if let Some(place) = LETTERED.iter().find_map(|prefix| lettered(prefix)) {
        return Some(place);
    }
    if let Some(rest) = device.strip_prefix("nvme") {
        // VMware's disks are namespaces of one controller, EC2's have a controller each.
        let (controller, rest) = split_number(rest)?;
        let (namespace, partition) = split_number(rest.strip_prefix('n')?)?;
        let disk = controller.checked_add(namespace.checked_sub(1)?)?;
        return with_p(disk, partition);
    }
    let array = NUMBERED
        .iter()
        .find_map(|prefix| device.strip_prefix(prefix));
    let (disk, partition) = split_number(array?)?;
    with_p(disk, partition)
}

/// The families of names that a file uses for disks; drives for discs aside.
fn families(text: &str) -> BTreeSet<&'static str> {
    let lines = text
        .lines()
        .filter(|line| !line.trim_ascii_start().starts_with('#'));
    let lines = lines.filter(|line| !line.contains("iso9660") && !line.contains("udf"));
    let words = lines.flat_map(|line| line.split(|c: char| c.is_ascii_whitespace() || c == '='));
    let names = words.filter(|word| place(word).is_some());
    let family = |name: &str| {
        let name = name.strip_prefix("/dev/")?;
        let all = LETTERED.iter().chain(&NUMBERED).chain(&["nvme"]);
        all.into_iter()
            .find(|prefix| name.starts_with(**prefix))
            .copied()
    };
    names.filter_map(family).collect()
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

/// The disk and the partition of a name in /dev/disk. A disk's serial number has two spellings.
fn split_linked(name: &str) -> (String, Option<u32>) {
    let (disk, partition) = match name.rsplit_once("-part") {
        Some((disk, number)) if number.parse::<u32>().is_ok() => (disk, number.parse().ok()),
        _ => (name, None),
    };
    let spellings = ["by-id/wwn-0x", "by-id/scsi-3"];
    let serial = spellings.iter().find_map(|start| disk.strip_prefix(start));
    (serial.unwrap_or(disk).to_owned(), partition)
}

/// The SCSI target is the disk's number on VMware's controllers, which keep 7 for themselves.
fn scsi_target(linked: &str) -> Option<u32> {
    let (_, address) = linked.rsplit_once("-scsi-")?;
    let target: u32 = address.split(':').nth(2)?.parse().ok()?;
    Some(if target > 7 { target - 1 } else { target })
}
