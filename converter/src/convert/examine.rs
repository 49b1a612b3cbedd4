//! Looks at an appliance's guest: first at the disks' beginnings, then, if an operating system may
//! be there, in an appliance process. And what both that and a repair need to know.
use std::path::{Path, PathBuf};

use queue::instance::config::{BootCheck, Guest as Settings, GuestFix};
use queue::job::{self, Machine, Nic};

use super::fill::Buffer;
use super::{Plan, batch, copy, vm};
use crate::disk::{GuestOffset, Observer};
use crate::error::{Error, Result};
use crate::guest::appliance::{Site, drive};
use crate::guest::look::{HEAD_BYTES, Look, look};
use crate::guest::model::Firmware;
use crate::guest::{self, Case};
use crate::source::{Appliance, SourceDisk};

/// How the guests of an instance are cared for.
#[derive(Debug, Clone)]
pub struct Care {
    pub settings: Settings,
    pub site: Site,
    /// Contents of key files for encrypted guests.
    pub keys: Vec<Vec<u8>>,
}

/// What systemd's LoadCredential= calls the keys of encrypted guests.
const KEY_PREFIX: &str = "luks";
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
/// No key file is longer (cryptsetup's own limit is 8 MiB).
const MAX_KEY_BYTES: u64 = 8 << 20;

impl Care {
    /// By the configuration, with the keys that the service was given as credentials.
    pub fn of(settings: &Settings, work: &Path) -> Self {
        Self {
            settings: settings.clone(),
            site: guest::site(settings, work),
            keys: keys(),
        }
    }

    /// Whether anything follows the copying.
    pub fn is_wanted(&self) -> bool {
        self.settings.fix != GuestFix::Off || self.settings.boot_check != BootCheck::Off
    }
}

fn keys() -> Vec<Vec<u8>> {
    let Some(directory) = std::env::var_os(CREDENTIALS) else {
        return Vec::new();
    };
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(KEY_PREFIX))
        .map(|entry| entry.path())
        .collect();
    paths.sort_unstable();
    let is_small = |path: &PathBuf| path.metadata().is_ok_and(|m| m.len() <= MAX_KEY_BYTES);
    let small = paths.into_iter().filter(is_small);
    small.filter_map(|path| std::fs::read(path).ok()).collect()
}

/// What a look at an appliance's guest came to: a system, or why there is none.
#[derive(Debug, serde::Serialize)]
pub struct Examined {
    pub guest: Option<guest::model::Guest>,
    pub code: Option<String>,
    pub reason: Option<String>,
}

/// Looks at the guest of an appliance. The disks are copied aside first, since the appliance reads
/// no container of another product through us; the source is only read.
pub fn examine(appliance: &Appliance, care: &Care, observer: &dyn Observer) -> Result<Examined> {
    if !may_boot(appliance)? {
        return Ok(Examined {
            guest: None,
            code: Some("no_system".to_owned()),
            reason: Some("no disk has partitions or a boot loader".to_owned()),
        });
    }
    let directory = care
        .site
        .work
        .join(format!("inspect-{}", std::process::id()));
    std::fs::create_dir_all(&directory).map_err(|e| Error::io("create", &directory, e))?;
    let examined = examine_in(&directory, appliance, care, observer);
    // A copy that cannot be removed is in the user's cache.
    let _ = std::fs::remove_dir_all(&directory);
    examined
}

fn examine_in(
    directory: &Path,
    appliance: &Appliance,
    care: &Care,
    observer: &dyn Observer,
) -> Result<Examined> {
    let plan = Plan::default();
    vm::check_space(appliance, &plan, directory)?;
    let mut drives = Vec::with_capacity(appliance.disks.len());
    for (number, disk) in appliance.disks.iter().enumerate() {
        let path = directory.join(format!("disk{number}.qcow2"));
        copy(disk, &path, &plan, observer)?;
        drives.push(drive(&path, plan.format.as_str(), true)?);
    }
    let macs = macs(&appliance.machine);
    let case = case(care, &appliance.machine, &macs);
    let found = guest::examine(&case, &drives, observer)?;
    Ok(match found {
        Ok(guest) => Examined {
            guest: Some(guest),
            code: None,
            reason: None,
        },
        Err((refusal, reason)) => Examined {
            guest: None,
            code: Some(refusal.as_str().to_owned()),
            reason: Some(reason),
        },
    })
}

/// Whether any disk may hold an operating system, by its first bytes.
pub(super) fn may_boot(appliance: &Appliance) -> Result<bool> {
    for disk in &appliance.disks {
        if look(&head(disk)?) == Look::MayBoot {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The beginning of a disk as its guest sees it.
fn head(disk: &SourceDisk) -> Result<Vec<u8>> {
    let mut batches = batch::Batches::new(disk.image.extents(), GuestOffset(0), batch::BATCH_BYTES);
    let length = HEAD_BYTES.min(disk.capacity_bytes) as usize;
    match batches.next()? {
        Some(first) if first.start == GuestOffset(0) => {
            let mut buffer = Buffer::new(batch::BATCH_BYTES, false);
            buffer.fill(disk.image.as_ref(), &first)?;
            let head = buffer.guest.get(..length).unwrap_or_default();
            Ok(head.to_vec())
        }
        _ => Ok(vec![0; length]),
    }
}

pub(super) fn case<'a>(care: &'a Care, machine: &Machine, macs: &'a [String]) -> Case<'a> {
    Case {
        site: &care.site,
        settings: &care.settings,
        keys: &care.keys,
        macs,
        firmware: match machine.firmware {
            job::Firmware::Bios => Some(Firmware::Bios),
            job::Firmware::Uefi => Some(Firmware::Uefi),
            job::Firmware::Unknown => None,
        },
    }
}

pub(super) fn macs(machine: &Machine) -> Vec<String> {
    let mac = |nic: &Nic| nic.mac.as_ref().and_then(|mac| Nic::normal_mac(mac));
    machine.nics.iter().filter_map(mac).collect()
}

/// Where a session keeps its things if there is no work directory: the user's cache.
pub fn cache_dir() -> PathBuf {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(home);
    cache.unwrap_or_else(std::env::temp_dir).join("hyper2kvm")
}
