//! The repair of one guest as a list of actions: what to write, remove, link, copy and run.
//!
//! Files first, then the guest's own tools, which read them. Whoever carries the list out keeps the
//! mode and the owner of what is there, and asks for a plan again when all is done: it is empty.
mod boot;
pub mod cards;
mod images;
mod services;

use queue::instance::config::{FstabMode, Guest as Settings};

use super::edit::{Change, Edit, decode};
use super::storage::devices::Devices;
use super::storage::{crypttab, fstab, lvm, units};
use super::{modules, selinux};
use crate::error::Result;
use crate::guest::model::Guest;

/// The guest's files. Paths are absolute in the guest; links at their end are not followed.
pub trait Tree {
    /// A regular file's contents; `None`: not there, or not a regular file. What is larger than
    /// `edit::MAX_FILE_BYTES` may be cut behind that, and is then left alone.
    fn read(&mut self, path: &str) -> Result<Option<Vec<u8>>>;
    /// The names in a directory; none if it is not there.
    fn list(&mut self, directory: &str) -> Result<Vec<String>>;
    fn exists(&mut self, path: &str) -> Result<bool>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// New files get mode 0644.
    Write {
        path: String,
        contents: Vec<u8>,
        changes: Vec<Change>,
    },
    Remove {
        path: String,
        reason: String,
    },
    Link {
        path: String,
        target: String,
        reason: String,
    },
    Copy {
        from: String,
        to: String,
        reason: String,
    },
    /// Makes an initramfs anew; the old one comes back if the listing of the new one lacks a
    /// driver (`initramfs::listing::modules`).
    Rebuild {
        image: String,
        build: Vec<String>,
        list: Vec<String>,
        drivers: Vec<String>,
        touches: Vec<String>,
        reason: String,
    },
    /// A program of the guest that may fail: what it would do was done by hand before.
    Run {
        arguments: Vec<String>,
        touches: Vec<String>,
        reason: String,
    },
    /// Nothing to do, but to be told. The code is stable.
    Warn {
        code: &'static str,
        text: String,
    },
}

pub fn plan(guest: &Guest, settings: &Settings, tree: &mut dyn Tree) -> Result<Vec<Action>> {
    let mut texts = Vec::new();
    for path in [
        "/etc/fstab",
        "/etc/crypttab",
        "/etc/default/grub",
        "/boot/grub/menu.lst",
    ] {
        texts.extend(tree.read(path)?.map(|bytes| decode(&bytes)));
    }
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut planner = Planner {
        guest,
        settings,
        devices: Devices::new(&guest.devices, &texts),
        tree,
        actions: Vec::new(),
    };
    planner.storage()?;
    if settings.update_grub {
        planner.boot()?;
    }
    if settings.fix_network {
        planner.cards()?;
    }
    planner.services()?;
    planner.modules()?;
    if settings.regen_initramfs {
        planner.images()?;
    }
    if settings.update_grub {
        planner.menu()?;
    }
    planner.relabel()?;
    Ok(planner.actions)
}

struct Planner<'a> {
    guest: &'a Guest,
    settings: &'a Settings,
    devices: Devices<'a>,
    tree: &'a mut dyn Tree,
    actions: Vec<Action>,
}

impl Planner<'_> {
    /// A file as it will be when the actions so far are done.
    fn read(&mut self, path: &str) -> Result<Option<Vec<u8>>> {
        let written = self.actions.iter().rev().find_map(|action| match action {
            Action::Write {
                path: known,
                contents,
                ..
            } if known == path => Some(contents.clone()),
            _ => None,
        });
        match written {
            Some(contents) => Ok(Some(contents)),
            None => self.tree.read(path),
        }
    }

    fn files(&mut self, directory: &str, wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        files(self.tree, directory, wanted)
    }

    /// Edits a file that is there; whether anything changed.
    fn edit(&mut self, path: &str, edit: impl FnOnce(&Self, &[u8]) -> Edit) -> Result<bool> {
        let Some(before) = self.read(path)? else {
            return Ok(false);
        };
        let edit = edit(self, &before);
        for Change { line, reason } in edit.skipped {
            let text = match line {
                0 => format!("{path}: {reason}"),
                line => format!("{path}:{line}: {reason}"),
            };
            self.warn("skipped", text);
        }
        if edit.text == before {
            return Ok(false);
        }
        self.write(path, edit.text, edit.changes);
        Ok(true)
    }

    fn write(&mut self, path: &str, contents: Vec<u8>, mut changes: Vec<Change>) {
        let earlier = self.actions.iter().position(
            |action| matches!(action, Action::Write { path: known, .. } if known == path),
        );
        if let Some(at) = earlier
            && let Action::Write {
                changes: before, ..
            } = self.actions.remove(at)
        {
            changes.splice(0..0, before);
        }
        self.actions.push(Action::Write {
            path: path.to_owned(),
            contents,
            changes,
        });
    }

    /// Writes a file of ours unless it is there just so.
    fn place(&mut self, path: &str, contents: Vec<u8>, reason: &str) -> Result<bool> {
        if self.read(path)?.is_some_and(|held| held == contents) {
            return Ok(false);
        }
        let change = Change {
            line: 0,
            reason: reason.to_owned(),
        };
        self.write(path, contents, vec![change]);
        Ok(true)
    }

    fn remove(&mut self, path: String, reason: impl Into<String>) {
        self.actions.push(Action::Remove {
            path,
            reason: reason.into(),
        });
    }

    fn warn(&mut self, code: &'static str, text: String) {
        self.actions.push(Action::Warn { code, text });
    }

    fn storage(&mut self) -> Result<()> {
        let mode = self.settings.fstab_mode;
        if mode == FstabMode::Noop {
            return Ok(());
        }
        self.edit("/etc/fstab", |it, text| {
            fstab::stabilise(text, &it.devices, mode)
        })?;
        self.edit("/etc/crypttab", |it, text| {
            crypttab::stabilise(text, &it.devices, mode)
        })?;
        let is_mount = |name: &str| name.ends_with(".mount") || name.ends_with(".swap");
        for path in self.files("/etc/systemd/system", is_mount)? {
            self.edit(&path, |it, text| units::stabilise(text, &it.devices, mode))?;
        }
        if mode == FstabMode::BypathOnly {
            return Ok(());
        }
        self.edit("/etc/lvm/lvm.conf", |_, text| lvm::revise_filters(text))?;
        let devices = self.tree.read(lvm::DEVICES_FILE)?;
        if devices.is_some_and(|devices| lvm::is_stale(&devices)) {
            let reason = "LVM looks for its volumes on every disk";
            self.remove(lvm::DEVICES_FILE.to_owned(), reason);
        }
        Ok(())
    }

    fn modules(&mut self) -> Result<()> {
        let mut bans = self.files("/etc/modprobe.d", |name| name.ends_with(".conf"))?;
        bans.push("/etc/modprobe.conf".to_owned());
        for path in bans {
            self.edit(&path, |_, text| {
                let edit = modules::revise_modprobe(text);
                edit.then(super::initramfs::config::modprobe_adapters)
            })?;
        }
        if !self.settings.remove_vmware_tools {
            return Ok(());
        }
        let mut loads = self.files("/etc/modules-load.d", |name| name.ends_with(".conf"))?;
        loads.push("/etc/modules".to_owned());
        for path in loads {
            self.edit(&path, |_, text| modules::revise_loads(text))?;
        }
        Ok(())
    }

    /// Files written from outside have no labels.
    fn relabel(&mut self) -> Result<()> {
        let is_changed = self
            .actions
            .iter()
            .any(|action| !matches!(action, Action::Warn { .. }));
        let config = self.tree.read("/etc/selinux/config")?;
        let is_enforcing = config.is_some_and(|config| selinux::is_enforcing(&config));
        if is_changed && is_enforcing && !self.tree.exists(selinux::RELABEL)? {
            self.place(selinux::RELABEL, Vec::new(), "SELinux was enforcing")?;
        }
        Ok(())
    }
}

/// The full paths of the files in `directory` that `wanted` picks by name, sorted.
fn files(
    tree: &mut dyn Tree,
    directory: &str,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<String>> {
    let mut names = tree.list(directory)?;
    names.retain(|name| is_file_name(name) && wanted(name));
    names.sort();
    // More than any real directory of configuration has.
    names.truncate(1000);
    let path = |name: String| format!("{directory}/{name}");
    Ok(names.into_iter().map(path).collect())
}

/// A single name that names nothing outside its directory.
fn is_file_name(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name.contains(|c: char| c == '/' || c.is_control())
}
