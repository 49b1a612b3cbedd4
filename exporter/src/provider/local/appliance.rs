//! An OVA, or an OVF with its files: handed on as it is, described by its descriptor.
//!
//! Its disks and digests are the converter's business; what is missing or lies elsewhere is told
//! before anything is copied.
use std::path::Path;

use queue::arrival::candidate;
use queue::arrival::ovf::{self, Ovf};
use queue::arrival::pieces::{self, Scope};

use super::Found;
use super::chain::{self, Files, Part};
use super::place::Place;
use crate::error::{Error, ErrorKind, Result};
use crate::machine::{Disk, Vm};

/// `.ova` or `.ovf`; an OVA also when it is packed.
pub fn is_appliance(name: &str) -> bool {
    is_ova(name) || is_ovf(name)
}

pub fn is_ova(name: &str) -> bool {
    candidate::unwrapped(name)
        .to_ascii_lowercase()
        .ends_with(".ova")
}

fn is_ovf(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with(".ovf")
}

pub fn find(place: &Place<'_>, path: &Path) -> Result<Found> {
    let mut file = place.open(path)?;
    let first = chain::part(&file, path)?;
    let name = first.to.clone();
    let (text, others, format) = match is_ovf(&name) {
        true => {
            let (text, others) = around(place, path, &name)?;
            (Some(text), others, "ovf")
        }
        // A packed one does not show its descriptor.
        false => (pieces::ova_descriptor(&mut file), Vec::new(), "ova"),
    };
    let mut files = [Files {
        first,
        others,
        format,
    }];
    chain::lay_out(&mut files)?;
    let [files] = files;
    let described = text.map(|text| parse(&text, path)).transpose()?;
    Ok(Found {
        vm: describe(described, &name, &files),
        files: vec![files],
        warnings: Vec::new(),
        vmx: None,
    })
}

/// What the descriptor says; the appliance counts as one disk, of all capacities together.
pub fn describe(described: Option<Ovf>, name: &str, files: &Files) -> Vm {
    let mut disk = super::disk(0, files);
    let mut machine = Default::default();
    if let Some(ovf) = described {
        let capacities = ovf.disks.iter().map(|disk| disk.capacity_bytes);
        disk = Disk {
            capacity_bytes: capacities.sum(),
            label: Some(format!("{} disks", ovf.disks.len())),
            ..disk
        };
        machine = ovf.machine;
    }
    Vm {
        name: machine
            .name
            .clone()
            .unwrap_or_else(|| candidate::stem(name).to_owned()),
        machine,
        disks: vec![disk],
        ..Vm::default()
    }
}

pub fn parse(text: &[u8], path: &Path) -> Result<Ovf> {
    ovf::parse(text).map_err(|mut error| {
        error.context = format!("{}: {}", path.display(), error.context);
        error
    })
}

/// The descriptor's text and the files that it names.
fn around(place: &Place<'_>, path: &Path, name: &str) -> Result<(Vec<u8>, Vec<Part>)> {
    let limit_bytes = queue::arrival::xml::MAX_BYTES as u64;
    let text =
        pieces::head(path, limit_bytes + 1).map_err(|error| Error::io("read", path, error))?;
    for disk in parse(&text, path)?.disks {
        let plain = ovf::percent_decoded(&disk.href).unwrap_or_else(|| disk.href.clone());
        if [&disk.href, &plain]
            .iter()
            .any(|name| name.contains(['/', '\\']))
        {
            let path = path.display();
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{path} names {:?}, which does not lie beside it", disk.href),
            )
            .with_remedy("put all files of the appliance into one directory"));
        }
    }
    let directory = &place.directory;
    let scope = Scope {
        base: directory,
        queue: directory,
        output: directory,
    };
    let named = scope.pieces(name)?;
    let mut others = Vec::new();
    for name in named.names.iter().chain(&named.optional) {
        let is_there = |name: &str| directory.join(name).symlink_metadata().is_ok();
        let decoded = ovf::percent_decoded(name).filter(|_| !is_there(name));
        let name = decoded.unwrap_or_else(|| name.clone());
        if named.optional.contains(&name) && !is_there(&name) {
            continue;
        }
        let path = directory.join(&name);
        others.push(chain::part(&place.open(&path)?, &path)?);
    }
    Ok((text, others))
}
