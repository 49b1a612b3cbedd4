//! The settings from which the guest's own tool writes its menu: /etc/default/grub and its folder,
//! SUSE's /etc/sysconfig/bootloader, Alpine's /etc/update-extlinux.conf.
use super::cmdline::{self, Console, Setting};
use crate::guest::linux::edit::{Edit, Splice, decode, splice};
use crate::guest::linux::shell::{Assignment, assignments};
use crate::guest::linux::storage::devices::Devices;

/// Variables that hold kernel command lines; the first is used for every entry.
const LINES: [&str; 10] = [
    "GRUB_CMDLINE_LINUX",
    "GRUB_CMDLINE_LINUX_DEFAULT",
    "GRUB_CMDLINE_LINUX_RECOVERY",
    "GRUB_CMDLINE_LINUX_XEN_REPLACE",
    "GRUB_CMDLINE_LINUX_XEN_REPLACE_DEFAULT",
    "DEFAULT_APPEND",
    "FAILSAFE_APPEND",
    "XEN_KERNEL_APPEND",
    "default_kernel_opts",
    "root",
];

/// The variables that take the console, in this order of preference.
const CONSOLES: [&str; 4] = [
    "GRUB_CMDLINE_LINUX",
    "GRUB_CMDLINE_LINUX_DEFAULT",
    "DEFAULT_APPEND",
    "default_kernel_opts",
];

/// Whether a command line in this file asks for the serial console.
pub fn has_serial_console(settings: &[u8]) -> bool {
    let text = decode(settings);
    let all = assignments(&text);
    all.iter()
        .any(|found| LINES.contains(&found.key) && found.value.contains("console=ttyS0"))
}

/// Revises a file of settings; `console`: add the serial console.
pub fn stabilise(settings: &[u8], devices: &Devices<'_>, console: bool) -> Edit {
    let mut is_added = !console;
    let edit = splice(settings, |text| {
        let all = assignments(text);
        let chosen = if console { console_line(&all) } else { None };
        is_added |= chosen.is_some();
        let mut splices = Vec::new();
        for (index, found) in all.iter().enumerate() {
            if found.key == "GRUB_DISABLE_LINUX_UUID" && found.value == "true" {
                let reason = "the menu names the root by its UUID".to_owned();
                splices.push(found.set("false", vec![reason]));
            } else if found.key == "root" {
                splices.push(revise_root(found, devices));
            } else if LINES.contains(&found.key) {
                let setting = Setting {
                    has_initramfs: true,
                    console: if chosen == Some(index) {
                        Console::Yes
                    } else {
                        Console::No
                    },
                };
                let revised = cmdline::revise(found.value, devices, setting);
                let mut splice = found.set(&revised.line, revised.reasons);
                splice.skipped = revised.skipped;
                splices.push(splice);
            }
        }
        splices
    });
    let is_grub = decode(settings).contains("GRUB_");
    if is_added || !is_grub || !edit.skipped.is_empty() && edit.text == settings {
        return edit;
    }
    let line = format!(
        "GRUB_CMDLINE_LINUX=\"{} {}\"",
        cmdline::SERIAL,
        cmdline::SCREEN
    );
    edit.append(&[&line], "a console on the first serial line")
}

/// The assignment that gets the console: the last with a console already, else the usual one.
fn console_line(all: &[Assignment<'_>]) -> Option<usize> {
    let last = |wanted: &dyn Fn(&Assignment<'_>) -> bool| {
        let mut found = all.iter().enumerate().rev();
        found
            .find(|(_, found)| wanted(found))
            .map(|(index, _)| index)
    };
    let with_console =
        |found: &Assignment<'_>| CONSOLES.contains(&found.key) && found.value.contains("console=");
    last(&with_console).or_else(|| {
        CONSOLES
            .iter()
            .find_map(|key| last(&|found: &Assignment<'_>| found.key == *key))
    })
}

/// Alpine's `root=` is the device itself.
fn revise_root(found: &Assignment<'_>, devices: &Devices<'_>) -> Splice {
    let setting = Setting {
        has_initramfs: true,
        console: Console::No,
    };
    let line = format!("root={}", found.value);
    let revised = cmdline::revise(&line, devices, setting);
    let value = revised.line.strip_prefix("root=").unwrap_or(found.value);
    let mut splice = found.set(value, revised.reasons);
    splice.skipped = revised.skipped;
    splice
}
