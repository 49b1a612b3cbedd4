//! The boot loader's files, and the guest's tool that writes its menu.
use super::{Action, Planner};
use crate::error::Result;
use crate::guest::linux::bootloader::entries::{self, Format};
use crate::guest::linux::bootloader::{console, defaults, device_map, fallback};
use crate::guest::linux::edit::decode;
use crate::guest::linux::initramfs::tool::is_plain;
use crate::guest::model::Firmware;

/// Where the EFI system partition is mounted.
const ESP: [&str; 3] = ["/boot/efi", "/efi", "/boot"];

const MENUS: [(&str, Format); 11] = [
    ("/boot/grub/grub.cfg", Format::Grub2),
    ("/boot/grub2/grub.cfg", Format::Grub2),
    ("/boot/grub/custom.cfg", Format::Grub2),
    ("/boot/grub2/custom.cfg", Format::Grub2),
    ("/etc/grub.d/40_custom", Format::Grub2),
    ("/boot/grub/menu.lst", Format::GrubLegacy),
    ("/boot/grub/grub.conf", Format::GrubLegacy),
    ("/boot/extlinux.conf", Format::Syslinux),
    ("/boot/extlinux/extlinux.conf", Format::Syslinux),
    ("/boot/syslinux/syslinux.cfg", Format::Syslinux),
    ("/etc/kernel/cmdline", Format::Bare),
];

/// The settings from which menus are made.
const DEFAULTS: [&str; 3] = [
    "/etc/default/grub",
    "/etc/sysconfig/bootloader",
    "/etc/update-extlinux.conf",
];

/// The programs that make a menu of GRUB 2, under their names in the distributions.
const MAKERS: [&str; 4] = [
    "/usr/sbin/grub2-mkconfig",
    "/sbin/grub2-mkconfig",
    "/usr/sbin/grub-mkconfig",
    "/usr/bin/grub-mkconfig",
];

impl Planner<'_> {
    pub(super) fn boot(&mut self) -> Result<()> {
        for (path, format) in MENUS {
            self.menu_file(path, format)?;
        }
        for directory in ["/boot", "/boot/efi", "/efi"] {
            let entries = format!("{directory}/loader/entries");
            for path in self.files(&entries, |name| name.ends_with(".conf"))? {
                self.menu_file(&path, Format::Entry)?;
            }
        }
        let mut environments = vec![
            "/boot/grub/grubenv".to_owned(),
            "/boot/grub2/grubenv".into(),
        ];
        for vendor in self.files("/boot/efi/EFI", |_| true)? {
            self.menu_file(&format!("{vendor}/grub.cfg"), Format::Grub2)?;
            environments.push(format!("{vendor}/grubenv"));
        }
        for path in environments {
            self.edit(&path, |it, text| {
                entries::stabilise_environment(text, &it.devices)
            })?;
        }
        self.defaults()?;
        for path in ["/boot/grub/device.map", "/boot/grub2/device.map"] {
            if self
                .tree
                .read(path)?
                .is_some_and(|map| device_map::is_stale(&map))
            {
                self.remove(
                    path.to_owned(),
                    "GRUB's tools look for the disks themselves",
                );
            }
        }
        self.edit("/etc/inittab", |_, text| console::add_login(text))?;
        self.fallback()?;
        self.unknown()
    }

    fn menu_file(&mut self, path: &str, format: Format) -> Result<()> {
        self.edit(path, |it, text| {
            entries::stabilise(text, format, &it.devices)
        })?;
        Ok(())
    }

    fn defaults(&mut self) -> Result<()> {
        let extra = self.files("/etc/default/grub.d", |name| name.ends_with(".cfg"))?;
        let mut has_console = false;
        for path in &extra {
            let settings = self.read(path)?.unwrap_or_default();
            has_console |= defaults::has_serial_console(&settings);
            self.edit(path, |it, text| {
                defaults::stabilise(text, &it.devices, false)
            })?;
        }
        for path in DEFAULTS {
            let settings = self.read(path)?.unwrap_or_default();
            let has_console = has_console || defaults::has_serial_console(&settings);
            self.edit(path, |it, text| {
                defaults::stabilise(text, &it.devices, !has_console)
            })?;
        }
        Ok(())
    }

    /// A machine with an empty NVRAM starts from the fallback path.
    fn fallback(&mut self) -> Result<()> {
        if self.guest.firmware != Firmware::Uefi {
            return Ok(());
        }
        for esp in ESP {
            let vendors = self.files(&format!("{esp}/EFI"), |_| true)?;
            if vendors.is_empty() {
                continue;
            }
            let mut files = Vec::new();
            for vendor in vendors {
                let loaders = self.files(&vendor, |name| {
                    let name = name.to_ascii_lowercase();
                    name.len() < 64 && (name.ends_with(".efi") || name == "grub.cfg")
                })?;
                let inside = loaders.into_iter();
                files.extend(inside.filter_map(|path| {
                    let path = path.strip_prefix(esp)?.strip_prefix('/')?;
                    Some(path.to_owned())
                }));
            }
            for copy in fallback::missing(&files, &self.guest.os.arch) {
                self.actions.push(Action::Copy {
                    from: format!("{esp}/{}", copy.from),
                    to: format!("{esp}/{}", copy.to),
                    reason: "UEFI without memory of this machine starts it".to_owned(),
                });
            }
            return Ok(());
        }
        let text = "no EFI system partition with a loader was found".to_owned();
        self.warn("no_esp", text);
        Ok(())
    }

    /// Loaders that hold their command line where it cannot be changed.
    fn unknown(&mut self) -> Result<()> {
        for (path, what) in [("/etc/lilo.conf", "LILO"), ("/etc/elilo.conf", "ELILO")] {
            if self.tree.exists(path)? {
                let text = format!("{path}: {what} is not repaired; install GRUB in the guest");
                self.warn("boot_loader", text);
            }
        }
        for esp in ESP {
            let images = self.files(&format!("{esp}/EFI/Linux"), |name| name.ends_with(".efi"))?;
            for path in images {
                let text = format!("{path}: the initramfs of a unified image is not replaced");
                self.warn("unified_image", text);
            }
        }
        Ok(())
    }

    /// Lets the guest's tool write its menu, if its settings changed.
    pub(super) fn menu(&mut self) -> Result<()> {
        let is_source = |path: &str| path == "/etc/default/grub" || path.contains("/grub.d/");
        let is_changed = self
            .actions
            .iter()
            .any(|action| matches!(action, Action::Write { path, .. } if is_source(path)));
        if !is_changed {
            return Ok(());
        }
        let mut menus = vec![
            "/boot/grub2/grub.cfg".to_owned(),
            "/boot/grub/grub.cfg".into(),
        ];
        for vendor in self.files("/boot/efi/EFI", |_| true)? {
            menus.push(format!("{vendor}/grub.cfg"));
        }
        let mut tool = None;
        for program in MAKERS {
            if tool.is_none() && self.tree.exists(program)? {
                tool = Some(program);
            }
        }
        for menu in menus {
            let text = self.tree.read(&menu)?.unwrap_or_default();
            // A menu of that tool, not one that only leads to another.
            let is_made = decode(&text).contains("### BEGIN /etc/grub.d/");
            if let Some(tool) = tool.filter(|_| is_made && is_plain(&menu)) {
                self.actions.push(Action::Run {
                    arguments: vec![tool.to_owned(), "-o".to_owned(), menu.clone()],
                    touches: vec![menu.replace("grub.cfg", "grubenv"), menu],
                    reason: "the menu follows its settings".to_owned(),
                });
            }
        }
        Ok(())
    }
}
