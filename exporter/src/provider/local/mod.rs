//! Provider `local`: disks that lie in a directory of this host, or one disk file.
//!
//! Copies and never moves. Hardware facts are unknown here: files do not tell them.
mod disks;

use std::path::{Path, PathBuf};

use queue::arrival::{candidate, pieces};

use crate::error::{Error, Result};
use crate::machine::{Debt, Delivered, Disk, Exported, Ledger, Order, Provider, Summary, Vm};
use crate::transfer::{self, Algorithm, Monitor};

/// The disks of this host; a VM is named by the path of its directory or disk file.
#[derive(Debug, Default)]
pub struct Local;

fn find(vm: &str) -> Result<disks::Found> {
    let path = Path::new(vm);
    let resolved = std::fs::canonicalize(path).map_err(|error| {
        Error::io("open", path, error)
            .with_remedy("give a directory of disks or one disk file that exists")
    })?;
    disks::find(&resolved)
}

/// As its directory or file is called.
fn vm_name(vm: &str) -> Result<String> {
    let path = std::path::absolute(vm).unwrap_or_else(|_| PathBuf::from(vm));
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(|| Error::invalid(format!("{vm} names no VM")).with_remedy("name it"))?;
    let name = if path.is_dir() {
        name
    } else {
        candidate::stem(name)
    };
    Ok(name.to_owned())
}

fn summary(path: &Path) -> Option<Summary> {
    let id = path.to_str()?.to_owned();
    find(&id).ok()?;
    Some(Summary {
        name: vm_name(&id).ok()?,
        location: path.parent().map(|parent| parent.display().to_string()),
        id,
        ..Summary::default()
    })
}

impl Provider for Local {
    fn name(&self) -> &'static str {
        "local"
    }

    /// A directory of disks or a disk file; of a directory that is neither, what lies in it.
    fn discover(&self, pattern: &str) -> Result<Vec<Summary>> {
        let path = Path::new(pattern);
        if let Some(found) = summary(path) {
            return Ok(vec![found]);
        }
        let bad = |error| Error::io("list", path, error);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(path).map_err(bad)? {
            found.extend(summary(&entry.map_err(bad)?.path()));
        }
        found.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(found)
    }

    fn describe(&self, vm: &str) -> Result<Vm> {
        let found = find(vm)?;
        let describe = |(index, disk): (usize, &disks::Files)| Disk {
            id: format!("disk-{index}"),
            file: disk.file.clone(),
            format: disk.format.to_owned(),
            size_bytes: disk.size_bytes,
            ..Disk::default()
        };
        Ok(Vm {
            name: vm_name(vm)?,
            id: vm.to_owned(),
            disks: found.disks.iter().enumerate().map(describe).collect(),
            ..Vm::default()
        })
    }

    fn export(
        &self,
        vm: &Vm,
        into: &Path,
        order: Order<'_>,
        _: &dyn Ledger,
        monitor: &dyn Monitor,
    ) -> Result<Exported> {
        let found = find(&vm.id)?;
        let mut delivered = Vec::with_capacity(vm.disks.len());
        for disk in &vm.disks {
            let files = found
                .disks
                .iter()
                .find(|files| files.file == disk.file)
                .ok_or_else(|| {
                    Error::invalid(format!("{} is gone from {}", disk.file, vm.id))
                        .with_remedy("export it again once its files are in place")
                })?;
            monitor.begin(&disk.file, files.size_bytes);
            let checksum = Some(order.checksum);
            let (size_bytes, sum) = copy(&found.directory, &files.file, into, checksum, monitor)?;
            for name in &files.owned {
                copy(&found.directory, name, into, None, monitor)?;
            }
            delivered.push(Delivered {
                id: disk.id.clone(),
                file: disk.file.clone(),
                format: disk.format.clone(),
                size_bytes,
                checksum: sum.unwrap_or_default(),
            });
        }
        Ok(Exported {
            method: "copy",
            disks: delivered,
            descriptor: None,
            warnings: Vec::new(),
            is_streamed: false,
        })
    }

    fn clean_up(&self, _: &[Debt], _: &dyn Ledger) -> Result<()> {
        Ok(())
    }
}

fn copy(
    directory: &Path,
    name: &str,
    into: &Path,
    checksum: Option<Algorithm>,
    monitor: &dyn Monitor,
) -> Result<(u64, Option<String>)> {
    let from = directory.join(name);
    let source = pieces::open(&from).map_err(|error| Error::io("open", &from, error))?;
    let metadata = source
        .metadata()
        .map_err(|error| Error::io("stat", &from, error))?;
    let sum = transfer::copy::copy(&source, &from, &into.join(name), checksum, monitor)?;
    Ok((metadata.len(), sum))
}
