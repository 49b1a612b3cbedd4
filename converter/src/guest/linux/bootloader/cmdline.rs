//! A kernel command line: devices under lasting names, and a console on the serial line.
//!
//! The last `console=` is the one init talks to; the serial one is added before it, so that who
//! asked for a screen keeps it.
use std::ops::Range;

use crate::guest::linux::edit::quote;
use crate::guest::linux::storage::devices::{
    Devices, FILE_SYSTEM, Kind, PARTITION, Spelling, kind,
};

pub const SERIAL: &str = "console=ttyS0,115200n8";
pub const SCREEN: &str = "console=tty0";

/// Parameters whose value is a device, for the kernel or for an initramfs.
const DEVICES: [&str; 7] = [
    "root=",
    "resume=",
    "real_root=",
    "real_resume=",
    "crypt_root=",
    "cryptdevice=",
    "cryptopts=source=",
];

/// What the loader's entry around a command line says of it.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Without an initramfs the kernel itself looks for the root, and knows only PARTUUID.
    pub has_initramfs: bool,
    pub console: Console,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    No,
    /// Where the line is a whole one: it has a `root=`.
    WithRoot,
    Yes,
}

#[derive(Debug, Default)]
pub struct Revised {
    pub line: String,
    pub reasons: Vec<String>,
    pub skipped: Vec<String>,
}

pub fn revise(line: &str, devices: &Devices<'_>, setting: Setting) -> Revised {
    let mut revised = Revised::default();
    let tags = if setting.has_initramfs {
        FILE_SYSTEM
    } else {
        PARTITION
    };
    for piece in pieces(line) {
        let Some(range) = device_range(piece) else {
            revised.line.push_str(piece);
            continue;
        };
        let name = piece.get(range.clone()).unwrap_or_default();
        let mountpoint = piece.starts_with("root=").then_some("/");
        let found = devices
            .find_mounted(name, None, mountpoint)
            .and_then(|device| {
                let new = devices.name(device, tags, Spelling::Tag);
                new.ok_or_else(|| "it has no identifier that can be used here".to_owned())
            });
        let mut piece = piece.to_owned();
        match found {
            Ok(new) => {
                let reason = format!("{} is {new} on any hardware", quote(&piece));
                revised.reasons.push(reason);
                piece.replace_range(range, &new);
            }
            Err(why) => revised
                .skipped
                .push(format!("{} stays: {why}", quote(&piece))),
        }
        revised.line.push_str(&piece);
    }
    let is_wanted = match setting.console {
        Console::No => false,
        Console::WithRoot => pieces(line).any(|piece| piece.starts_with("root=")),
        Console::Yes => true,
    };
    if is_wanted && let Some(line) = add_console(&revised.line) {
        revised.line = line;
        revised
            .reasons
            .push("a console on the first serial line".to_owned());
    }
    revised
}

/// Words and the white space between them.
fn pieces(line: &str) -> impl Iterator<Item = &str> {
    let mut rest = line;
    std::iter::from_fn(move || {
        let is_blank = rest.chars().next()?.is_ascii_whitespace();
        let end = rest.find(|c: char| c.is_ascii_whitespace() != is_blank);
        let (piece, behind) = rest.split_at(end.unwrap_or(rest.len()));
        rest = behind;
        Some(piece)
    })
}

/// Where in a word the name of a disk is that changes with the hardware.
fn device_range(piece: &str) -> Option<Range<usize>> {
    let key = DEVICES.iter().find(|key| piece.starts_with(**key))?;
    let value = piece.get(key.len()..)?;
    // `cryptdevice=DEVICE:name`; by-path names hold colons themselves.
    let end = match value.rsplit_once("-part") {
        Some((linked, number)) if linked.starts_with("/dev/disk/") => {
            let digits = number
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(number.len());
            linked.len() + "-part".len() + digits
        }
        _ => value
            .find([':', ',', '"', '\'', '\\'])
            .unwrap_or(value.len()),
    };
    let name = value.get(..end)?;
    matches!(kind(name), Kind::ByPath | Kind::Unstable).then_some(key.len()..key.len() + end)
}

/// The line with a serial console, or none where it has one.
pub fn add_console(line: &str) -> Option<String> {
    let consoles: Vec<&str> = pieces(line)
        .filter_map(|piece| piece.strip_prefix("console="))
        .collect();
    if consoles.iter().any(|name| name.starts_with("ttyS0")) {
        return None;
    }
    let is_screen = |name: &&str| {
        let number = name.strip_prefix("tty");
        number.is_some_and(|number| number.chars().all(|c| c.is_ascii_digit()))
    };
    let mut out = String::with_capacity(line.len() + 64);
    if consoles.is_empty() {
        out.push_str(line.trim_ascii_end());
        let trailing = line.get(out.len()..).unwrap_or_default();
        if !out.is_empty() {
            out.push(' ');
        }
        return Some(format!("{out}{SERIAL} {SCREEN}{trailing}"));
    }
    let mut is_added = false;
    for piece in pieces(line) {
        if piece.starts_with("console=") && !is_added {
            out.push_str(SERIAL);
            out.push(' ');
            is_added = true;
        }
        out.push_str(piece);
    }
    // Xen's and Hyper-V's consoles are gone: something must be left to talk to.
    if !consoles.iter().any(is_screen) && consoles.iter().all(|name| is_foreign(name)) {
        out = format!("{} {SCREEN}", out.trim_ascii_end());
    }
    Some(out)
}

fn is_foreign(console: &str) -> bool {
    ["hvc", "xvc"]
        .iter()
        .any(|start| console.starts_with(start))
}
