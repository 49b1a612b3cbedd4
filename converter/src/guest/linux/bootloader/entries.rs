//! The loaders' menus: grub.cfg, menu.lst, Boot Loader Specification entries, extlinux.conf, and
//! the block of variables that GRUB 2 reads beside its menu.
use std::ops::Range;

use super::cmdline::{self, Console, Setting};
use crate::guest::linux::edit::{Edit, Fate, Notes, revise};
use crate::guest::linux::storage::devices::Devices;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// grub.cfg, and the scripts in /etc/grub.d that are copied into it.
    Grub2,
    /// menu.lst or grub.conf of GRUB 0.97.
    GrubLegacy,
    /// `loader/entries/*.conf`.
    Entry,
    /// extlinux.conf, syslinux.cfg.
    Syslinux,
    /// /etc/kernel/cmdline: nothing but the line.
    Bare,
}

/// GRUB's environment block is this long, filled up with `#`.
pub const ENVIRONMENT_BYTES: usize = 1024;

pub fn stabilise(menu: &[u8], format: Format, devices: &Devices<'_>) -> Edit {
    let blocks = blocks_with_initramfs(menu, format);
    let mut block = 0;
    revise(menu, |line, notes| {
        if begins_block(line, format) {
            block += 1;
        }
        let Some(range) = command_line(line, format) else {
            return Fate::Keep;
        };
        let setting = Setting {
            has_initramfs: blocks.get(block).copied().unwrap_or(true),
            console: Console::WithRoot,
        };
        let old = line.get(range.clone()).unwrap_or_default();
        let Some(new) = revise_command_line(old, devices, setting, notes) else {
            return Fate::Keep;
        };
        let mut line = line.to_owned();
        line.replace_range(range, &new);
        Fate::Replace(line)
    })
}

/// The kernel's command line as it is to be, and why; `None`: as it was.
fn revise_command_line(
    old: &str,
    devices: &Devices<'_>,
    setting: Setting,
    notes: &mut Notes,
) -> Option<String> {
    let revised = cmdline::revise(old, devices, setting);
    for why in revised.skipped {
        notes.skip(why);
    }
    if revised.line == old {
        return None;
    }
    for reason in revised.reasons {
        notes.change(reason);
    }
    Some(revised.line)
}

/// Revises grubenv, whose length may not change.
pub fn stabilise_environment(block: &[u8], devices: &Devices<'_>) -> Edit {
    if block.len() != ENVIRONMENT_BYTES {
        return Edit::unchanged(block);
    }
    let end = block
        .iter()
        .rposition(|byte| *byte != b'#')
        .map_or(0, |last| last + 1);
    let variables = block.get(..end).unwrap_or_default();
    for console in [Console::WithRoot, Console::No] {
        let mut edit = revise_variables(variables, devices, console);
        if edit.text == variables {
            edit.text = block.to_vec();
            return edit;
        }
        if edit.text.len() <= ENVIRONMENT_BYTES {
            edit.text.resize(ENVIRONMENT_BYTES, b'#');
            return edit;
        }
    }
    let full = revise(block, |_, _| Fate::Keep);
    full.skip_whole("GRUB's environment block is full")
}

fn revise_variables(variables: &[u8], devices: &Devices<'_>, console: Console) -> Edit {
    revise(variables, |line, notes| {
        let Some((name, old)) = line.split_once('=') else {
            return Fate::Keep;
        };
        if !matches!(name, "kernelopts" | "default_kernelopts") {
            return Fate::Keep;
        }
        let setting = Setting {
            has_initramfs: true,
            console,
        };
        match revise_command_line(old, devices, setting, notes) {
            Some(new) => Fate::Replace(format!("{name}={new}")),
            None => Fate::Keep,
        }
    })
}

/// The word at the beginning of a line, and what is behind it.
fn first_word(line: &str) -> (&str, &str) {
    let line = line.trim_start_matches([' ', '\t']);
    let end = line.find([' ', '\t']).unwrap_or(line.len());
    line.split_at(end)
}

/// Where in a line of a menu the kernel's command line is.
fn command_line(line: &str, format: Format) -> Option<Range<usize>> {
    let (word, rest) = first_word(line);
    let behind = |rest: &str| Some(line.len() - rest.len()..line.len());
    match format {
        Format::Bare => (!word.starts_with('#')).then_some(0..line.len()),
        Format::Entry => (word == "options").then(|| behind(rest))?,
        Format::Syslinux => word.eq_ignore_ascii_case("append").then(|| behind(rest))?,
        Format::Grub2 => match word {
            "linux" | "linux16" | "linuxefi" | "module" | "module2" => behind(first_word(rest).1),
            "set" => {
                let opening = rest.find('"')?;
                let name = rest.get(..opening)?.trim_ascii();
                let inside = rest.get(opening + 1..)?;
                let length = inside.rfind('"')?;
                let start = line.len() - inside.len();
                matches!(name, "kernelopts=" | "default_kernelopts=")
                    .then_some(start..start + length)
            }
            _ => None,
        },
        Format::GrubLegacy => match word {
            "kernel" | "module" => {
                let (mut image, mut rest) = first_word(rest);
                while image.starts_with("--") {
                    (image, rest) = first_word(rest);
                }
                behind(rest)
            }
            // Debian's update-grub reads these comments.
            "#" => {
                let (key, value) = rest.split_once('=')?;
                (key.trim_ascii().starts_with("kopt")).then(|| behind(value))?
            }
            _ => None,
        },
    }
}

fn begins_block(line: &str, format: Format) -> bool {
    let (word, _) = first_word(line);
    match format {
        Format::Grub2 => matches!(word, "menuentry" | "submenu"),
        Format::GrubLegacy => word == "title",
        Format::Syslinux => word.eq_ignore_ascii_case("label"),
        Format::Entry | Format::Bare => false,
    }
}

/// For each entry of the menu, whether the kernel gets an initramfs. What stands before the first
/// entry is for all, and they have one as a rule.
fn blocks_with_initramfs(menu: &[u8], format: Format) -> Vec<bool> {
    if format == Format::Bare {
        return vec![true];
    }
    let text = crate::guest::linux::edit::decode(menu);
    let is_whole = format == Format::Entry;
    let mut blocks = vec![!is_whole];
    for line in text.lines() {
        if begins_block(line, format) {
            blocks.push(false);
        }
        let (word, rest) = first_word(line);
        let word = word.to_ascii_lowercase();
        let is_named = word.starts_with("initrd") || rest.contains(" initrd=");
        // Xen's entries give both kernel and initramfs as modules.
        if (is_named || word.starts_with("multiboot") || word == "module")
            && let Some(last) = blocks.last_mut()
        {
            *last = true;
        }
    }
    blocks
}
