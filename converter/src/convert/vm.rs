//! Converts a whole VM into one directory: every disk, domain.xml, and what metadata.json says.
//!
//! All of it or an error; what a failed conversion left in the directory is the caller's to remove.
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use queue::instance::config::Libvirt;
use queue::job::record::{DiskRecord, timestamp};
use queue::job::{Machine, VmName};

use super::growing::copy_growing;
use super::metadata::{Converter, Disk, Guest, Metadata, Origin};
use super::{DiskReport, Plan, Resume, copy, copy_on, space_needed_bytes};
use crate::disk::Observer;
use crate::error::{Error, ErrorKind, Result};
use crate::libvirt::{Devices, DomainDisk, DomainSpec, domain_uuid, domain_xml};
use crate::source::{Appliance, SourceDisk};

/// The file that libvirt is told of the VM by.
pub const DOMAIN: &str = "domain.xml";

/// What is to be made of an appliance, and where.
pub struct Order<'a> {
    pub name: &'a VmName,
    /// The first disk's file name; `<vm>.<format>` if it is `None`.
    pub first_file: Option<&'a str>,
    pub plan: &'a Plan,
    pub libvirt: &'a Libvirt,
    /// An existing, empty directory.
    pub directory: &'a Path,
    /// Where that directory will be in the end: what domain.xml speaks of.
    pub result: &'a Path,
    pub origin: Origin,
    pub host: &'a str,
    /// How an interrupted conversion goes on later; `None`: it starts over.
    pub resume: Option<&'a Resume<'a>>,
}

/// A VM that was converted.
pub struct Converted {
    /// The first disk's file name.
    pub file: String,
    pub metadata: Metadata,
    pub disks: Vec<DiskRecord>,
}

/// The source bytes that converting the appliance reads: the total of all `Observer::advance`.
pub fn work_bytes(appliance: &Appliance) -> u64 {
    appliance
        .disks
        .iter()
        .fold(0, |sum: u64, disk| sum.saturating_add(disk.allocated_bytes))
}

/// Fails with `no_space` if the worst case of what will be written does not fit in `directory`.
/// What an earlier attempt left there is not needed again.
pub fn check_space(appliance: &Appliance, plan: &Plan, directory: &Path) -> Result<()> {
    let mut needed_bytes: u64 = 0;
    for disk in &appliance.disks {
        needed_bytes = needed_bytes.saturating_add(space_needed_bytes(disk, plan)?);
    }
    let needed_bytes = needed_bytes.saturating_sub(held_bytes(directory)?);
    let free_bytes = queue::instance::free_bytes(directory)?;
    if needed_bytes <= free_bytes {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::NoSpace,
        format!(
            "{} has {free_bytes} bytes free, and the result may need {needed_bytes}",
            directory.display()
        ),
    )
    .with_remedy("free space on the output file system, or point output_dir to a larger one"))
}

/// What the files in `directory` take of the file system.
fn held_bytes(directory: &Path) -> Result<u64> {
    let failed = |error| Error::io("read directory", directory, error);
    let mut held_bytes: u64 = 0;
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let found = entry.and_then(|entry| entry.metadata()).map_err(failed)?;
        if found.is_file() {
            held_bytes = held_bytes.saturating_add(found.blocks().saturating_mul(512));
        }
    }
    Ok(held_bytes)
}

/// Removes what an earlier attempt left that this one does not make: it had other names.
fn remove_others(directory: &Path, names: &[String]) -> Result<()> {
    let failed = |error| Error::io("read directory", directory, error);
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default();
        if !names.iter().any(|known| name == known.as_str()) {
            let removed = match path.is_dir() {
                true => std::fs::remove_dir_all(&path),
                false => std::fs::remove_file(&path),
            };
            removed.map_err(|error| Error::io("remove", &path, error))?;
        }
    }
    Ok(())
}

/// Converts every disk of `appliance` and writes domain.xml; `on_disk` is told of each disk before
/// it is begun, by its number from 1 and its source. Those that still arrive are complete then.
pub fn vm(
    appliance: &mut Appliance,
    order: &Order<'_>,
    observer: &dyn Observer,
    on_disk: &mut dyn FnMut(usize, &SourceDisk),
) -> Result<Converted> {
    let mut notes = appliance.notes.clone();
    let mut disks = Vec::with_capacity(appliance.disks.len());
    let mut described = Vec::with_capacity(appliance.disks.len());
    let mut files = Vec::with_capacity(appliance.disks.len());
    let names: Vec<String> = (0..appliance.disks.len())
        .map(|index| file_name(order, index))
        .collect();
    if let Some(twice) = names
        .iter()
        .skip(1)
        .find(|name| names.first() == Some(name))
    {
        return Err(
            Error::invalid(format!("two disks would be called {twice:?}"))
                .with_remedy("choose another output.filename"),
        );
    }
    if order.resume.is_some() {
        remove_others(order.directory, &names)?;
    }
    for (index, (disk, file)) in appliance.disks.iter_mut().zip(names).enumerate() {
        on_disk(index + 1, disk);
        let target = order.directory.join(&file);
        let report = copy_growing(disk, &target, observer, &|disk| match order.resume {
            Some(resume) => copy_on(disk, &target, order.plan, resume, observer),
            None => copy(disk, &target, order.plan, observer),
        })?;
        notes.extend(unread(disk, &report));
        described.push(describe(disk, &file, &report));
        disks.push(record(disk, &file, &report));
        files.push(file);
    }
    notes.extend(appliance.machine.notes.iter().cloned());
    if order.libvirt.emit_domain_xml {
        let (machine, sources) = (&appliance.machine, &appliance.disks);
        let devices = Devices::Compatible;
        notes.extend(write_domain(machine, sources, order, &files, devices)?);
    }
    let metadata = Metadata {
        job_id: None,
        attempts: 1,
        vm_name: order.name.to_string(),
        source: order.origin.clone(),
        machine: appliance.machine.clone(),
        disks: described,
        guest: Guest::default(),
        notes,
        converter: Converter::default(),
        created_at: timestamp(SystemTime::now()),
        host: order.host.to_owned(),
    };
    let file = files
        .into_iter()
        .next()
        .ok_or_else(|| Error::invalid("the VM has no disks"))?;
    Ok(Converted {
        file,
        metadata,
        disks,
    })
}

fn file_name(order: &Order<'_>, index: usize) -> String {
    let extension = order.plan.format.as_str();
    match (index, order.first_file) {
        (0, Some(file)) => file.to_owned(),
        (0, None) => format!("{}.{extension}", order.name),
        _ => format!("{}-disk{}.{extension}", order.name, index + 1),
    }
}

/// Why there is no digest.
fn unread(disk: &SourceDisk, report: &DiskReport) -> Option<String> {
    report.digest.is_none().then(|| {
        format!(
            "{}: no content digest, for its data was shared with the source and not read; \
             digest = \"always\" or --digest asks for it",
            disk.name
        )
    })
}

fn record(disk: &SourceDisk, file: &str, report: &DiskReport) -> DiskRecord {
    DiskRecord {
        name: file.to_owned(),
        source_format: disk.format.clone(),
        virtual_size_bytes: report.virtual_size_bytes,
        source_bytes: report.source_bytes,
        output_bytes: report.output_bytes,
        digest: report.digest.clone(),
        resumed_bytes: report.resumed_bytes,
    }
}

fn describe(disk: &SourceDisk, file: &str, report: &DiskReport) -> Disk {
    Disk {
        name: disk.name.clone(),
        source_format: disk.format.clone(),
        virtual_size_bytes: report.virtual_size_bytes,
        source_bytes: report.source_bytes,
        output_bytes: report.output_bytes,
        grains_transplanted: report.grains_transplanted,
        clusters_encoded: report.clusters_encoded,
        digest: report.digest.clone(),
        shared_bytes: report.shared_bytes,
        resumed_bytes: report.resumed_bytes,
        source_digest: None,
        file: file.to_owned(),
    }
}

/// Writes domain.xml, over an earlier one; what it had to choose is returned.
pub(super) fn write_domain(
    machine: &Machine,
    sources: &[SourceDisk],
    order: &Order<'_>,
    files: &[String],
    devices: Devices,
) -> Result<Vec<String>> {
    let disks: Vec<DomainDisk> = files
        .iter()
        .zip(sources)
        .map(|(file, disk)| DomainDisk {
            path: order.result.join(file),
            format: order.plan.format,
            sector_bytes: disk.sector_bytes,
        })
        .collect();
    let domain = domain_xml(&DomainSpec {
        name: order.name,
        uuid: &domain_uuid(order.host, order.result),
        machine,
        disks: &disks,
        devices,
        settings: order.libvirt,
    })?;
    let path: PathBuf = order.directory.join(DOMAIN);
    std::fs::write(&path, domain.xml).map_err(|error| Error::io("write", &path, error))?;
    Ok(domain.notes)
}
