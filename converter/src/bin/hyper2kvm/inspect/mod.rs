//! `hyper2kvm inspect`: what a source holds, from its headers and maps; no disk content is read
//! unless it has to be unpacked for that, or the guest is asked for.
mod text;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use converter::convert::examine::{self, Care, Examined};
use converter::convert::vm;
use converter::disk::{Extent, Layer, Stored, Unobserved};
use converter::error::{Error, Result};
use converter::source::{self, Appliance, PackageFacts, SourceDisk, Unpacker};
use queue::instance::Config;
use queue::job::Machine;
use serde::Serialize;

use crate::args::InspectArgs;
use crate::convert::locate;
use crate::output;
use crate::progress::{Interrupt, Progress};

/// For files larger than memory (file-hierarchy(7)).
const TEMPORARY: &str = "/var/tmp";

/// The fields are README's.
#[derive(Serialize)]
struct Inspection {
    source: PathBuf,
    machine: Machine,
    package: Option<PackageFacts>,
    disks: Vec<Disk>,
    notes: Vec<String>,
    /// With --guest: the system on the disks, or why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    guest: Option<Examined>,
}

#[derive(Serialize)]
struct Disk {
    name: String,
    format: String,
    /// How the file was compressed as a whole.
    wrapper: Option<String>,
    capacity_bytes: u64,
    sector_bytes: u64,
    /// The sizes of its files together, and what the file system holds for them.
    source_bytes: u64,
    allocated_bytes: u64,
    /// Guest bytes by what the map says of them.
    #[serde(flatten)]
    map: Map,
    bus: Option<String>,
    boot_order: Option<i64>,
    files: Vec<DiskFile>,
    /// The image and those below it.
    layers: Vec<Layer>,
}

#[derive(Serialize, Default)]
struct Map {
    /// Stored somewhere, and in how many extents.
    mapped_bytes: u64,
    mapped_extents: u64,
    /// Of the stored bytes, those in compressed grains or clusters.
    compressed_bytes: u64,
    /// Said to be zeros.
    zero_bytes: u64,
    /// Not stored at all.
    hole_bytes: u64,
}

#[derive(Serialize)]
struct DiskFile {
    path: PathBuf,
    length_bytes: u64,
    allocated_bytes: u64,
    /// Guest bytes that are in this file.
    mapped_bytes: u64,
}

pub fn run(args: &InspectArgs) -> ExitCode {
    let inspection = match inspect(args) {
        Ok(inspection) => inspection,
        Err(error) => return output::trouble(&error, args.json, output::FAILED),
    };
    if args.json {
        output::json(&inspection);
    } else {
        text::show(&inspection);
    }
    ExitCode::SUCCESS
}

fn inspect(args: &InspectArgs) -> Result<Inspection> {
    let (roots, owner) = locate(&args.source, &args.source_roots)?;
    let directory = std::env::var_os("TMPDIR").map_or(PathBuf::from(TEMPORARY), PathBuf::from);
    let unpacker = Unpacker {
        directory: &directory,
        observer: &Unobserved,
        patience: Duration::from_secs(Config::default().incomplete_timeout),
    };
    let mut appliance = source::open(&roots, &owner, false, &unpacker)?;
    for disk in &mut appliance.disks {
        // What is found of a disk is said of all of it.
        disk.complete(&Unobserved)?;
    }
    let guest = args
        .guest
        .then(|| look_inside(args, &appliance))
        .transpose()?;
    Ok(Inspection {
        guest,
        source: owner,
        machine: appliance.machine,
        package: appliance.package,
        disks: appliance.disks.iter().map(look).collect::<Result<_>>()?,
        notes: appliance.notes,
    })
}

fn look_inside(args: &InspectArgs, appliance: &Appliance) -> Result<Examined> {
    let mut settings = Config::default().guest;
    settings.accel = args.accel.into();
    let mut caring = Care::of(&settings, &examine::cache_dir());
    caring.keys.extend(read_keys(&args.key_files)?);
    let interrupt = Interrupt::listen()?;
    let progress = Progress::new(vm::work_bytes(appliance), args.json, &interrupt);
    examine::examine(appliance, &caring, &progress)
}

pub fn read_keys(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>> {
    let read = |path: &PathBuf| std::fs::read(path).map_err(|e| Error::io("read", path, e));
    paths.iter().map(read).collect()
}

fn look(disk: &SourceDisk) -> Result<Disk> {
    let mut files: Vec<DiskFile> = disk
        .image
        .files()
        .iter()
        .map(|window| DiskFile {
            path: window.path().to_path_buf(),
            length_bytes: window.length_bytes(),
            allocated_bytes: window.allocated_bytes(),
            mapped_bytes: 0,
        })
        .collect();
    let mut map = Map::default();
    for extent in disk.image.extents() {
        let extent = extent?;
        if let Some(file) = map.count(&extent).and_then(|file| files.get_mut(file)) {
            file.mapped_bytes = file.mapped_bytes.saturating_add(extent.length_bytes);
        }
    }
    Ok(Disk {
        name: disk.name.clone(),
        format: disk.format.clone(),
        wrapper: disk.wrapper.clone(),
        capacity_bytes: disk.capacity_bytes,
        sector_bytes: disk.sector_bytes,
        source_bytes: disk.source_bytes,
        allocated_bytes: disk.allocated_bytes,
        map,
        bus: disk.bus.clone(),
        boot_order: disk.boot_order,
        files,
        layers: disk.image.layers(),
    })
}

impl Map {
    /// Returns the number of the file that the extent is in.
    fn count(&mut self, extent: &Extent) -> Option<usize> {
        let bytes = extent.length_bytes;
        let file = match extent.stored {
            Stored::Hole => {
                self.hole_bytes = self.hole_bytes.saturating_add(bytes);
                return None;
            }
            Stored::Zero => {
                self.zero_bytes = self.zero_bytes.saturating_add(bytes);
                return None;
            }
            Stored::Plain { file, .. } => file,
            Stored::Packed { unit, .. } => {
                self.compressed_bytes = self.compressed_bytes.saturating_add(bytes);
                unit.file
            }
        };
        self.mapped_bytes = self.mapped_bytes.saturating_add(bytes);
        self.mapped_extents = self.mapped_extents.saturating_add(1);
        Some(file)
    }
}
