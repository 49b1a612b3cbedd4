//! Provider `local`: VMs that lie in files of this host or on a web server. Copies, never moves.
//!
//! A `.vmx` or an OVF tells the hardware; disks without either do not, and then it is unknown.
mod appliance;
mod chain;
mod copies;
mod disks;
mod place;
mod reach;
#[cfg(test)]
mod tests;
mod vm;
mod vmx;
mod web;

use std::path::{Path, PathBuf};

use queue::arrival::candidate::{self, Class};

use self::chain::Files;
use self::copies::Copies;
use self::place::Place;
pub use self::reach::{Reach, is_url};
use crate::error::{Error, Result};
use crate::machine::{Debt, Disk, Exported, Ledger, Order, Provider, Summary, Vm};
use crate::transfer::Monitor;

pub const NAME: &str = "local";

/// A VM is named by its address or its path: of its directory, its `.vmx`, its appliance or disk.
#[derive(Debug, Default)]
pub struct Local {
    reach: Reach,
}

/// A VM on this host with its files.
struct Found {
    vm: Vm,
    /// Beside `vm.disks`.
    files: Vec<Files>,
    warnings: Vec<String>,
    vmx: Option<PathBuf>,
}

impl Local {
    pub fn new(reach: Reach) -> Self {
        Self { reach }
    }

    fn find(&self, vm: &str) -> Result<Found> {
        let path = match self.reach.path(vm) {
            Ok(path) => path,
            Err(error) => self.named(vm)?.ok_or(error)?,
        };
        let mut found = self.find_at(&path)?;
        vm.clone_into(&mut found.vm.id);
        Ok(found)
    }

    /// The only VM beneath the roots whose `.vmx` calls it so.
    fn named(&self, vm: &str) -> Result<Option<PathBuf>> {
        let Some(limits) = self.reach.limits.as_ref().filter(|_| !vm.contains('/')) else {
            return Ok(None);
        };
        let mut found = Vec::new();
        for root in &limits.roots {
            let listed = self.discover_in(root)?.into_iter();
            found.extend(listed.filter(|summary| summary.name == vm));
        }
        match found.as_slice() {
            [] => Ok(None),
            [only] => self.reach.path(&only.id).map(Some),
            several => {
                let places: Vec<&str> = several.iter().map(|vm| vm.id.as_str()).collect();
                Err(
                    Error::invalid(format!("{} VMs are called {vm}", places.len()))
                        .with_remedy(format!("name one by its path: {}", places.join(", "))),
                )
            }
        }
    }

    /// `path` is absolute and without links.
    fn find_at(&self, path: &Path) -> Result<Found> {
        let datastores = self.reach.datastores()?;
        if path.is_dir() {
            return find_in(&Place::new(path, &datastores)?);
        }
        let place = Place::new(path.parent().unwrap_or(Path::new("/")), &datastores)?;
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.unwrap_or_default();
        if vm::is_vmx(name) {
            vm::find(&place, path)
        } else if appliance::is_appliance(name) {
            appliance::find(&place, path)
        } else {
            bare(vec![disks::one(&place, path)?], candidate::stem(name))
        }
    }

    /// Of a VM whose `.vmx` is wrong, all the same.
    fn summary(&self, path: &Path) -> Option<Summary> {
        let location = path.parent().map(|parent| parent.display().to_string());
        if vm::is_vmx(path.file_name()?.to_str()?) {
            return vm::summary(path, location);
        }
        let vm = self.find_at(&std::fs::canonicalize(path).ok()?).ok()?.vm;
        Some(Summary {
            id: path.to_str()?.to_owned(),
            location,
            ..summary(vm)
        })
    }

    /// The VMs at `path`; of a directory that is none, those in it: a datastore's are in a
    /// directory each.
    fn discover_at(&self, path: &Path) -> Result<Vec<Summary>> {
        let here = by_vmx(path, path)?;
        if !here.is_empty() {
            return Ok(here);
        }
        let is_datastore = |inner: &PathBuf| by_vmx(inner, path).is_ok_and(|vms| !vms.is_empty());
        if !path.is_dir() || !entries(path)?.iter().any(is_datastore) {
            let only = self.summary(path);
            if only.is_some() {
                return Ok(only.into_iter().collect());
            }
        }
        self.discover_in(path)
    }

    fn discover_in(&self, directory: &Path) -> Result<Vec<Summary>> {
        let mut found = Vec::new();
        for inner in entries(directory)? {
            let listed = by_vmx(&inner, directory)?;
            match listed.is_empty() {
                true => found.extend(self.summary(&inner)),
                false => found.extend(listed),
            }
        }
        Ok(found)
    }
}

impl Provider for Local {
    fn name(&self) -> &'static str {
        NAME
    }

    /// An address; a path of a VM, or of a directory with VMs in it; nothing: all that a section's
    /// roots hold, or the current directory.
    fn discover(&self, pattern: &str) -> Result<Vec<Summary>> {
        if is_url(pattern) {
            return Ok(vec![summary(web::describe(&self.reach, pattern)?)]);
        }
        match &self.reach.limits {
            Some(limits) if pattern.is_empty() => {
                let found = limits.roots.iter().map(|root| self.discover_in(root));
                Ok(found.collect::<Result<Vec<_>>>()?.concat())
            }
            Some(_) => self.discover_at(&self.reach.path(pattern)?),
            None if pattern.is_empty() => self.discover_at(Path::new(".")),
            None => self.discover_at(Path::new(pattern)),
        }
    }

    fn describe(&self, vm: &str) -> Result<Vm> {
        match is_url(vm) {
            true => web::describe(&self.reach, vm),
            false => self.find(vm).map(|found| found.vm),
        }
    }

    fn export(
        &self,
        vm: &Vm,
        into: &Path,
        order: Order<'_>,
        _: &dyn Ledger,
        monitor: &dyn Monitor,
    ) -> Result<Exported> {
        if is_url(&vm.id) {
            return web::export(&self.reach, vm, into, order, monitor);
        }
        let found = self.find(&vm.id)?;
        let mut copies = Copies::new(into, order.checksum, monitor)?;
        let mut delivered = Vec::with_capacity(vm.disks.len());
        for disk in &vm.disks {
            let files = found.files.iter().find(|files| files.first.to == disk.file);
            let files = files.ok_or_else(|| {
                Error::invalid(format!("{} is gone from {}", disk.file, vm.id))
                    .with_remedy("export it again once its files are in place")
            })?;
            monitor.begin(&disk.file, files.size_bytes());
            delivered.push(copies.disk(disk, files)?);
        }
        // It may have been started meanwhile.
        vm::refuse_running(&found)?;
        Ok(Exported {
            method: "copy",
            disks: delivered,
            descriptor: None,
            notes: Vec::new(),
            warnings: found.warnings,
            is_streamed: false,
        })
    }

    fn clean_up(&self, _: &[Debt], _: &dyn Ledger) -> Result<()> {
        Ok(())
    }
}

fn summary(vm: Vm) -> Summary {
    Summary {
        name: vm.name,
        id: vm.id,
        location: vm.location,
        power: vm.power,
        cpus: vm.machine.cpus,
        memory_bytes: vm.machine.memory_bytes,
        guest_os: vm.machine.os_hint,
    }
}

/// The VMs whose `.vmx` lies in `directory`, which may be no directory; found from `top`.
fn by_vmx(directory: &Path, top: &Path) -> Result<Vec<Summary>> {
    if !directory.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for path in entries(directory)? {
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(vm::is_vmx) && path.is_file() {
            let location = path.strip_prefix(top).unwrap_or(&path);
            let location = location.display().to_string();
            found.extend(vm::summary(&path, Some(location)));
        }
    }
    Ok(found)
}

/// What lies in a directory and may be looked at.
fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let bad = |error| Error::io("list", directory, error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(bad)? {
        let name = entry.map_err(bad)?.file_name();
        if name
            .to_str()
            .is_some_and(|name| !candidate::is_ignored(name))
        {
            found.push(directory.join(name));
        }
    }
    found.sort();
    Ok(found)
}

/// The VM that a directory holds: of a `.vmx`, else of an appliance, else of all disks in it.
fn find_in(place: &Place<'_>) -> Result<Found> {
    let paths = entries(&place.directory)?;
    let names = paths.iter().filter_map(|path| path.file_name()?.to_str());
    let names: Vec<String> = names.map(str::to_owned).collect();
    let of =
        |is: fn(&str) -> bool| -> Vec<&String> { names.iter().filter(|name| is(name)).collect() };
    for (is, what) in [
        (vm::is_vmx as fn(&str) -> bool, "VMs"),
        (appliance::is_appliance, "appliances"),
    ] {
        match of(is).as_slice() {
            [] => {}
            [only] => {
                let path = place.directory.join(only);
                if vm::is_vmx(only) {
                    return vm::find(place, &path);
                }
                let found = appliance::find(place, &path)?;
                return alone(found, place, &names);
            }
            several => {
                let (at, count) = (place.directory.display(), several.len());
                let names: Vec<&str> = several.iter().map(|name| name.as_str()).collect();
                return Err(Error::invalid(format!("{at} holds {count} {what}"))
                    .with_remedy(format!("name one of them: {}", names.join(", "))));
            }
        }
    }
    let is_disk = |name: &str| candidate::classify(name) == Some(Class::Disk);
    let disks = of(is_disk).into_iter().cloned().collect();
    let name = place.directory.file_name().and_then(|name| name.to_str());
    bare(disks::in_directory(place, disks)?, name.unwrap_or_default())
}

/// An error if disks lie beside an appliance that are not its own.
fn alone(found: Found, place: &Place<'_>, names: &[String]) -> Result<Found> {
    let parts = found.files.iter();
    let parts = parts.flat_map(|files| std::iter::once(&files.first).chain(&files.others));
    let known: Vec<&Path> = parts.map(|part| part.from.as_path()).collect();
    let is_foreign = |name: &&String| {
        candidate::classify(name) == Some(Class::Disk)
            && !known.contains(&place.directory.join(name).as_path())
    };
    match names.iter().find(is_foreign) {
        None => Ok(found),
        Some(other) => {
            let at = place.directory.display();
            Err(Error::invalid(format!(
                "{at} holds an appliance, and beside it the disk {other}"
            ))
            .with_remedy("name the one or the other by its path"))
        }
    }
}

/// Disks whose machine nobody describes.
fn bare(mut files: Vec<Files>, name: &str) -> Result<Found> {
    chain::lay_out(&mut files)?;
    let disks = files.iter().enumerate();
    Ok(Found {
        vm: Vm {
            name: name.to_owned(),
            disks: disks.map(|(index, files)| disk(index, files)).collect(),
            ..Vm::default()
        },
        files,
        warnings: Vec::new(),
        vmx: None,
    })
}

fn disk(index: usize, files: &Files) -> Disk {
    Disk {
        id: format!("disk-{index}"),
        file: files.first.to.clone(),
        format: files.format.to_owned(),
        size_bytes: files.size_bytes(),
        ..Disk::default()
    }
}
