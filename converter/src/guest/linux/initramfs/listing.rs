//! Which drivers an initramfs or a kernel has, from what the guest's tools and files say.
use std::collections::BTreeSet;

use crate::guest::linux::edit::{MAX_FILE_BYTES, decode};

/// What a guest needs to find its disks and its network under KVM.
pub const WANTED: [&str; 4] = ["virtio_blk", "virtio_scsi", "virtio_net", "virtio_pci"];

/// The modules in a listing: of an initramfs by any of the tools, of modules.dep, or of
/// modules.builtin. Dashes are underscores, as in /proc/modules.
pub fn modules(listing: &[u8]) -> BTreeSet<String> {
    let listing = listing.get(..MAX_FILE_BYTES).unwrap_or(listing);
    let text = decode(listing);
    text.lines().filter_map(module_of).collect()
}

fn module_of(line: &str) -> Option<String> {
    // `ls -l` of a symbolic link; modules.dep's dependencies.
    let line = line.split(" -> ").next().unwrap_or(line);
    let line = line
        .split(": ")
        .next()
        .unwrap_or(line)
        .trim_ascii()
        .trim_end_matches(':');
    let name = line.rsplit([' ', '/']).next()?;
    let packed = [".gz", ".xz", ".zst", ".bz2"];
    let name = packed
        .iter()
        .find_map(|end| name.strip_suffix(end))
        .unwrap_or(name);
    let name = name.strip_suffix(".ko")?;
    (name.len() < 64).then(|| name.replace('-', "_"))
}

/// What is built into a kernel and what it has as modules.
#[derive(Debug, Clone, Default)]
pub struct Supply {
    pub builtin: BTreeSet<String>,
    /// `None`: not known, so everything is taken to be there.
    pub loadable: Option<BTreeSet<String>>,
}

impl Supply {
    pub fn new(builtin: Option<&[u8]>, dependencies: Option<&[u8]>) -> Self {
        Self {
            builtin: builtin.map(modules).unwrap_or_default(),
            loadable: dependencies.map(modules),
        }
    }

    /// The wanted drivers that have to be in the initramfs.
    pub fn loadable(&self) -> Vec<&'static str> {
        let is_module = |driver: &&str| {
            let all = self.loadable.as_ref();
            !self.builtin.contains(*driver) && all.is_none_or(|all| all.contains(*driver))
        };
        WANTED.into_iter().filter(is_module).collect()
    }

    /// Whether this kernel can use a virtio disk at all.
    pub fn has_virtio_disk(&self) -> bool {
        let has = |driver: &str| {
            let all = self.loadable.as_ref();
            self.builtin.contains(driver) || all.is_none_or(|all| all.contains(driver))
        };
        has("virtio_pci") && (has("virtio_blk") || has("virtio_scsi"))
    }

    /// What of it is missing in an initramfs with these modules.
    pub fn missing<'a>(&self, held: impl IntoIterator<Item = &'a str>) -> Vec<&'static str> {
        let held: BTreeSet<&str> = held.into_iter().collect();
        let mut missing = self.loadable();
        missing.retain(|driver| !held.contains(driver));
        missing
    }
}
