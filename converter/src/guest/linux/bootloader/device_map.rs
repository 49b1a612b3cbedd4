//! GRUB's device.map: which BIOS drive is which device node.
use crate::guest::linux::edit::{decode, refusal};
use crate::guest::linux::storage::devices::{Kind, kind};

/// Whether the map names disks of the old hardware: GRUB's tools then refuse every one that they
/// meet. Without the file they look for themselves.
pub fn is_stale(map: &[u8]) -> bool {
    if refusal(map).is_some() {
        return false;
    }
    decode(map).lines().any(|line| {
        let mut words = line.split_ascii_whitespace();
        let drive = words.next().unwrap_or_default();
        let name = words.next().unwrap_or_default();
        drive.starts_with("(hd") && matches!(kind(name), Kind::Unstable | Kind::ByPath)
    })
}
