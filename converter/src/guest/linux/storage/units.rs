//! systemd's own mounts and swaps: systemd.mount(5), systemd.swap(5).
use queue::instance::config::FstabMode;

use super::devices::{Devices, FILE_SYSTEM, Spelling};
use super::fstab::is_unstable;
use crate::guest::linux::edit::{Edit, Fate, quote};
use crate::guest::linux::ini::{read, revise_settings, values};

pub fn stabilise(unit: &[u8], devices: &Devices<'_>, mode: FstabMode) -> Edit {
    let settings = read(unit);
    let is_swap = settings.iter().any(|setting| setting.section == "Swap");
    let fs = values(&settings, "Mount", "Type").next();
    let fs = if is_swap { Some("swap") } else { fs };
    let mountpoint = values(&settings, "Mount", "Where").next();
    revise_settings(unit, |section, key, value, notes| {
        let is_source = matches!(section, "Mount" | "Swap") && key == "What";
        if !is_source || !is_unstable(value, mode) {
            return Fate::Keep;
        }
        let new = devices
            .find_mounted(value, fs, mountpoint)
            .and_then(|device| {
                let new = devices.name(device, FILE_SYSTEM, Spelling::Path);
                new.ok_or_else(|| {
                    "its file system has no usable UUID, PARTUUID or label".to_owned()
                })
            });
        match new {
            Ok(new) => {
                notes.change(format!("{} is {new} on any hardware", quote(value)));
                Fate::Replace(format!("What={new}"))
            }
            Err(why) => {
                notes.skip(format!("{} stays: {why}", quote(value)));
                Fate::Keep
            }
        }
    })
}
