//! A manifest as the owner: the disks that it names, opened where it may point to.
use std::path::Path;

use queue::job::Manifest;
use queue::job::manifest::{Disk, MAX_BYTES};
use queue::roots::Roots;

use super::content::{Claim, open_disk};
use super::growing::{self, Opening};
use super::{Appliance, SourceDisk, Unpacker, file_name, open_reference};
use crate::disk::{Algorithm, Checksum, Window};
use crate::error::{Error, Result};

/// Reads the manifest in `window`.
pub(super) fn read(window: &Window) -> Result<Manifest> {
    let path = window.path();
    if window.length_bytes() > MAX_BYTES {
        return Err(
            Error::invalid(format!("{} is larger than 1 MiB", path.display()))
                .with_remedy("a manifest describes disks; it does not contain them"),
        );
    }
    let bytes = window.read_vec(0, window.length_bytes() as usize)?;
    Manifest::parse(&bytes).map_err(|mut error| {
        error.context = format!("{}: {}", path.display(), error.context);
        error
    })
}

/// Opens every disk of the manifest in `window`, in boot order.
pub(super) fn open(
    roots: &Roots,
    window: &Window,
    checksum: bool,
    unpacker: &Unpacker<'_>,
) -> Result<Appliance> {
    let path = window.path();
    let manifest = read(window)?;
    let mut disks = Vec::with_capacity(manifest.disks.len());
    let mut appliance = Appliance {
        machine: manifest.machine(),
        disks: Vec::new(),
        package: None,
        notes: Vec::new(),
    };
    for named in &manifest.disks {
        if !is_package(named) {
            let disk = open_named(roots, path, named, checksum, unpacker)?;
            disks.push((boot_key(named), disk));
            continue;
        }
        let package = open_package(roots, path, named, checksum, unpacker)?;
        disks.extend(
            package
                .disks
                .into_iter()
                .map(|disk| (boot_key(named), disk)),
        );
        appliance.package = appliance.package.or(package.package);
        appliance.notes.extend(package.notes);
        if manifest.vm.is_none() && manifest.nics.is_empty() {
            let name = appliance.machine.name.take();
            appliance.machine = package.machine;
            appliance.machine.name = name;
        }
    }
    disks.sort_by_key(|(key, _)| *key);
    appliance.disks = disks.into_iter().map(|(_, disk)| disk).collect();
    Ok(appliance)
}

/// Whether it stands for an OVA or OVF with all disks in it.
fn is_package(named: &Disk) -> bool {
    let is = |format: &str| named.source_format.eq_ignore_ascii_case(format);
    is("ova") || is("ovf")
}

/// Opens an OVA or OVF that the manifest names, with what both say of its files.
fn open_package(
    roots: &Roots,
    manifest: &Path,
    named: &Disk,
    checksum: bool,
    unpacker: &Unpacker<'_>,
) -> Result<Appliance> {
    let window = open_reference(roots, manifest, &named.local_path)?;
    let stated = stated_checksums(roots, manifest, named, checksum, &window)?;
    let mut package = super::open_file(roots, window, checksum, unpacker)?;
    if package.package.is_none() {
        let (name, format) = (&named.local_path, &named.source_format);
        return Err(Error::invalid(format!(
            "{name} has no OVF in it, but source_format in {} says {format}",
            manifest.display()
        ))
        .with_remedy("write the format of the disk that it is"));
    }
    if let Some(first) = package.disks.first_mut() {
        first.checksums.extend(stated);
    }
    Ok(package)
}

/// What the manifest says that the disk's files hash to; `window` is the one that stands for it.
fn stated_checksums(
    roots: &Roots,
    manifest: &Path,
    named: &Disk,
    checksum: bool,
    window: &Window,
) -> Result<Vec<Checksum>> {
    let mut checksums = Vec::new();
    if !checksum {
        return Ok(checksums);
    }
    let stated_by = file_name(manifest);
    let is_said = |text: &&String| !text.is_empty();
    if let Some(text) = named.checksum.as_ref().filter(is_said) {
        checksums.push(parse_checksum(text, window, &stated_by, &named.id)?);
    }
    for piece in &named.pieces {
        if let Some(text) = piece.checksum.as_ref().filter(is_said) {
            let window = open_reference(roots, manifest, &piece.local_path)?;
            checksums.push(parse_checksum(text, &window, &stated_by, &named.id)?);
        }
    }
    Ok(checksums)
}

/// The hint, then boot disks before the others; the manifest's order decides what is left.
fn boot_key(disk: &Disk) -> (i64, bool) {
    let is_boot = disk.disk_type.as_deref() == Some("boot");
    (disk.boot_order_hint.unwrap_or(i64::MAX), !is_boot)
}

fn open_named(
    roots: &Roots,
    manifest: &Path,
    named: &Disk,
    checksum: bool,
    unpacker: &Unpacker<'_>,
) -> Result<SourceDisk> {
    let claim = Claim::by_manifest(&named.source_format, manifest)?;
    let (window, whole) = if named.growing {
        match growing::open(roots, manifest, named, checksum, unpacker)? {
            Opening::Streamed(disk) => return Ok(*disk),
            Opening::Whole(window, whole) => (window, Some(whole)),
        }
    } else {
        (open_reference(roots, manifest, &named.local_path)?, None)
    };
    let path = window.path().to_path_buf();
    let mut checksums = stated_checksums(roots, manifest, named, checksum, &window)?;
    if let Some(whole) = whole.filter(|_| checksum) {
        checksums.extend(whole.checksum(&window)?);
    }
    let lookup = |reference: &str| open_reference(roots, &path, reference);
    let mut disk = open_disk(window, &file_name(&path), Some(&claim), &lookup, unpacker)?;
    disk.bus.clone_from(&named.bus);
    disk.boot_order = named.boot_order_hint;
    disk.checksums = checksums;
    Ok(disk)
}

/// `sha256:<hex>` or `blake3:<hex>`; `stated_by` is the file that says so of the disk `id`.
pub(super) fn parse_checksum(
    text: &str,
    window: &Window,
    stated_by: &str,
    id: &str,
) -> Result<Checksum> {
    let known = [
        ("sha1", Algorithm::Sha1, 40),
        ("sha256", Algorithm::Sha256, 64),
        ("sha512", Algorithm::Sha512, 128),
        ("blake3", Algorithm::Blake3, 64),
    ];
    let (name, hex) = text.split_once(':').unwrap_or_default();
    let is_hex = |digits: usize| hex.len() == digits && hex.bytes().all(|b| b.is_ascii_hexdigit());
    let algorithm = known
        .into_iter()
        .find(|(known, _, digits)| name.eq_ignore_ascii_case(known) && is_hex(*digits))
        .map(|(_, algorithm, _)| algorithm)
        .ok_or_else(|| {
            Error::invalid(format!(
                "{stated_by}: the checksum {text:?} of disk {id:?} cannot be read"
            ))
            .with_remedy("write sha256:<64 hex digits> or blake3:<64 hex digits>")
        })?;
    Ok(Checksum {
        window: window.clone(),
        algorithm,
        hex: hex.to_ascii_lowercase(),
        stated_by: stated_by.to_owned(),
    })
}
