//! Kernel modules: leftovers of other hypervisors in modules-load.d and /etc/modules, and whatever
//! in modprobe.d keeps virtio's drivers from being loaded.
use super::edit::{Edit, Fate, quote, revise};
use super::initramfs::listing::WANTED;

/// Drivers that find nothing under KVM: loading them fails, and systemd-modules-load with them.
const FOREIGN: [&str; 30] = [
    "vmxnet",
    "vmxnet2",
    "vmxnet3",
    "vmhgfs",
    "vmblock",
    "vmci",
    "vmmemctl",
    "vmsync",
    "vsock",
    "vmw_balloon",
    "vmw_pvscsi",
    "vmw_vmci",
    "vmw_vsock_vmci_transport",
    "vmwgfx",
    "pvscsi",
    "vboxguest",
    "vboxsf",
    "vboxvideo",
    "hv_vmbus",
    "hv_storvsc",
    "hv_netvsc",
    "hv_utils",
    "hv_balloon",
    "hyperv_fb",
    "xen_blkfront",
    "xen_netfront",
    "xenblk",
    "xennet",
    "prl_tg",
    "prl_eth",
];

/// /etc/modules and modules-load.d: one name a line.
pub fn revise_loads(modules: &[u8]) -> Edit {
    revise(modules, |line, notes| {
        let name = line.split_ascii_whitespace().next().unwrap_or_default();
        if !FOREIGN.contains(&name.replace('-', "_").as_str()) {
            return Fate::Keep;
        }
        notes.change(format!("{} drives hardware that is gone", quote(name)));
        Fate::Drop
    })
}

/// modprobe.d: what blacklists a virtio driver, or installs nothing in its place, is commented out.
pub fn revise_modprobe(config: &[u8]) -> Edit {
    revise(config, |line, notes| {
        let mut words = line.split_ascii_whitespace();
        let verb = words.next().unwrap_or_default();
        let name = words.next().unwrap_or_default().replace('-', "_");
        let is_virtio = WANTED.contains(&name.as_str()) || matches!(name.as_str(), "virtio");
        let is_ban = match verb {
            "blacklist" => true,
            "install" => words.next().is_some_and(|command| {
                let names = ["/bin/true", "/bin/false", "/usr/bin/true", "/usr/bin/false"];
                names.contains(&command)
            }),
            _ => false,
        };
        if !is_virtio || !is_ban {
            return Fate::Keep;
        }
        notes.change(format!("{name} is needed"));
        Fate::Replace(format!("# {line}"))
    })
}
