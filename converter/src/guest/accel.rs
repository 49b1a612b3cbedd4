//! KVM or emulation: /dev/kvm may be there and a guest hang on it or die of it, so the first launch
//! under KVM has a short time limit, and what came of it is remembered until the host boots again.
use std::path::{Path, PathBuf};

use queue::instance::config::Accel as Setting;
use serde::{Deserialize, Serialize};

use super::appliance::{Appliance, Drive, Site};
use crate::disk::Observer;
use crate::error::{ErrorKind, Result};

const DEVICE: &str = "/dev/kvm";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    Kvm,
    Tcg,
}

impl Accel {
    /// QEMU's name for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// What was found out, in the work directory.
#[derive(Debug, Serialize, Deserialize)]
struct Verdict {
    accel: Accel,
    reason: String,
    /// A new kernel is a new chance.
    boot_id: String,
}

fn verdict_path(work: &Path) -> PathBuf {
    work.join("accel.json")
}

/// What is known: the setting, the lack of the device, or an earlier launch. `None`: to be tried.
pub fn known(setting: Setting, work: &Path) -> Option<Accel> {
    match setting {
        Setting::Kvm => return Some(Accel::Kvm),
        Setting::Tcg => return Some(Accel::Tcg),
        Setting::Auto => {}
    }
    let device = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(DEVICE);
    if device.is_err() {
        return Some(Accel::Tcg);
    }
    let text = std::fs::read(verdict_path(work)).ok()?;
    let verdict: Verdict = serde_json::from_slice(&text).ok()?;
    (verdict.boot_id == boot_id()).then_some(verdict.accel)
}

/// Where the service is not shown it (ProcSubset=pid), the device's own age stands for it.
fn boot_id() -> String {
    use std::os::unix::fs::MetadataExt;
    if let Ok(id) = std::fs::read_to_string(BOOT_ID) {
        return id.trim().to_owned();
    }
    let made = std::fs::metadata(DEVICE).map_or(0, |device| device.ctime());
    format!("{DEVICE} of {made}")
}

fn remember(work: &Path, accel: Accel, reason: String) {
    let verdict = Verdict {
        accel,
        reason,
        boot_id: boot_id(),
    };
    // Forgotten, it is found out again.
    if let Ok(text) = serde_json::to_vec_pretty(&verdict) {
        let _ = std::fs::write(verdict_path(work), text);
    }
}

/// Launches an appliance by what is known, else under KVM and, if that fails, without.
pub fn launch<'a>(
    site: &Site,
    setting: Setting,
    drives: &[Drive],
    observer: &'a dyn Observer,
) -> Result<(Appliance<'a>, Accel)> {
    if let Some(accel) = known(setting, &site.work) {
        let appliance = Appliance::launch(site, drives.to_vec(), accel, observer)?;
        return Ok((appliance, accel));
    }
    let refused = match Appliance::launch(site, drives.to_vec(), Accel::Kvm, observer) {
        Ok(appliance) => {
            remember(&site.work, Accel::Kvm, "an appliance came up".to_owned());
            return Ok((appliance, Accel::Kvm));
        }
        Err(error) if error.kind == ErrorKind::Cancelled => return Err(error),
        Err(error) => error,
    };
    let appliance = Appliance::launch(site, drives.to_vec(), Accel::Tcg, observer)?;
    tracing::warn!(
        "KVM does not work here, emulation does: {}",
        refused.to_line()
    );
    remember(&site.work, Accel::Tcg, refused.to_line());
    Ok((appliance, Accel::Tcg))
}

/// What to run a guest with: what is known, else what an appliance that only reads these disks
/// comes up with.
pub fn settle(
    site: &Site,
    setting: Setting,
    drives: &[Drive],
    observer: &dyn Observer,
) -> Result<Accel> {
    if let Some(accel) = known(setting, &site.work) {
        return Ok(accel);
    }
    match launch(site, setting, drives, observer) {
        Ok((_, accel)) => Ok(accel),
        Err(error) if error.kind == ErrorKind::Cancelled => Err(error),
        // Emulation is slow, but it does not hang.
        Err(error) => {
            tracing::warn!("KVM was not tried: {}", error.to_line());
            Ok(Accel::Tcg)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_holds_until_the_host_boots_again() {
        let work = tempfile::tempdir().unwrap();
        assert_eq!(known(Setting::Kvm, work.path()), Some(Accel::Kvm));
        assert_eq!(known(Setting::Tcg, work.path()), Some(Accel::Tcg));
        if std::fs::OpenOptions::new()
            .write(true)
            .open(DEVICE)
            .is_err()
        {
            assert_eq!(known(Setting::Auto, work.path()), Some(Accel::Tcg));
            return;
        }
        assert_eq!(known(Setting::Auto, work.path()), None);
        remember(work.path(), Accel::Tcg, "it hung".to_owned());
        assert_eq!(known(Setting::Auto, work.path()), Some(Accel::Tcg));
        let path = verdict_path(work.path());
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace(&boot_id(), "another")).unwrap();
        assert_eq!(known(Setting::Auto, work.path()), None);
    }
}
