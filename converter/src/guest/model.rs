//! What is known of a guest, and what is changed in it: the words that inspection, the repairs and
//! the report share. Data only.
//!
//! Device names are the guest's own (`/dev/sda1` where it says so), never the appliance's; paths
//! are absolute in the guest.
use queue::job::{Finding, GuestCode};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Guest {
    pub os: Os,
    /// The device its root file system is on, e.g. `/dev/sda1` or `/dev/vg/root`.
    pub root: String,
    /// Further roots that were found and not chosen.
    pub other_roots: Vec<String>,
    /// Encrypted devices that no key given opens.
    pub locked: Vec<String>,
    pub firmware: Firmware,
    pub boot_loader: BootLoader,
    /// Every block device with a file system, swap, LVM or RAID member on it.
    pub devices: Vec<BlockDevice>,
    /// Installed kernels, newest last.
    pub kernels: Vec<Kernel>,
    /// The machine's network cards.
    pub nics: Vec<Nic>,
    /// Network interfaces as the guest's files configure them.
    pub interfaces: Vec<Interface>,
    /// Hypervisors' agents that are installed, by package or unit name.
    pub agents: Vec<String>,
    pub selinux: Selinux,
}

impl Guest {
    /// What its owner should know, although there is a recipe.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut tell = |code, text| findings.push(Finding { code, text });
        if !self.other_roots.is_empty() {
            let (root, others) = (&self.root, self.other_roots.join(", "));
            let text = format!("{root} was chosen; there is a system on {others}, too");
            tell(GuestCode::SeveralRoots, text);
        }
        for device in &self.locked {
            let text = format!("{device} is encrypted, and no key given opens it");
            tell(GuestCode::Locked, text);
        }
        findings
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Os {
    /// `ID` of os-release, or what stands for it: `debian`, `rhel`, `sles`, `windows` …
    pub distro: String,
    pub family: Family,
    pub name: String,
    /// `VERSION_ID`: `12`, `9.4`, `22.04`; empty for rolling releases.
    pub version: String,
    pub major: u32,
    pub arch: String,
    pub hostname: Option<String>,
}

/// Whose ways of doing things a distribution follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Debian, Ubuntu and what derives from them.
    Debian,
    /// RHEL, Fedora, Rocky, Alma, Oracle, Amazon Linux.
    Redhat,
    /// SLES and openSUSE.
    Suse,
    Arch,
    Alpine,
    Windows,
    #[default]
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    #[default]
    Bios,
    Uefi,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BootLoader {
    Grub2,
    GrubLegacy,
    SystemdBoot,
    Extlinux,
    #[default]
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Selinux {
    #[default]
    Absent,
    Disabled,
    Permissive,
    Enforcing,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockDevice {
    /// As the guest names it on the machine it comes from: `/dev/sda1`, `/dev/mapper/vg-root`.
    pub name: String,
    pub uuid: Option<String>,
    pub label: Option<String>,
    pub partuuid: Option<String>,
    pub partlabel: Option<String>,
    /// As blkid(8) says: `ext4`, `vfat`, `swap`, `crypto_LUKS`, `LVM2_member` …
    pub fs_type: String,
    /// Where the guest mounts it, if it does.
    pub mountpoint: Option<String>,
    pub size_bytes: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kernel {
    /// As `uname -r` says, the name of its directory in /lib/modules.
    pub version: String,
    pub image: String,
    pub initramfs: Option<String>,
    pub modules: String,
    /// Which of the drivers of interest the initramfs holds, or the kernel has built in.
    pub drivers: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct Nic {
    /// Lower case, with colons.
    pub mac: Option<String>,
    /// The interface's name in the guest, e.g. `ens192`, where that is certain.
    pub name: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    pub name: Option<String>,
    /// The card's, as the files say.
    pub mac: Option<String>,
    /// As they are written, with or without a prefix length; `dhcp` for those.
    pub addresses: Vec<String>,
    /// The files that configure it.
    pub files: Vec<String>,
}

/// What stands at a path of the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Entry {
    #[default]
    Nothing,
    File(Vec<u8>),
    /// A symbolic link and what it says.
    Link(String),
}

/// One path as it was and as it shall be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileChange {
    pub path: String,
    /// One line for the report: why.
    pub reason: String,
    pub before: Entry,
    pub after: Entry,
}
