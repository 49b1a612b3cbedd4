//! Other hypervisors' agents, by the names of their services: what starts them is taken away,
//! offline. Their packages stay; each is removed with the guest's own tools when somebody wants to.

/// An agent and the services that it comes as, for systemd (without suffix), init.d and OpenRC.
pub struct Agent {
    pub name: &'static str,
    pub services: &'static [&'static str],
}

pub const AGENTS: [Agent; 8] = [
    Agent {
        name: "VMware Tools",
        services: &[
            "open-vm-tools",
            "vmtoolsd",
            "vmware-tools",
            "vmware-tools-thinprint",
            "vmware-tools-services",
            "vgauth",
            "vgauthd",
            "run-vmblock-fuse",
            "run-vmblock\\x2dfuse",
            "vmware-vmblock-fuse",
            "vmware-vmblock",
        ],
    },
    Agent {
        name: "VirtualBox Guest Additions",
        services: &[
            "vboxadd",
            "vboxadd-service",
            "vboxadd-x11",
            "vboxservice",
            "virtualbox-guest-utils",
            "virtualbox-guest-additions",
        ],
    },
    Agent {
        name: "Hyper-V daemons",
        services: &[
            "hypervkvpd",
            "hypervvssd",
            "hypervfcopyd",
            "hv-kvp-daemon",
            "hv-vss-daemon",
            "hv-fcopy-daemon",
            "hv_kvp_daemon",
            "hv_vss_daemon",
            "hv_fcopy_daemon",
        ],
    },
    Agent {
        name: "Azure agent",
        services: &["waagent", "walinuxagent", "walinuxagent-network-setup"],
    },
    Agent {
        name: "Xen guest agent",
        services: &[
            "xe-daemon",
            "xe-linux-distribution",
            "xe-guest-utilities",
            "xen-guest-agent",
        ],
    },
    Agent {
        name: "Google guest agent",
        services: &[
            "google-guest-agent",
            "google-osconfig-agent",
            "google-startup-scripts",
            "google-shutdown-scripts",
        ],
    },
    Agent {
        name: "Parallels Tools",
        services: &["prltoolsd", "prltools"],
    },
    Agent {
        name: "Nutanix Guest Tools",
        services: &["ngt_guest_agent", "ngt_self_service_restore"],
    },
];

/// The unit files of QEMU's own agent, by distribution.
pub const QEMU_UNIT: &str = "qemu-guest-agent.service";

/// The agent behind a service's name, which may end in a unit's suffix.
pub fn known(service: &str) -> Option<&'static Agent> {
    let suffixes = [".service", ".mount", ".timer", ".target"];
    let stem = suffixes
        .iter()
        .find_map(|suffix| service.strip_suffix(suffix));
    let stem = stem.unwrap_or(service);
    AGENTS.iter().find(|agent| agent.services.contains(&stem))
}

/// The service that a start link in rcN.d stands for: `S20vmware-tools`.
pub fn started_by(link: &str) -> Option<&str> {
    let rest = link.strip_prefix('S')?;
    let digits = rest.find(|c: char| !c.is_ascii_digit())?;
    (digits == 2).then(|| rest.get(digits..))?
}

/// The targets or devices that a unit's [Install] section wants to be started by, as the folders
/// beside which its links lie: `multi-user.target.wants`.
pub fn wanted_by(unit: &[u8]) -> Vec<String> {
    let text = super::edit::decode(unit);
    let mut is_install = false;
    let mut folders = Vec::new();
    for line in text.lines() {
        let line = line.trim_ascii();
        if line.starts_with('[') {
            is_install = line == "[Install]";
        }
        let wanted = line.strip_prefix("WantedBy=").filter(|_| is_install);
        for target in wanted.unwrap_or_default().split_ascii_whitespace() {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.@\\".contains(c);
            let folder = format!("{target}.wants");
            let is_unit = target.contains('.') && target.chars().all(is_plain);
            if is_unit && target.len() < 100 && !folders.contains(&folder) {
                folders.push(folder);
            }
        }
    }
    folders.truncate(8);
    folders
}
