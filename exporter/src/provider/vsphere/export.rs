//! One export: a lease of the VM or of a snapshot of it, its disks, its descriptor; and whatever
//! becomes of it, neither lease nor snapshot stays.
use std::path::Path;

use super::Server;
use super::descriptor;
use super::disks::{Downloads, Task};
use super::hardware::{self, Described};
use super::lease::{Device, Lease};
use super::properties::returned;
use super::session::{Effect, Session};
use super::snapshot::{self, Snapshot};
use super::soap::{self, Moref};
use crate::error::{Error, ErrorKind, Result};
use crate::machine::{Delivered, Disk, Exported, Ledger, Order, Power, Stream};
use crate::transfer::{Monitor, Steady, cancelled};

pub struct Export<'a> {
    pub session: &'a Session,
    pub server: &'a Server,
    pub object: Moref,
    pub described: &'a Described,
    pub into: &'a Path,
    pub order: Order<'a>,
    pub ledger: &'a dyn Ledger,
    pub monitor: &'a dyn Monitor,
}

impl Export<'_> {
    pub fn run(&self) -> Result<Exported> {
        let power = self.described.vm.power;
        if power == Power::Off {
            match self.export("ExportVm", &self.object, &[]) {
                // Somebody has switched it on just now.
                Err(error) if soap::is_fault(&error, &["InvalidPowerState"]) => {}
                exported => return exported,
            }
        }
        let quiesce = power == Power::On && self.described.tools_run;
        let mut warnings = hardware::warnings(&self.described.vm);
        if power == Power::On && !quiesce {
            warnings.push(format!(
                "VMware Tools do not run in {}: its disks are as after a power failure",
                self.described.vm.name
            ));
        }
        if self.monitor.is_cancelled() {
            return Err(cancelled());
        }
        self.monitor.message("making a snapshot");
        let debt = snapshot::debt(&self.server.authority(), &self.object);
        let snapshot = Snapshot::create(self.session, self.ledger, debt, quiesce, &Steady)?;
        warnings.extend(snapshot.warnings.iter().cloned());
        let exported = self.export("ExportSnapshot", &snapshot.object, &warnings);
        self.monitor.message("removing the snapshot");
        match (exported, snapshot.remove(&Steady)) {
            (Ok(mut exported), removed) => {
                // The data is here; what stays is noted, and tried again by the next export.
                warnings.extend(removed.err().map(|error| error.to_line()));
                warnings.append(&mut exported.warnings);
                exported.warnings = warnings;
                Ok(exported)
            }
            (Err(error), removed) => {
                if let Err(stays) = removed {
                    self.monitor.warn(&stays.to_line());
                }
                Err(error)
            }
        }
    }

    /// Exports what `method` of `object` gives a lease of; `warnings` are known so far.
    fn export(
        &self,
        method: &'static str,
        object: &Moref,
        warnings: &[String],
    ) -> Result<Exported> {
        self.monitor.message("waiting for the server");
        let (session, monitor) = (self.session, self.monitor);
        let leased = session.call(object, method, "", Effect::Once, &Steady, returned)?;
        let server = self.server.authority();
        let lease = Lease::take(session, self.ledger, &server, leased, monitor, &Steady)?;
        self.monitor.message("");
        match self.download(&lease, method, warnings) {
            Ok(mut exported) => {
                if let Err(error) = lease.complete(&Steady) {
                    let warning = format!("the server's lease: {}", error.to_line());
                    exported.warnings.push(warning);
                }
                Ok(exported)
            }
            Err(error) => {
                lease.abort(&Steady);
                Err(error)
            }
        }
    }

    fn download(
        &self,
        lease: &Lease<'_>,
        method: &'static str,
        warnings: &[String],
    ) -> Result<Exported> {
        let vm = &self.described.vm;
        let devices = pair(&self.described.keys, &lease.info.devices).ok_or_else(|| {
            let count = lease
                .info
                .devices
                .iter()
                .filter(|device| device.is_disk)
                .count();
            Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the server offers {count} disks of {} instead of {}",
                    vm.name,
                    vm.disks.len()
                ),
            )
            .with_remedy("detach independent and raw disks from the VM, or export it switched off")
        })?;
        let tasks: Vec<Task<'_>> = vm
            .disks
            .iter()
            .zip(devices)
            .map(|(disk, device)| Task { disk, device })
            .collect();
        let downloads = Downloads {
            session: self.session,
            server: self.server,
            lease,
            into: self.into,
            checksum: self.order.checksum,
            stream: self.begin_stream(method, warnings)?,
        };
        let (disks, warnings) = downloads.run(&tasks, self.monitor, &Steady)?;
        let mut exported = Exported {
            method,
            disks,
            descriptor: None,
            notes: Vec::new(),
            warnings,
            is_streamed: downloads.stream.is_some(),
        };
        // What is streamed is out of reach, and its manifest says all that a descriptor does.
        if !exported.is_streamed {
            match self.describe(&tasks, &exported.disks) {
                Ok(name) => exported.descriptor = Some(name),
                Err(error) => {
                    let warning = format!("there is no OVF descriptor: {}", error.to_line());
                    exported.warnings.push(warning);
                }
            }
        }
        Ok(exported)
    }

    fn begin_stream(
        &self,
        method: &'static str,
        warnings: &[String],
    ) -> Result<Option<&dyn Stream>> {
        let disks = &self.described.vm.disks;
        let Some(stream) = self.order.stream else {
            return Ok(None);
        };
        let expected = |disk: &Disk| Delivered {
            id: disk.id.clone(),
            file: disk.file.clone(),
            format: disk.format.clone(),
            size_bytes: disk.size_bytes,
            checksum: String::new(),
            pieces: Vec::new(),
        };
        stream.begin(&Exported {
            method,
            disks: disks.iter().map(expected).collect(),
            descriptor: None,
            notes: Vec::new(),
            warnings: warnings.to_vec(),
            is_streamed: true,
        })?;
        Ok(Some(stream))
    }

    fn describe(&self, tasks: &[Task<'_>], disks: &[Delivered]) -> Result<String> {
        let files: Vec<descriptor::File<'_>> = tasks
            .iter()
            .zip(disks)
            .map(|(task, disk)| descriptor::File {
                key: &task.device.key,
                name: &disk.file,
                size_bytes: disk.size_bytes,
            })
            .collect();
        let first = disks.first().map_or("", |disk| disk.file.as_str());
        let name = format!("{}.ovf", first.strip_suffix("-disk1.vmdk").unwrap_or(first));
        let (vm, to) = (&self.described.vm.name, self.into.join(&name));
        descriptor::write(self.session, &self.object, vm, &files, &to, &Steady)?;
        Ok(name)
    }
}

/// The lease's disk for each of the VM's disks: by its place in the hardware, or, where the
/// server names places in another way, by its order.
fn pair<'a>(keys: &[String], devices: &'a [Device]) -> Option<Vec<&'a Device>> {
    let disks: Vec<&Device> = devices.iter().filter(|device| device.is_disk).collect();
    if disks.len() != keys.len() {
        return None;
    }
    let at = |key: &String| {
        let mut fits = disks
            .iter()
            .filter(|device| device.key.rsplit('/').next() == Some(key.as_str()));
        fits.next().copied()
    };
    let placed: Option<Vec<&Device>> = keys.iter().map(at).collect();
    Some(placed.unwrap_or(disks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_paired_by_its_place() {
        let device = |key: &str, is_disk| Device {
            key: key.to_owned(),
            is_disk,
            ..Device::default()
        };
        let devices = [
            device("/vm-1/ParaVirtualSCSIController1:1", true),
            device("/vm-1/nvram", false),
            device("/vm-1/ParaVirtualSCSIController1:0", true),
        ];
        let pair = |keys: &[&str]| -> Option<Vec<usize>> {
            let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
            let found = pair(&keys, &devices)?;
            let index = |one: &&Device| devices.iter().position(|device| device == *one).unwrap();
            Some(found.iter().map(index).collect())
        };
        let placed = [
            "ParaVirtualSCSIController1:0",
            "ParaVirtualSCSIController1:1",
        ];
        assert_eq!(pair(&placed), Some(vec![2, 0]));
        assert_eq!(pair(&["x0:0", "x0:1"]), Some(vec![0, 2]));
        assert_eq!(pair(&placed[..1]), None);
    }
}
