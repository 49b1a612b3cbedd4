//! The configuration of the guest's initramfs tools, so that later kernels get the drivers too.
use super::listing::WANTED;
use crate::guest::linux::edit::{Edit, Fate, Splice, decode, quote, refusal, revise, splice};
use crate::guest::linux::shell::{Quotes, assignments};
use crate::guest::linux::storage::devices::{Devices, FILE_SYSTEM, Kind, Spelling, kind};

pub const DRACUT_PATH: &str = "/etc/dracut.conf.d/90-hyper2kvm.conf";

/// Our file in dracut.conf.d; dracut reads over a driver that a kernel lacks.
pub fn dracut() -> Vec<u8> {
    let drivers = WANTED.join(" ");
    format!("# Drivers of KVM's virtual hardware.\nadd_drivers+=\" {drivers} \"\n").into_bytes()
}

/// Takes the wanted drivers out of `omit_drivers` in a guest's dracut configuration.
pub fn dracut_omissions(config: &[u8]) -> Edit {
    splice(config, |text| {
        let all = assignments(text);
        let omitting = all.iter().filter(|found| found.key == "omit_drivers");
        let changed = omitting.filter_map(|found| {
            let words = found.value.split_ascii_whitespace();
            let kept: Vec<&str> = words.filter(|word| !names_wanted(word)).collect();
            if kept.len() == found.value.split_ascii_whitespace().count() {
                return None;
            }
            let reason = "the virtio drivers are needed".to_owned();
            Some(found.set(&format!(" {} ", kept.join(" ")), vec![reason]))
        });
        changed.collect()
    })
}

/// /etc/initramfs-tools/modules: one a line.
pub fn initramfs_tools_modules(modules: &[u8]) -> Edit {
    let edit = Edit::unchanged(modules);
    if refusal(modules).is_some() {
        return edit;
    }
    let text = decode(modules);
    let listed: Vec<String> = text
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().next())
        .map(normal)
        .collect();
    let missing: Vec<&str> = WANTED
        .into_iter()
        .filter(|driver| !listed.iter().any(|name| name == driver))
        .collect();
    if missing.is_empty() {
        return edit;
    }
    edit.append(&missing, "the drivers of KVM's virtual hardware")
}

/// /etc/initramfs-tools/initramfs.conf and conf.d: `dep` looks at the machine that it runs on.
pub fn initramfs_tools_policy(config: &[u8]) -> Edit {
    splice(config, |text| {
        let all = assignments(text);
        let policy = all
            .iter()
            .filter(|found| found.key == "MODULES" && found.value == "dep");
        let reason = "`dep` would take the drivers of the machine that repairs";
        policy
            .map(|found| found.set("most", vec![reason.to_owned()]))
            .collect()
    })
}

/// /etc/initramfs-tools/conf.d/resume.
pub fn resume(config: &[u8], devices: &Devices<'_>) -> Edit {
    splice(config, |text| {
        let all = assignments(text);
        let named = all.iter().filter(|found| {
            let is_unstable = matches!(kind(found.value), Kind::ByPath | Kind::Unstable);
            found.key == "RESUME" && is_unstable
        });
        let renamed = named.map(|found| {
            let name = quote(found.value);
            let new = devices.find(found.value, Some("swap")).and_then(|device| {
                let new = devices.name(device, FILE_SYSTEM, Spelling::Tag);
                new.ok_or_else(|| "its swap has no UUID".to_owned())
            });
            match new {
                Ok(new) => found.set(&new, vec![format!("{name} is {new} on any hardware")]),
                Err(why) => Splice {
                    skipped: vec![format!("{name} stays: {why}")],
                    ..found.set(found.value, Vec::new())
                },
            }
        });
        renamed.collect()
    })
}

/// mkinitcpio.conf's `MODULES`, SUSE's `INITRD_MODULES`, Alpine's `features`: the last assignment
/// of `key` gets the words it lacks.
pub fn add_words(config: &[u8], key: &str, words: &[&str]) -> Edit {
    let edit = splice(config, |text| {
        let all = assignments(text);
        let Some(found) = all.iter().rev().find(|found| found.key == key) else {
            return Vec::new();
        };
        let held: Vec<String> = found.value.split_ascii_whitespace().map(normal).collect();
        let missing = words
            .iter()
            .filter(|word| !held.iter().any(|held| held == *word));
        let missing: Vec<&str> = missing.copied().collect();
        if missing.is_empty() {
            return Vec::new();
        }
        let reason = "the drivers of KVM's virtual hardware".to_owned();
        let held = found.value.trim_ascii_end();
        let space = if held.is_empty() { "" } else { " " };
        vec![found.set(&format!("{held}{space}{}", missing.join(" ")), vec![reason])]
    });
    let text = decode(config);
    let is_set = assignments(&text).iter().any(|found| found.key == key);
    if is_set || refusal(config).is_some() {
        return edit;
    }
    let line = format!("{key}=\"{}\"", words.join(" "));
    edit.append(&[&line], "the drivers of KVM's virtual hardware")
}

/// /etc/modprobe.conf of RHEL 5, whose mkinitrd takes the disk's driver from there.
pub fn modprobe_adapters(config: &[u8]) -> Edit {
    revise(config, |line, notes| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let new = match words.as_slice() {
            ["alias", name, driver] if is_adapter(name) && is_foreign_disk(driver) => {
                format!("alias {name} virtio_blk")
            }
            ["alias", name, driver] if name.starts_with("eth") && is_foreign_card(driver) => {
                format!("alias {name} virtio_net")
            }
            _ => return Fate::Keep,
        };
        notes.change(format!("{} is for hardware that is gone", quote(line)));
        Fate::Replace(new)
    })
}

fn is_adapter(name: &str) -> bool {
    name.starts_with("scsi_hostadapter")
}

fn is_foreign_disk(driver: &str) -> bool {
    let known = [
        "mptspi",
        "mptbase",
        "mptscsih",
        "mptsas",
        "BusLogic",
        "buslogic",
        "vmw_pvscsi",
    ];
    known.contains(&driver) || matches!(driver, "pvscsi" | "xenblk" | "xen_blkfront" | "hv_storvsc")
}

fn is_foreign_card(driver: &str) -> bool {
    matches!(
        driver,
        "vmxnet" | "vmxnet2" | "vmxnet3" | "pcnet32" | "xennet" | "xen_netfront"
    )
}

fn normal(word: &str) -> String {
    word.replace('-', "_")
}

/// dracut's are regular expressions, with or without `.ko`.
fn names_wanted(word: &str) -> bool {
    let word = normal(
        word.trim_matches(['^', '$', '*', '.'])
            .trim_end_matches(".ko"),
    );
    WANTED.contains(&word.as_str()) || matches!(word.as_str(), "virtio" | "virtio_ring")
}

/// Whether a later kernel's initramfs would need a closer look: unquoted arrays are bash's alone.
pub fn is_array(config: &[u8], key: &str) -> bool {
    let text = decode(config);
    let all = assignments(&text);
    all.iter()
        .any(|found| found.key == key && found.quotes == Quotes::Array)
}
