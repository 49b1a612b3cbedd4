//! Inspection: what the guest is, by the appliance's own inspection and the files beneath its root.
//!
//! Leaves the guest's file systems mounted. The choice among several roots is by name, Linux first;
//! the others are told.
use std::collections::BTreeMap;

use queue::job::{Finding, GuestCode};

use super::Case;
use super::appliance::{Appliance, guest};
use super::kernels;
use super::model::{BlockDevice, BootLoader, Family, Firmware, Guest, Nic, Os, Selinux};
use super::names::{guest_name, unescape};
use crate::error::Result;

/// What inspection came to.
pub enum Found {
    /// A system, its file systems mounted.
    System(Box<Guest>),
    /// None that there is a recipe for.
    Nothing(Finding),
}

/// Programs and directories that tell a hypervisor's agent.
const AGENTS: [(&str, &str); 10] = [
    ("open-vm-tools", "/usr/bin/vmtoolsd"),
    ("vmware-tools", "/etc/vmware-tools/installer.sh"),
    ("virtualbox-guest-utils", "/usr/sbin/VBoxService"),
    ("virtualbox-guest-utils", "/usr/bin/VBoxService"),
    ("xe-guest-utilities", "/usr/sbin/xe-daemon"),
    ("hyperv-daemons", "/usr/sbin/hv_kvp_daemon"),
    ("hyperv-daemons", "/usr/sbin/hypervkvpd"),
    ("walinuxagent", "/usr/sbin/waagent"),
    ("qemu-guest-agent", "/usr/sbin/qemu-ga"),
    ("qemu-guest-agent", "/usr/bin/qemu-ga"),
];

/// Opens what is locked, finds the system, mounts it, and looks at it.
pub fn inspect(appliance: &mut Appliance<'_>, case: &Case<'_>, read_only: bool) -> Result<Found> {
    let Encrypted { all, locked } = unlock(appliance, case.keys)?;
    let mut roots = appliance.list("inspect_os", &[])?;
    roots.sort_unstable();
    let mut linux = Vec::new();
    let mut others = Vec::new();
    for root in roots {
        let kind = appliance.text("inspect_get_type", &[&root])?;
        if kind == "linux" {
            linux.push(root);
        } else {
            others.push((root, kind));
        }
    }
    let Some(root) = linux.first().cloned() else {
        return Ok(nothing(&others, &locked));
    };
    let mountpoints = mount(appliance, &root, read_only)?;
    let mut guest = Guest {
        os: identify(appliance, &root)?,
        root: guest_name(&root),
        locked,
        other_roots: linux.iter().skip(1).map(|root| guest_name(root)).collect(),
        ..Guest::default()
    };
    let others = others.into_iter();
    guest
        .other_roots
        .extend(others.map(|(root, kind)| format!("{} ({kind})", guest_name(&root))));
    guest.devices = devices(appliance, &all, &mountpoints)?;
    guest.kernels = kernels::list(appliance)?;
    guest.boot_loader = boot_loader(appliance)?;
    guest.firmware = match case.firmware {
        Some(firmware) => firmware,
        None => guess_firmware(appliance)?,
    };
    for (name, path) in AGENTS {
        if appliance.flag("exists", &[path])? && !guest.agents.iter().any(|known| known == name) {
            guest.agents.push(name.to_owned());
        }
    }
    let card = |mac: &String| Nic {
        mac: Some(mac.clone()),
        name: None,
    };
    guest.nics = case.macs.iter().map(card).collect();
    guest.selinux = selinux(&read_text(appliance, "/etc/selinux/config")?);
    Ok(Found::System(Box::new(guest)))
}

fn nothing(others: &[(String, String)], locked: &[String]) -> Found {
    let (code, text) = if let Some((root, kind)) = others.first() {
        let text = format!("there is no recipe for the {kind} on {}", guest_name(root));
        (GuestCode::UnsupportedGuest, text)
    } else if let Some(device) = locked.first() {
        let text = format!("{device} is encrypted, and no key given opens it");
        (GuestCode::Locked, text)
    } else {
        let text = "no operating system was found on its disks".to_owned();
        (GuestCode::NoSystem, text)
    };
    Found::Nothing(Finding { code, text })
}

/// LUKS devices: those of the appliance, and what the guest calls those that stay locked.
#[derive(Default)]
struct Encrypted {
    all: Vec<String>,
    locked: Vec<String>,
}

/// Opens every LUKS device with the first key that fits. The library lists none of them among its
/// file systems.
fn unlock(appliance: &mut Appliance<'_>, keys: &[Vec<u8>]) -> Result<Encrypted> {
    let mut encrypted = Encrypted::default();
    for call in ["list_devices", "list_partitions", "list_md_devices", "lvs"] {
        for device in appliance.list(call, &[])? {
            if appliance.text("vfs_type", &[&device])? == "crypto_LUKS" {
                encrypted.all.push(device);
            }
        }
    }
    for (number, device) in encrypted.all.iter().enumerate() {
        let name = format!("luks{number}");
        let mut keys = keys.iter().flat_map(|key| spellings(key));
        if !keys.any(|key| opens(appliance, device, &name, key)) {
            encrypted.locked.push(guest_name(device));
        }
    }
    if encrypted.locked.len() < encrypted.all.len() {
        appliance.scan_lvm()?;
    }
    Ok(encrypted)
}

/// Whether the key opens the volume. What fails for another reason than the key may not fail again.
fn opens(appliance: &mut Appliance<'_>, device: &str, name: &str, key: &[u8]) -> bool {
    for _ in 0..2 {
        match appliance.open_luks(device, name, key) {
            Ok(is_open) => return is_open,
            Err(error) => tracing::warn!("not opened: {}", error.to_line()),
        }
    }
    false
}

/// A key file's contents without the end of their line, and as they are.
fn spellings(key: &[u8]) -> impl Iterator<Item = &[u8]> {
    let line = key.strip_suffix(b"\n");
    line.into_iter().chain([key])
}

/// Mounts what the guest mounts, shorter paths first; returns device to mountpoint.
fn mount(
    appliance: &mut Appliance<'_>,
    root: &str,
    read_only: bool,
) -> Result<BTreeMap<String, String>> {
    let mut points = appliance.pairs("inspect_get_mountpoints", &[root])?;
    points.sort_unstable_by_key(|(path, _)| path.len());
    let mut mounted = BTreeMap::new();
    let call = if read_only { "mount_ro" } else { "mount" };
    for (path, device) in points {
        // By a name of /etc/crypttab, the appliance does not know what it opened.
        let device = if path == "/" { root.to_owned() } else { device };
        match appliance.call(call, &[&device, &path]) {
            Ok(()) => {
                mounted.insert(device, path);
            }
            Err(error) if path == "/" => return Err(error),
            // A device that was left behind is not what keeps the guest from booting.
            Err(error) => tracing::warn!("not mounted: {}", error.to_line()),
        }
    }
    if mounted.is_empty() {
        return Err(guest(format!("{root} has no root to mount")));
    }
    Ok(mounted)
}

fn identify(appliance: &mut Appliance<'_>, root: &str) -> Result<Os> {
    let mut text = read_text(appliance, "/etc/os-release")?;
    if text.is_empty() {
        text = read_text(appliance, "/usr/lib/os-release")?;
    }
    let field = |key: &str| os_release_field(&text, key);
    let said = |appliance: &mut Appliance<'_>, call: &str| {
        let said = appliance.text(call, &[root]).ok();
        said.filter(|said| said != "unknown").unwrap_or_default()
    };
    let mut os = Os {
        distro: field("ID").unwrap_or_else(|| said(appliance, "inspect_get_distro")),
        name: os_release_name(&text).unwrap_or_else(|| said(appliance, "inspect_get_product_name")),
        version: field("VERSION_ID").unwrap_or_default(),
        arch: said(appliance, "inspect_get_arch"),
        hostname: Some(said(appliance, "inspect_get_hostname")).filter(|name| !name.is_empty()),
        ..Os::default()
    };
    let digits: String = os
        .version
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    os.major = digits.parse().unwrap_or_default();
    os.family = family(&os.distro, &field("ID_LIKE").unwrap_or_default());
    Ok(os)
}

/// What people call the system, also where a vendor left out the line that is for them.
fn os_release_name(text: &str) -> Option<String> {
    let field = |key| os_release_field(text, key);
    field("PRETTY_NAME").or_else(|| {
        let name = field("NAME").or_else(|| field("ID"))?;
        let version = field("VERSION").or_else(|| field("VERSION_ID"));
        Some(
            [Some(name), version]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join(" "),
        )
    })
}

/// os-release(5): `KEY=value`, quoted or not.
fn os_release_field(text: &str, key: &str) -> Option<String> {
    let value = |line: &str| {
        line.trim()
            .strip_prefix(key)?
            .strip_prefix('=')
            .map(str::to_owned)
    };
    let value = text.lines().find_map(value)?;
    let value = value.trim().trim_matches(['"', '\'']).to_owned();
    (!value.is_empty()).then_some(value)
}

fn family(distro: &str, like: &str) -> Family {
    for name in std::iter::once(distro).chain(like.split_whitespace()) {
        return match name {
            "debian" | "ubuntu" | "linuxmint" | "kali" | "raspbian" => Family::Debian,
            "rhel" | "fedora" | "centos" | "rocky" | "almalinux" | "ol" | "amzn" | "redhat"
            | "redhat-based" | "oraclelinux" | "scientificlinux" => Family::Redhat,
            "suse"
            | "sles"
            | "sles_sap"
            | "sled"
            | "opensuse"
            | "opensuse-leap"
            | "opensuse-tumbleweed"
            | "suse-based" => Family::Suse,
            "arch" | "archlinux" | "manjaro" => Family::Arch,
            "alpine" | "alpinelinux" => Family::Alpine,
            _ => continue,
        };
    }
    Family::Other
}

/// Every file system, swap, LVM or RAID member, under the guest's names.
fn devices(
    appliance: &mut Appliance<'_>,
    encrypted: &[String],
    mountpoints: &BTreeMap<String, String>,
) -> Result<Vec<BlockDevice>> {
    let mut names = appliance.list("list_partitions", &[])?;
    let listed = appliance.pairs("list_filesystems", &[])?.into_iter();
    let listed = listed.map(|(mountable, _)| mountable);
    for mountable in listed.chain(encrypted.iter().cloned()) {
        if mountable.starts_with('/') && !names.contains(&mountable) {
            names.push(mountable);
        }
    }
    let mut devices = Vec::new();
    for device in names {
        let tags: BTreeMap<_, _> = appliance.pairs("blkid", &[&device])?.into_iter().collect();
        let tag = |key: &str| tags.get(key).map(|value| unescape(value));
        let mounted = mountpoints.iter().find(|(mountable, _)| {
            let volume = mountable.strip_prefix("btrfsvol:");
            let of = volume.and_then(|rest| rest.strip_prefix(device.as_str()));
            **mountable == device || of.is_some_and(|rest| rest.starts_with('/'))
        });
        devices.push(BlockDevice {
            name: guest_name(&device),
            uuid: tag("UUID"),
            label: tag("LABEL"),
            partuuid: tag("PART_ENTRY_UUID"),
            partlabel: tag("PART_ENTRY_NAME"),
            fs_type: tag("TYPE").unwrap_or_default(),
            mountpoint: mounted.map(|(_, path)| path.clone()),
            size_bytes: appliance.size_bytes(&device)?,
        });
    }
    Ok(devices)
}

fn boot_loader(appliance: &mut Appliance<'_>) -> Result<BootLoader> {
    for (path, loader) in [
        ("/boot/grub2/grub.cfg", BootLoader::Grub2),
        ("/boot/grub/grub.cfg", BootLoader::Grub2),
        ("/boot/grub2/grubenv", BootLoader::Grub2),
        ("/boot/grub/menu.lst", BootLoader::GrubLegacy),
        ("/boot/grub/grub.conf", BootLoader::GrubLegacy),
        ("/boot/extlinux.conf", BootLoader::Extlinux),
        ("/boot/extlinux/extlinux.conf", BootLoader::Extlinux),
        ("/boot/syslinux/syslinux.cfg", BootLoader::Extlinux),
        ("/boot/loader/loader.conf", BootLoader::SystemdBoot),
        ("/boot/efi/loader/loader.conf", BootLoader::SystemdBoot),
        ("/efi/loader/loader.conf", BootLoader::SystemdBoot),
    ] {
        if appliance.flag("exists", &[path])? {
            return Ok(loader);
        }
    }
    Ok(BootLoader::Unknown)
}

/// UEFI if the guest keeps a boot loader on its EFI system partition.
fn guess_firmware(appliance: &mut Appliance<'_>) -> Result<Firmware> {
    for path in ["/boot/efi/EFI", "/boot/EFI", "/efi/EFI"] {
        if appliance.flag("is_dir", &[path])? {
            return Ok(Firmware::Uefi);
        }
    }
    Ok(Firmware::Bios)
}

fn selinux(config: &str) -> Selinux {
    if config.is_empty() {
        return Selinux::Absent;
    }
    let value = |line: &str| line.trim().strip_prefix("SELINUX=").map(str::to_owned);
    match config.lines().find_map(value).as_deref().map(str::trim) {
        Some("enforcing") => Selinux::Enforcing,
        Some("permissive") => Selinux::Permissive,
        _ => Selinux::Disabled,
    }
}

/// A small text file of the guest; empty if it is not there.
pub(super) fn read_text(appliance: &mut Appliance<'_>, path: &str) -> Result<String> {
    if !appliance.flag("exists", &[path])? {
        return Ok(String::new());
    }
    Ok(String::from_utf8_lossy(&appliance.read(path)?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_is_read_as_shipped() {
        let text = "PRETTY_NAME=\"Rocky Linux 9.4 (Blue Onyx)\"\nID=\"rocky\"\nVERSION_ID='9.4'\n\
                    ID_LIKE=\"rhel centos fedora\"\nVERSION=\n";
        assert_eq!(os_release_field(text, "ID").as_deref(), Some("rocky"));
        assert_eq!(os_release_field(text, "VERSION_ID").as_deref(), Some("9.4"));
        assert_eq!(os_release_field(text, "VERSION"), None);
        assert_eq!(family("rocky", "rhel centos fedora"), Family::Redhat);
        assert_eq!(family("neon", "ubuntu debian"), Family::Debian);
        assert_eq!(family("plan9", ""), Family::Other);
    }

    #[test]
    fn a_system_has_a_name_whatever_is_left_out() {
        for (text, name) in [
            ("PRETTY_NAME=\"A B\"\nNAME=C\n", Some("A B")),
            (
                "PRETTY_NAME=\"\"\nNAME=\"Own OS\"\nVERSION=\"7 (x)\"\nVERSION_ID=7\n",
                Some("Own OS 7 (x)"),
            ),
            ("ID=own\nVERSION_ID=7\n", Some("own 7")),
            ("NAME=Rolling\n", Some("Rolling")),
            ("", None),
        ] {
            assert_eq!(os_release_name(text).as_deref(), name, "{text:?}");
        }
    }

    #[test]
    fn selinux_says_its_mode() {
        assert_eq!(selinux(""), Selinux::Absent);
        assert_eq!(selinux("# x\nSELINUX=enforcing\n"), Selinux::Enforcing);
        assert_eq!(selinux("SELINUX=disabled\n"), Selinux::Disabled);
    }
}
