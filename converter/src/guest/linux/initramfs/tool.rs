//! The guest's own tool, and the commands that make and list an initramfs with it.
//!
//! Arguments come from the guest's file names: only plain ones are ever put into a command.
use crate::guest::model::{Family, Kernel};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    InitramfsTools,
    Dracut,
    Mkinitcpio,
    /// Alpine's.
    Mkinitfs,
    /// SLES 11 and earlier.
    MkinitrdSuse,
    /// RHEL 5 and earlier.
    MkinitrdRedhat,
}

/// The programs that give a tool away; where two are installed, the one above.
const PROGRAMS: [(Tool, &[&str]); 5] = [
    (
        Tool::InitramfsTools,
        &["/usr/sbin/mkinitramfs", "/sbin/mkinitramfs"],
    ),
    (
        Tool::Mkinitcpio,
        &["/usr/bin/mkinitcpio", "/sbin/mkinitcpio"],
    ),
    (
        Tool::Dracut,
        &["/usr/bin/dracut", "/usr/sbin/dracut", "/sbin/dracut"],
    ),
    (Tool::Mkinitfs, &["/sbin/mkinitfs", "/usr/sbin/mkinitfs"]),
    (
        Tool::MkinitrdSuse,
        &["/sbin/mkinitrd", "/usr/sbin/mkinitrd"],
    ),
];

/// `exists` tells whether a program is in the guest.
pub fn detect<E>(
    family: Family,
    mut exists: impl FnMut(&str) -> Result<bool, E>,
) -> Result<Option<Tool>, E> {
    for (tool, programs) in PROGRAMS {
        for program in programs {
            if exists(program)? {
                let is_redhat = tool == Tool::MkinitrdSuse && family == Family::Redhat;
                return Ok(Some(if is_redhat {
                    Tool::MkinitrdRedhat
                } else {
                    tool
                }));
            }
        }
    }
    Ok(None)
}

/// A release or a path that can stand in a command.
pub fn is_plain(text: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "/._+~-".contains(c);
    (1..=200).contains(&text.len())
        && text.chars().all(is_allowed)
        && !text.starts_with('-')
        && !text.split('/').any(|part| part == "..")
}

/// The commands that make and list a kernel's initramfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commands {
    pub build: Vec<String>,
    /// Prints one file a line; `listing::drivers` reads it.
    pub list: Vec<String>,
}

/// None where a name in `kernel` is not one to give to a command.
pub fn commands(tool: Tool, kernel: &Kernel, drivers: &[&str]) -> Option<Commands> {
    let image = kernel.initramfs.as_deref()?;
    let release = kernel.version.as_str();
    let is_name = is_plain(release) && !release.contains('/');
    if !is_name || !is_plain(image) || !is_plain(&kernel.image) {
        return None;
    }
    let added = drivers.join(" ");
    let with: Vec<String> = drivers
        .iter()
        .map(|driver| format!("--with={driver}"))
        .collect();
    let build: Vec<&str> = match tool {
        // update-initramfs knows the one in /boot alone.
        Tool::InitramfsTools if image != format!("/boot/initrd.img-{release}") => {
            vec!["mkinitramfs", "-o", image, release]
        }
        Tool::InitramfsTools => vec!["update-initramfs", "-u", "-k", release],
        Tool::Dracut => vec!["dracut", "--force", "--add-drivers", &added, image, release],
        // What autodetect would find is the machine that repairs.
        Tool::Mkinitcpio => vec!["mkinitcpio", "-k", release, "-g", image, "-S", "autodetect"],
        Tool::Mkinitfs => vec!["mkinitfs", "-o", image, release],
        Tool::MkinitrdSuse => {
            vec![
                "mkinitrd",
                "-k",
                file_name(&kernel.image),
                "-i",
                file_name(image),
            ]
        }
        Tool::MkinitrdRedhat => {
            let mut build = vec!["mkinitrd", "-f"];
            build.extend(with.iter().map(String::as_str));
            build.extend([image, release]);
            build
        }
    };
    let list: Vec<&str> = match tool {
        Tool::InitramfsTools => vec!["lsinitramfs", image],
        Tool::Dracut => vec!["lsinitrd", image],
        Tool::Mkinitcpio => vec!["lsinitcpio", image],
        Tool::Mkinitfs | Tool::MkinitrdSuse | Tool::MkinitrdRedhat => {
            vec!["sh", "-c", "gzip -dc < \"$1\" | cpio -t", "sh", image]
        }
    };
    let owned = |words: Vec<&str>| words.into_iter().map(str::to_owned).collect();
    Some(Commands {
        build: owned(build),
        list: owned(list),
    })
}

fn file_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}
