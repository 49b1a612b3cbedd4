//! A VM by its `.vmx`: what it says, its disks with their snapshots, and whether it runs.
use std::io::Read;
use std::path::{Path, PathBuf};

use queue::arrival::candidate;

use super::Found;
use super::chain::{self, Files};
use super::place::Place;
use super::vmx::{self, Vmx, hardware};
use crate::error::{Error, ErrorKind, Result};
use crate::machine::{Disk, Power, Summary, Vm};

const MAX_DISKS: usize = 256;
/// What NFS version 3 has for locks on a datastore: `.lck-<file id>`.
const NFS_LOCK: &str = ".lck-";
const LOCK: &str = ".lck";

pub fn is_vmx(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    (lower.ends_with(".vmx") || lower.ends_with(".vmtx")) && !candidate::is_ignored(name)
}

/// What a listing tells of the VM at `path`, whatever is wrong with it.
pub fn summary(path: &Path, location: Option<String>) -> Option<Summary> {
    let (directory, name) = (path.parent()?, path.file_name()?.to_str()?);
    let vmx = read(path).unwrap_or_default();
    let machine = hardware::machine(&vmx);
    Some(Summary {
        name: machine
            .name
            .unwrap_or_else(|| candidate::stem(name).to_owned()),
        id: path.to_str()?.to_owned(),
        location,
        power: power(&vmx, lock(directory, name, &[]).ok()?.is_some()),
        cpus: machine.cpus,
        memory_bytes: machine.memory_bytes,
        guest_os: machine.os_hint,
    })
}

/// The VM at `path`, whose directory is the place's; one that runs is refused.
pub fn find(place: &Place<'_>, path: &Path) -> Result<Found> {
    let at_vmx = |mut error: Error| {
        error.context = format!("{}: {}", path.display(), error.context);
        error
    };
    let vmx = read(path)?;
    let mut machine = hardware::machine(&vmx);
    let (attached, left_out) = hardware::disks(&vmx).map_err(at_vmx)?;
    machine.notes.extend(left_out);
    if attached.is_empty() {
        return Err(no_disks(&vmx, path));
    }
    if attached.len() > MAX_DISKS {
        let count = attached.len();
        return Err(at_vmx(Error::invalid(format!("it has {count} disks")))
            .with_remedy("a VM has at most 256 disks"));
    }
    let mut files: Vec<Files> = Vec::with_capacity(attached.len());
    for disk in &attached {
        let at = place.locate(&place.directory, &disk.file, path)?;
        if files.iter().any(|known| known.first.from == at) {
            let (slot, file) = (&disk.slot, &disk.file);
            let what = format!("{slot} is {file:?}, which another slot has already");
            return Err(at_vmx(Error::invalid(what)).with_remedy("attach each disk once"));
        }
        files.push(chain::of_disk(place, &at)?);
    }
    chain::lay_out(&mut files)?;
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.unwrap_or_default();
    let disks = files.iter().zip(&attached).enumerate();
    let disks = disks.map(|(index, (files, attached))| Disk {
        label: Some(attached.slot.clone()),
        bus: Some(attached.bus.to_owned()),
        ..super::disk(index, files)
    });
    let vm = Vm {
        name: machine
            .name
            .clone()
            .unwrap_or_else(|| candidate::stem(name).to_owned()),
        location: Some(path.display().to_string()),
        power: power(&vmx, false),
        annotation: vmx.get("annotation").map(str::to_owned),
        disks: disks.collect(),
        machine,
        ..Vm::default()
    };
    let mut warnings = Vec::new();
    if vm.power == Power::Suspended {
        warnings.push(format!(
            "{} is suspended: its memory is not exported, its disks are as after a power failure",
            vm.name
        ));
    }
    let found = Found {
        vm,
        files,
        warnings,
        vmx: Some(path.to_path_buf()),
    };
    refuse_running(&found)?;
    Ok(found)
}

/// An error if something holds the VM's lock.
pub fn refuse_running(found: &Found) -> Result<()> {
    let Some(path) = &found.vmx else {
        return Ok(());
    };
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(());
    };
    let parts = found.files.iter();
    let parts = parts.flat_map(|files| std::iter::once(&files.first).chain(&files.others));
    let files: Vec<&Path> = parts.map(|part| part.from.as_path()).collect();
    match lock(directory, &name.to_string_lossy(), &files)? {
        None => Ok(()),
        Some(lock) => Err(Error::invalid(format!(
            "{} is running, or open in VMware: its lock {} is there",
            found.vm.name,
            lock.display()
        ))
        .with_remedy(
            "shut the VM down and export it again (--provider vsphere exports running VMs); if \
             its host is dead, remove the lock",
        )),
    }
}

/// The lock that a host holds: of the `.vmx`, of one of `files`, or any of NFS version 3.
fn lock(directory: &Path, vmx: &str, files: &[&Path]) -> Result<Option<PathBuf>> {
    let beside = |path: &&Path| {
        let mut name = path.as_os_str().to_owned();
        name.push(LOCK);
        PathBuf::from(name)
    };
    let of_files = files.iter().map(beside);
    let own = std::iter::once(directory.join(format!("{vmx}{LOCK}")));
    if let Some(lock) = own
        .chain(of_files)
        .find(|path| path.symlink_metadata().is_ok())
    {
        return Ok(Some(lock));
    }
    let bad = |error| Error::io("list", directory, error);
    for entry in std::fs::read_dir(directory).map_err(bad)? {
        let name = entry.map_err(bad)?.file_name();
        if name.to_string_lossy().starts_with(NFS_LOCK) {
            return Ok(Some(directory.join(name)));
        }
    }
    Ok(None)
}

fn power(vmx: &Vmx, is_locked: bool) -> Power {
    match vmx.get("checkpoint.vmState") {
        _ if is_locked => Power::On,
        Some(_) => Power::Suspended,
        None => Power::Off,
    }
}

fn read(path: &Path) -> Result<Vmx> {
    let bad = |error| Error::io("read", path, error);
    let file = queue::arrival::pieces::open(path).map_err(bad)?;
    let mut bytes = Vec::new();
    file.take(vmx::MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(bad)?;
    if bytes.len() as u64 > vmx::MAX_BYTES {
        return Err(
            Error::invalid(format!("{} is larger than 256 KiB", path.display()))
                .with_remedy("a .vmx describes a VM and holds no data"),
        );
    }
    Vmx::parse(&bytes).map_err(|mut error| {
        error.context = format!("{}: {}", path.display(), error.context);
        error
    })
}

fn no_disks(vmx: &Vmx, path: &Path) -> Error {
    let path = path.display();
    if vmx.get("encryption.data").is_some() {
        return Error::new(ErrorKind::Unsupported, format!("{path} is encrypted"))
            .with_remedy("decrypt the VM and export it again");
    }
    Error::invalid(format!("{path} names no disk")).with_remedy("there is nothing to export")
}
