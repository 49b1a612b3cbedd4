//! /etc/crypttab, crypttab(5): the encrypted devices under names that last.
//!
//! Swap with a random key is made anew at every boot: its device is named by its partition, and
//! never changed to one on which something else lies.
use queue::instance::config::FstabMode;

use super::devices::{Devices, FILE_SYSTEM, PARTITION, Spelling};
use super::entry::Entry;
use super::fstab::is_unstable;
use crate::guest::linux::edit::{Edit, Fate, quote, revise};

pub fn stabilise(crypttab: &[u8], devices: &Devices<'_>, mode: FstabMode) -> Edit {
    revise(crypttab, |line, notes| {
        let mut entry = Entry::parse(line, 4);
        let name = entry.field(1).to_owned();
        if !is_unstable(&name, mode) {
            return Fate::Keep;
        }
        match rename(devices, &name, entry.field(2)) {
            Ok(new) => {
                notes.change(format!("{} is {new} on any hardware", quote(&name)));
                entry.set(1, new);
                Fate::Replace(entry.text())
            }
            Err(why) => {
                notes.skip(format!("{} stays: {why}", quote(&name)));
                Fate::Keep
            }
        }
    })
}

fn rename(devices: &Devices<'_>, name: &str, key: &str) -> Result<String, String> {
    let device = devices.find(name, None)?;
    if device.fs_type == "crypto_LUKS" {
        let new = devices.name(device, FILE_SYSTEM, Spelling::Tag);
        return new.ok_or_else(|| "its LUKS header has no usable UUID".to_owned());
    }
    let is_random = key.ends_with("random");
    if is_random && !matches!(device.fs_type.as_str(), "" | "swap") {
        return Err(format!("a {} is there", quote(&device.fs_type)));
    }
    devices
        .name(device, PARTITION, Spelling::Path)
        .ok_or_else(|| "its partition has no PARTUUID".to_owned())
}
