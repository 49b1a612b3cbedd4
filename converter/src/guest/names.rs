//! Device names: the appliance's, and the guest's own.

/// What the guest calls a device of the appliance: a logical volume by its mapper name, the device
/// of a btrfs subvolume, anything else as it is (both count SCSI disks from `sda`).
pub fn guest_name(device: &str) -> String {
    if let Some(volume) = device.strip_prefix("btrfsvol:") {
        // A partition has one name below /dev, a logical volume has two.
        let is_plain = ["sd", "vd", "hd", "xvd", "nvme", "md"].iter().any(|kind| {
            let name = volume.strip_prefix("/dev/").unwrap_or_default();
            name.strip_prefix(kind)
                .is_some_and(|rest| !rest.starts_with('/'))
        });
        let end = volume
            .match_indices('/')
            .nth(if is_plain { 2 } else { 3 })
            .map_or(volume.len(), |(at, _)| at);
        return guest_name(volume.get(..end).unwrap_or(volume));
    }
    let path = device
        .strip_prefix("/dev/")
        .and_then(|rest| rest.split_once('/'));
    match path {
        Some((group, volume)) if !["mapper", "md", "disk"].contains(&group) => {
            let double = |name: &str| name.replace('-', "--");
            format!("/dev/mapper/{}-{}", double(group), double(volume))
        }
        _ => device.to_owned(),
    }
}

/// blkid(8) writes what is not printable as `\xHH`.
pub fn unescape(value: &str) -> String {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find("\\x") {
        let (before, from) = rest.split_at(at);
        bytes.extend_from_slice(before.as_bytes());
        let digits = from
            .get(2..4)
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (digits, from.get(4..)) {
            (Some(byte), Some(after)) => {
                bytes.push(byte);
                rest = after;
            }
            _ => {
                bytes.extend_from_slice(b"\\x");
                rest = from.get(2..).unwrap_or_default();
            }
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_has_its_own_names() {
        for (device, name) in [
            ("/dev/sda1", "/dev/sda1"),
            ("/dev/vg/root", "/dev/mapper/vg-root"),
            ("/dev/my-vg/a-b", "/dev/mapper/my--vg-a--b"),
            ("/dev/mapper/luks0", "/dev/mapper/luks0"),
            ("btrfsvol:/dev/sda2/@", "/dev/sda2"),
            ("btrfsvol:/dev/vg/root/@/x", "/dev/mapper/vg-root"),
            ("btrfsvol:/dev/sda2", "/dev/sda2"),
        ] {
            assert_eq!(guest_name(device), name, "{device}");
        }
    }

    #[test]
    fn escapes_are_undone() {
        assert_eq!(unescape("EFI\\x20System"), "EFI System");
        assert_eq!(unescape("a\\xzz\\x"), "a\\xzz\\x");
    }
}
