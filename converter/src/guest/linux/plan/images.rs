//! The initramfs tools' configuration, and every kernel's initramfs.
use super::{Action, Planner};
use crate::error::Result;
use crate::guest::linux::edit::{Edit, quote};
use crate::guest::linux::initramfs::config;
use crate::guest::linux::initramfs::listing::{Supply, WANTED};
use crate::guest::linux::initramfs::tool::{self, Tool};
use crate::guest::linux::storage::lvm;
use crate::guest::model::{Family, Kernel};

impl Planner<'_> {
    pub(super) fn images(&mut self) -> Result<()> {
        let family = self.guest.os.family;
        let tree = &mut *self.tree;
        let Some(tool) = tool::detect(family, |path| tree.exists(path))? else {
            let text = "no tool that makes an initramfs was found in the guest".to_owned();
            self.warn("no_initramfs_tool", text);
            return Ok(());
        };
        let is_stale = self.configure(tool)?;
        for kernel in &self.guest.kernels {
            self.kernel(tool, kernel, is_stale)?;
        }
        Ok(())
    }

    /// Whether something changed that an initramfs has a copy of.
    fn configure(&mut self, tool: Tool) -> Result<bool> {
        let copied = ["/etc/crypttab", "/etc/lvm/lvm.conf", lvm::DEVICES_FILE];
        let has_copy = |action: &Action| match action {
            Action::Write { path, .. } | Action::Remove { path, .. } => {
                copied.contains(&path.as_str())
            }
            _ => false,
        };
        let mut is_stale = self.actions.iter().any(has_copy);
        match tool {
            Tool::InitramfsTools => {
                let top = "/etc/initramfs-tools";
                let modules = format!("{top}/modules");
                if self.read(&modules)?.is_none() {
                    let edit = config::initramfs_tools_modules(b"");
                    self.write(&modules, edit.text, edit.changes);
                }
                self.edit(&modules, |_, text| config::initramfs_tools_modules(text))?;
                let mut policies = self.files(&format!("{top}/conf.d"), |_| true)?;
                policies.push(format!("{top}/initramfs.conf"));
                for path in policies {
                    self.edit(&path, |_, text| config::initramfs_tools_policy(text))?;
                }
                is_stale |= self.edit(&format!("{top}/conf.d/resume"), |it, text| {
                    config::resume(text, &it.devices)
                })?;
            }
            Tool::Dracut => {
                let mut own = self.files("/etc/dracut.conf.d", |name| name.ends_with(".conf"))?;
                own.push("/etc/dracut.conf".to_owned());
                for path in own {
                    self.edit(&path, |_, text| config::dracut_omissions(text))?;
                }
                let reason = "later kernels get the drivers too";
                self.place(config::DRACUT_PATH, config::dracut(), reason)?;
            }
            Tool::Mkinitcpio => self.add_words("/etc/mkinitcpio.conf", "MODULES", &WANTED)?,
            Tool::MkinitrdSuse => {
                self.add_words("/etc/sysconfig/kernel", "INITRD_MODULES", &WANTED)?;
            }
            Tool::Mkinitfs => {
                self.add_words("/etc/mkinitfs/mkinitfs.conf", "features", &["virtio"])?;
            }
            Tool::MkinitrdRedhat => {}
        }
        Ok(is_stale)
    }

    fn add_words(&mut self, path: &str, key: &str, words: &[&str]) -> Result<()> {
        self.edit(path, |_, text| -> Edit {
            config::add_words(text, key, words)
        })?;
        Ok(())
    }

    fn kernel(&mut self, tool: Tool, kernel: &Kernel, is_stale: bool) -> Result<()> {
        let release = &kernel.version;
        if !tool::is_plain(release) || !tool::is_plain(&kernel.modules) {
            let text = format!("kernel {} has a name that no command gets", quote(release));
            self.warn("no_initramfs", text);
            return Ok(());
        }
        let builtin = self
            .tree
            .read(&format!("{}/modules.builtin", kernel.modules))?;
        let loadable = self.tree.read(&format!("{}/modules.dep", kernel.modules))?;
        let supply = Supply::new(builtin.as_deref(), loadable.as_deref());
        if !supply.has_virtio_disk() {
            let text = format!("kernel {release} has no driver for virtio disks");
            self.warn("no_virtio", text);
            return Ok(());
        }
        let drivers = supply.loadable();
        let held = kernel.drivers.iter().map(String::as_str);
        let missing = supply.missing(held);
        if missing.is_empty() && (!is_stale || kernel.initramfs.is_none()) {
            return Ok(());
        }
        let Some(commands) = tool::commands(tool, kernel, &drivers) else {
            let text = format!("kernel {release} has no initramfs that can be made anew");
            self.warn("no_initramfs", text);
            return Ok(());
        };
        let image = kernel.initramfs.clone().unwrap_or_default();
        let mut touches = vec![image.clone()];
        if self.guest.os.family == Family::Debian {
            touches.push(format!("/var/lib/initramfs-tools/{release}"));
        }
        let reason = if missing.is_empty() {
            "it holds a copy of what was changed".to_owned()
        } else {
            format!("it lacks {}", missing.join(", "))
        };
        self.actions.push(Action::Rebuild {
            image,
            build: commands.build,
            list: commands.list,
            drivers: drivers.iter().map(|driver| (*driver).to_owned()).collect(),
            touches,
            reason,
        });
        Ok(())
    }
}
