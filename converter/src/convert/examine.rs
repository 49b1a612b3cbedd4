//! Looks at an appliance's guest: first at the disks' beginnings, then, if an operating system may
//! be there, in an appliance process. And what both that and a repair need to know.
use std::path::{Path, PathBuf};

use queue::instance::config::{BootCheck, Guest as Settings, GuestFix};
use queue::job::{self, Finding, Machine, Nic};

use super::preflight::{Preflight, preflight};
use super::{Plan, copy, vm};
use crate::disk::Observer;
use crate::error::{Error, ErrorKind, Result};
use crate::guest::appliance::{Site, drive};
use crate::guest::model::Firmware;
use crate::guest::{self, Case};
use crate::source::Appliance;

/// How the guests of an instance are cared for.
#[derive(Debug, Clone)]
pub struct Care {
    pub settings: Settings,
    pub site: Site,
    /// Contents of key files for encrypted guests.
    pub keys: Vec<Vec<u8>>,
    /// Whether each image is read again and compared with what was copied.
    pub validate: bool,
    /// `None`: nobody has looked yet.
    pub preflight: Option<Preflight>,
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
            validate: false,
            preflight: None,
        }
    }

    /// Looks at the disks as soon as all of them are there; an error if a repair that is required
    /// is known to be impossible.
    pub fn foresee(&mut self, appliance: &Appliance) -> Result<()> {
        if !self.is_wanted() {
            return Ok(());
        }
        self.preflight = preflight(appliance, !self.keys.is_empty())?;
        match self.refusal() {
            Some(refusal) if self.settings.fix == GuestFix::Require => Err(required(&refusal.text)),
            _ => Ok(()),
        }
    }

    /// What is known of the guest before its repair.
    pub fn findings(&self) -> &[Finding] {
        self.preflight.as_ref().map_or(&[], |it| &it.findings)
    }

    /// Why no repair can succeed, if that is certain.
    pub fn refusal(&self) -> Option<&Finding> {
        self.preflight.as_ref()?.refusal.as_ref()
    }

    /// Whether anything follows the copying.
    pub fn is_wanted(&self) -> bool {
        self.settings.fix != GuestFix::Off || self.settings.boot_check != BootCheck::Off
    }
}

pub(super) fn required(reason: &str) -> Error {
    let context = format!("the guest cannot be repaired: {reason}");
    Error::new(ErrorKind::Guest, context)
        .with_remedy("set guest.fix = \"try\" to publish it as it is")
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
    let preflight = preflight(appliance, !care.keys.is_empty())?;
    if let Some(refusal) = preflight.and_then(|it| it.refusal) {
        return Ok(Examined {
            guest: None,
            code: Some(refusal.code.as_str().to_owned()),
            reason: Some(refusal.text),
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
        Err(refusal) => Examined {
            guest: None,
            code: Some(refusal.code.as_str().to_owned()),
            reason: Some(refusal.text),
        },
    })
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
