//! Provider `local`: disks that lie in a directory of this host, or one disk file.
//!
//! Copies and never moves. Hardware facts are unknown here: files do not tell them.
mod disks;

use std::path::{Path, PathBuf};

use queue::arrival::{candidate, pieces};
use queue::job::Machine;

use crate::error::{Error, Result};
use crate::machine::{Delivered, Disk, Provider, Vm};
use crate::transfer::{self, Algorithm, Monitor};

/// One VM whose disks are `source`.
pub struct Local {
    source: PathBuf,
    name: Option<String>,
}

impl Local {
    /// Without a name the VM is called as its directory or file is.
    pub fn new(source: &Path, name: Option<&str>) -> Self {
        Self {
            source: source.to_path_buf(),
            name: name.map(str::to_owned),
        }
    }

    fn find(&self) -> Result<disks::Found> {
        let resolved = std::fs::canonicalize(&self.source).map_err(|error| {
            Error::io("open", &self.source, error)
                .with_remedy("give a directory of disks or one disk file that exists")
        })?;
        disks::find(&resolved)
    }

    fn vm_name(&self) -> Result<String> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let path = std::path::absolute(&self.source).unwrap_or_else(|_| self.source.clone());
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| {
                Error::invalid(format!("{} names no VM", self.source.display()))
                    .with_remedy("name it with --vm")
            })?;
        let name = if path.is_dir() {
            name
        } else {
            candidate::stem(name)
        };
        Ok(name.to_owned())
    }
}

impl Provider for Local {
    fn name(&self) -> &'static str {
        "local"
    }

    fn method(&self) -> &'static str {
        "copy"
    }

    fn describe(&self) -> Result<Vm> {
        let found = self.find()?;
        let describe = |(index, disk): (usize, &disks::Files)| Disk {
            id: format!("disk-{index}"),
            file: disk.file.clone(),
            format: disk.format.to_owned(),
            size_bytes: disk.size_bytes,
        };
        Ok(Vm {
            name: self.vm_name()?,
            id: None,
            machine: Machine::default(),
            disks: found.disks.iter().enumerate().map(describe).collect(),
        })
    }

    fn export(
        &self,
        vm: &Vm,
        into: &Path,
        checksum: Algorithm,
        monitor: &dyn Monitor,
    ) -> Result<Vec<Delivered>> {
        let found = self.find()?;
        let mut delivered = Vec::with_capacity(vm.disks.len());
        for disk in &vm.disks {
            let files = found
                .disks
                .iter()
                .find(|files| files.file == disk.file)
                .ok_or_else(|| {
                    Error::invalid(format!(
                        "{} is gone from {}",
                        disk.file,
                        self.source.display()
                    ))
                    .with_remedy("export it again once its files are in place")
                })?;
            monitor.begin(&disk.file, files.size_bytes);
            let (size_bytes, sum) =
                copy(&found.directory, &files.file, into, Some(checksum), monitor)?;
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
        Ok(delivered)
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
    let sum = transfer::copy(&source, &from, &into.join(name), checksum, monitor)?;
    Ok((metadata.len(), sum))
}
