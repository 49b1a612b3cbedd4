//! Which drivers a kernel brings up before its root is mounted: those in its initramfs, listed by
//! the guest's own tool, and those that are built in.
use super::bench::Bench;
use super::model::Kernel;
use crate::error::Result;

/// What a guest under KVM needs for its disks and network cards.
pub const VIRTIO: [&str; 4] = ["virtio_pci", "virtio_blk", "virtio_scsi", "virtio_net"];
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
/// The guest's lister, and how it is called.
const LISTERS: [(&str, &str); 4] = [
    ("/usr/bin/lsinitramfs", "lsinitramfs"),
    ("/usr/bin/lsinitrd", "lsinitrd"),
    ("/usr/sbin/lsinitrd", "lsinitrd"),
    ("/usr/bin/lsinitcpio", "lsinitcpio"),
];

/// The drivers of interest that `kernel` finds before its root; `None`: nobody could list them.
pub fn drivers(bench: &mut Bench<'_, '_>, kernel: &Kernel) -> Result<Option<Vec<String>>> {
    let Some(initramfs) = &kernel.initramfs else {
        return Ok(None);
    };
    let mut lister = None;
    for (path, name) in LISTERS {
        if bench.appliance.flag("exists", &[path])? {
            lister = Some(name);
            break;
        }
    }
    let Some(lister) = lister else {
        return Ok(None);
    };
    // An initramfs that cannot be listed is one that nobody vouches for.
    let Ok(listed) = bench.appliance.run(&[lister, initramfs]) else {
        return Ok(None);
    };
    let built_in = bench.read(&format!("{}/modules.builtin", kernel.modules))?;
    let built_in = String::from_utf8_lossy(&built_in.unwrap_or_default()).into_owned();
    let names: Vec<String> = listed
        .lines()
        .chain(built_in.lines())
        .filter_map(module)
        .collect();
    let all = VIRTIO.iter().chain(&TOLD);
    Ok(Some(
        all.filter(|driver| names.iter().any(|name| name == *driver))
            .map(|&driver| driver.to_owned())
            .collect(),
    ))
}

/// The module that a line of a listing names: `…/virtio_blk.ko.xz` is `virtio_blk`.
fn module(line: &str) -> Option<String> {
    let file = line.split_whitespace().last()?.rsplit('/').next()?;
    let (name, rest) = file.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".gz" | ".zst").then(|| name.replace('-', "_"))
}

pub fn has_virtio(drivers: &[String]) -> bool {
    VIRTIO
        .iter()
        .all(|wanted| drivers.iter().any(|driver| driver == wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_name_modules() {
        for (line, name) in [
            (
                "usr/lib/modules/6.1/kernel/drivers/block/virtio_blk.ko",
                Some("virtio_blk"),
            ),
            (
                "-rw-r--r-- 1 root root 9 Jan 1 kernel/virtio-pci.ko.xz",
                Some("virtio_pci"),
            ),
            ("kernel/drivers/block/virtio_blk.ko", Some("virtio_blk")),
            ("usr/bin/virtio_blk.koala", None),
            ("", None),
        ] {
            assert_eq!(module(line).as_deref(), name, "{line}");
        }
    }
}
