//! The repair of an inspected and mounted guest, step by step, in the order that the steps need.
//!
//! What must succeed for the guest to boot is an error; the rest is noted as skipped.
use queue::instance::config::{FstabMode, Guest as Settings};

use super::appliance::guest as failure;
use super::bench::Bench;
use super::drivers::{VIRTIO, drivers, has_virtio};
use super::model::{Family, FileChange, Guest};
use crate::error::Result;

/// What an initramfs and its tool may need while it is made anew.
const FREE_BYTES: u64 = 48 << 20;

/// Repairs the guest; whether it has virtio drivers for its disks and network afterwards.
pub fn repair(bench: &mut Bench<'_, '_>, guest: &Guest, settings: &Settings) -> Result<bool> {
    check_space(bench)?;
    if guest.os.family != Family::Debian {
        let name = &guest.os.name;
        return Err(failure(format!("there is no recipe for {name:?}")));
    }
    if settings.fstab_mode == FstabMode::StabilizeAll {
        stabilize(bench, guest)?;
    }
    let virtio = match settings.regen_initramfs {
        true => regenerate(bench, guest)?,
        false => guest
            .kernels
            .iter()
            .all(|kernel| has_virtio(&kernel.drivers)),
    };
    if settings.update_grub {
        update_grub(bench)?;
    }
    Ok(virtio)
}

fn check_space(bench: &mut Bench<'_, '_>) -> Result<()> {
    for path in ["/", "/boot"] {
        let free_bytes = bench.appliance.free_bytes(path)?;
        if free_bytes < FREE_BYTES {
            let free_mib = free_bytes >> 20;
            return Err(
                failure(format!("{path} of the guest has only {free_mib} MiB free"))
                    .with_remedy("free 48 MiB there before the export"),
            );
        }
    }
    Ok(())
}

fn edit(
    bench: &mut Bench<'_, '_>,
    path: &str,
    reason: &str,
    change: impl FnOnce(&str) -> String,
) -> Result<()> {
    let Some(before) = bench.read(path)? else {
        return Ok(());
    };
    let after = change(&String::from_utf8_lossy(&before)).into_bytes();
    bench.put(FileChange {
        path: path.to_owned(),
        reason: reason.to_owned(),
        before: Some(before),
        after: Some(after),
    })
}

fn stabilize(bench: &mut Bench<'_, '_>, guest: &Guest) -> Result<()> {
    edit(
        bench,
        "/etc/fstab",
        "device names change with the controller",
        |text| {
            let mut lines = Vec::new();
            for line in text.lines() {
                let named = guest.devices.iter().find_map(|device| {
                    let rest = line.strip_prefix(device.name.as_str())?;
                    let uuid = device
                        .uuid
                        .as_ref()
                        .filter(|_| device.name.starts_with("/dev/sd"))?;
                    rest.starts_with([' ', '\t'])
                        .then(|| format!("UUID={uuid}{rest}"))
                });
                lines.push(named.unwrap_or_else(|| line.to_owned()));
            }
            lines.join("\n") + "\n"
        },
    )
}

fn regenerate(bench: &mut Bench<'_, '_>, guest: &Guest) -> Result<bool> {
    let path = "/etc/initramfs-tools/modules";
    edit(
        bench,
        path,
        "the initramfs must find virtio disks",
        |text| {
            let mut text = text.to_owned();
            for driver in VIRTIO {
                if !text.lines().any(|line| line.trim() == driver) {
                    text.push_str(driver);
                    text.push('\n');
                }
            }
            text
        },
    )?;
    let mut all = !guest.kernels.is_empty();
    for kernel in &guest.kernels {
        let Some(initramfs) = &kernel.initramfs else {
            continue;
        };
        let touches = [
            initramfs.clone(),
            format!("/var/lib/initramfs-tools/{}", kernel.version),
        ];
        let command = ["update-initramfs", "-u", "-k", &kernel.version];
        if !has_virtio(&kernel.drivers) {
            bench.run(&command, &touches, "virtio drivers for disks and network")?;
        }
        let found = drivers(bench, kernel)?.unwrap_or_default();
        all &= has_virtio(&found);
    }
    Ok(all)
}

fn update_grub(bench: &mut Bench<'_, '_>) -> Result<()> {
    edit(bench, "/etc/default/grub", "root= by UUID", |text| {
        text.replace(
            "\nGRUB_DISABLE_LINUX_UUID=true",
            "\n#GRUB_DISABLE_LINUX_UUID=true",
        )
    })?;
    let touches = ["/boot/grub/grub.cfg".to_owned()];
    bench
        .run(&["update-grub"], &touches, "root= by UUID")
        .map(|_| ())
}
