//! Hypervisors' agents: those of others no longer start, QEMU's does if it is installed.
use super::{Action, Planner};
use crate::error::Result;
use crate::guest::linux::agents::{QEMU_UNIT, known, started_by, wanted_by};

const UNITS: &str = "/etc/systemd/system";
const UNIT_PLACES: [&str; 3] = [
    "/etc/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

impl Planner<'_> {
    pub(super) fn services(&mut self) -> Result<()> {
        if self.settings.remove_vmware_tools {
            self.disable_units()?;
            self.disable_scripts()?;
        }
        self.enable_qemu()
    }

    fn disable(&mut self, path: String, service: &str) {
        if let Some(agent) = known(service) {
            let reason = format!("{} has nothing to talk to under KVM", agent.name);
            self.remove(path, reason);
        }
    }

    /// Links of `systemctl enable`, and the aliases that come with them.
    fn disable_units(&mut self) -> Result<()> {
        let is_folder = |name: &str| name.ends_with(".wants") || name.ends_with(".requires");
        for path in self.files(UNITS, |name| known(name).is_some())? {
            // An alias is a link; a unit's own file stays.
            let name = path
                .rsplit_once('/')
                .map_or("", |(_, name)| name)
                .to_owned();
            if self.tree.read(&path)?.is_none() && !is_folder(&name) {
                self.disable(path, &name);
            }
        }
        for folder in self.files(UNITS, is_folder)? {
            for path in self.files(&folder, |name| known(name).is_some())? {
                let name = path
                    .rsplit_once('/')
                    .map_or("", |(_, name)| name)
                    .to_owned();
                self.disable(path, &name);
            }
        }
        Ok(())
    }

    /// System V's start links, OpenRC's run levels, upstart's jobs.
    fn disable_scripts(&mut self) -> Result<()> {
        let top = if self.tree.exists("/etc/rc.d/rc3.d")? {
            "/etc/rc.d"
        } else {
            "/etc"
        };
        for level in ["S", "0", "1", "2", "3", "4", "5", "6"] {
            let directory = format!("{top}/rc{level}.d");
            for path in self.files(&directory, |name| started_by(name).is_some())? {
                let name = path.rsplit_once('/').map_or("", |(_, name)| name);
                let service = started_by(name).unwrap_or_default().to_owned();
                self.disable(path, &service);
            }
        }
        for level in ["boot", "default", "sysinit"] {
            let directory = format!("/etc/runlevels/{level}");
            for path in self.files(&directory, |name| known(name).is_some())? {
                let name = path
                    .rsplit_once('/')
                    .map_or("", |(_, name)| name)
                    .to_owned();
                self.disable(path, &name);
            }
        }
        for path in self.files("/etc/init", |name| name.ends_with(".conf"))? {
            let stem = path.strip_suffix(".conf").unwrap_or(&path).to_owned();
            let name = stem.rsplit_once('/').map_or("", |(_, name)| name);
            if let Some(agent) = known(name) {
                let reason = format!("{} has nothing to talk to under KVM", agent.name);
                self.place(&format!("{stem}.override"), b"manual\n".to_vec(), &reason)?;
            }
        }
        Ok(())
    }

    fn enable_qemu(&mut self) -> Result<()> {
        let reason = "the agent of this hypervisor is installed";
        let own = format!("{UNITS}/{QEMU_UNIT}");
        // A link of that name to /dev/null masks it: somebody wants it so.
        let is_masked = self.tree.exists(&own)? && self.tree.read(&own)?.is_none();
        for directory in UNIT_PLACES.iter().filter(|_| !is_masked) {
            let target = format!("{directory}/{QEMU_UNIT}");
            let Some(unit) = self.tree.read(&target)? else {
                continue;
            };
            for folder in wanted_by(&unit) {
                let path = format!("{UNITS}/{folder}/{QEMU_UNIT}");
                if !self.tree.exists(&path)? {
                    self.link(path, &target, reason);
                }
            }
            return Ok(());
        }
        let script = "/etc/init.d/qemu-guest-agent";
        let level = "/etc/runlevels/default";
        if self.tree.exists(script)? && self.tree.exists(level)? {
            let path = format!("{level}/qemu-guest-agent");
            if !self.tree.exists(&path)? {
                self.link(path, script, reason);
            }
        }
        Ok(())
    }

    fn link(&mut self, path: String, target: &str, reason: &str) {
        self.actions.push(Action::Link {
            path,
            target: target.to_owned(),
            reason: reason.to_owned(),
        });
    }
}
