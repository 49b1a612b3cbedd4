//! Which drivers a kernel brings up before its root is mounted: those in its initramfs, listed by
//! the guest's own tool.
use super::bench::Bench;
use super::linux::initramfs::listing::{Supply, WANTED, modules};
use super::linux::initramfs::tool;
use super::linux::plan::Tree;
use super::model::{Guest, Kernel};
use crate::error::Result;

/// What else is told of an initramfs: controllers of VMware, and what SATA needs.
const TOLD: [&str; 8] = [
    "vmw_pvscsi",
    "mptspi",
    "mptsas",
    "ahci",
    "nvme",
    "vmxnet3",
    "e1000",
    "e1000e",
];

/// Fills in the drivers of interest of every kernel's initramfs, and those that it has built in.
pub fn list(bench: &mut Bench<'_, '_>, guest: &mut Guest) -> Result<()> {
    let appliance = &mut *bench.appliance;
    let exists = |path: &str| appliance.flag("exists", &[path]);
    let Some(tool) = tool::detect(guest.os.family, exists)? else {
        return Ok(());
    };
    for kernel in &mut guest.kernels {
        let Some(commands) = tool::commands(tool, kernel, &[]) else {
            continue;
        };
        let arguments: Vec<&str> = commands.list.iter().map(String::as_str).collect();
        // An initramfs that cannot be listed is one that nobody vouches for.
        let mut listing = bench.appliance.run(&arguments).unwrap_or_else(|error| {
            bench.skipped.push(error.to_line());
            String::new()
        });
        let builtin = bench.read(&format!("{}/modules.builtin", kernel.modules))?;
        listing.push('\n');
        listing.push_str(&String::from_utf8_lossy(&builtin.unwrap_or_default()));
        kernel.drivers = of_interest(&listing);
    }
    Ok(())
}

/// The drivers of interest in a listing.
pub fn of_interest(listing: &str) -> Vec<String> {
    let held = modules(listing.as_bytes());
    let all = WANTED.iter().chain(&TOLD);
    all.filter(|driver| held.contains(**driver))
        .map(|&driver| driver.to_owned())
        .collect()
}

/// Whether the kernel has all it needs for virtio disks and network, in its initramfs or built in.
pub fn has_virtio(bench: &mut Bench<'_, '_>, kernel: &Kernel) -> Result<bool> {
    let builtin = bench.read(&format!("{}/modules.builtin", kernel.modules))?;
    let loadable = bench.read(&format!("{}/modules.dep", kernel.modules))?;
    let supply = Supply::new(builtin.as_deref(), loadable.as_deref());
    let held = kernel.drivers.iter().map(String::as_str);
    Ok(supply.has_virtio_disk() && supply.missing(held).is_empty())
}
