//! LVM's notes of where its physical volumes are: /etc/lvm/devices/system.devices, and the filters
//! of /etc/lvm/lvm.conf. With either naming the old disks, volumes are not found on the new ones.
use crate::guest::linux::edit::{Edit, Fate, decode, refusal, revise};

/// The devices file that RHEL 9 and its kin keep; without it LVM looks at every disk.
pub const DEVICES_FILE: &str = "/etc/lvm/devices/system.devices";

/// Whether a devices file knows its volumes by the old disks' names or serial numbers.
pub fn is_stale(devices: &[u8]) -> bool {
    if refusal(devices).is_some() {
        return false;
    }
    let text = decode(devices);
    let mut entries = text.lines().filter(|line| line.starts_with("IDTYPE="));
    entries.any(|line| {
        let identity = line.split_ascii_whitespace().next().unwrap_or_default();
        let by_contents = ["mpath_uuid", "crypt_uuid", "md_uuid", "lvmlv_uuid"];
        let identity = identity.strip_prefix("IDTYPE=").unwrap_or_default();
        !by_contents.contains(&identity)
    })
}

/// Comments out filters that name disks by what changes; LVM's default is to look everywhere.
pub fn revise_filters(config: &[u8]) -> Edit {
    revise(config, |line, notes| {
        let Some((key, value)) = line.split_once('=') else {
            return Fate::Keep;
        };
        let is_filter = matches!(key.trim_ascii(), "filter" | "global_filter");
        let value = value.trim_ascii();
        let is_whole = value.starts_with('[') && value.ends_with(']');
        if !is_filter || !is_whole || !names_disks(value) {
            return Fate::Keep;
        }
        notes.change("the filter knows the old disks only");
        Fate::Replace(format!("# {line}"))
    })
}

/// Whether a regular expression of the filter is about disks by name: `a|^/dev/sd[ab]|`.
fn names_disks(filter: &str) -> bool {
    let mut accepted = filter
        .split(['"', '\''])
        .filter(|piece| piece.starts_with('a'));
    accepted.any(|piece| {
        let names = piece.split(['|', '/', '^', '$']).any(|part| {
            let letters: String = part.chars().take_while(char::is_ascii_alphabetic).collect();
            let prefixes = ["sd", "hd", "xvd", "nvme", "cciss"];
            prefixes.iter().any(|prefix| letters.starts_with(prefix))
        });
        let linked = ["by-id", "by-path"]
            .iter()
            .any(|folder| piece.contains(folder));
        names || linked
    })
}
