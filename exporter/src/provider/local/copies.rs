//! Copies a VM's files, each with its checksum.
use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use queue::job::manifest::Piece;
use queue::roots::Roots;

use super::chain::{self, Files, Part};
use crate::error::{Error, Result};
use crate::machine::{Delivered, Disk};
use crate::transfer::{self, Algorithm, Monitor};

/// The copies of one export; what two disks share is copied once.
pub struct Copies<'a> {
    roots: Roots,
    into: &'a Path,
    checksum: Algorithm,
    monitor: &'a dyn Monitor,
    done: BTreeMap<String, Piece>,
}

impl<'a> Copies<'a> {
    pub fn new(into: &'a Path, checksum: Algorithm, monitor: &'a dyn Monitor) -> Result<Self> {
        Ok(Self {
            // What is copied was found without links; it is opened without any.
            roots: Roots::open(Path::new("/"), &[])?,
            into,
            checksum,
            monitor,
            done: BTreeMap::new(),
        })
    }

    pub fn disk(&mut self, disk: &Disk, files: &Files) -> Result<Delivered> {
        let first = self.part(&files.first)?;
        let others = files.others.iter().map(|part| self.part(part));
        let pieces = others.collect::<Result<Vec<Piece>>>()?;
        Ok(Delivered {
            id: disk.id.clone(),
            file: disk.file.clone(),
            format: disk.format.clone(),
            size_bytes: first.bytes,
            checksum: first.checksum.unwrap_or_default(),
            pieces,
        })
    }

    fn part(&mut self, part: &Part) -> Result<Piece> {
        if let Some(known) = self.done.get(&part.to) {
            self.monitor.advance(known.bytes);
            return Ok(known.clone());
        }
        let to = self.into.join(&part.to);
        make_directory(&to, self.into)?;
        let (source, _) = self.roots.open_path(&part.from)?;
        let bytes = chain::part(&source, &part.from)?.size_bytes;
        let algorithm = Some(self.checksum);
        let checksum = transfer::copy::copy(&source, &part.from, &to, algorithm, self.monitor)?;
        let piece = Piece {
            local_path: part.to.clone(),
            bytes,
            checksum,
        };
        self.done.insert(part.to.clone(), piece.clone());
        Ok(piece)
    }
}

/// The directory that a disk has to itself, for the same users as `into`.
fn make_directory(file: &Path, into: &Path) -> Result<()> {
    let directory = file.parent().unwrap_or(into);
    if directory.is_dir() {
        return Ok(());
    }
    let make = || {
        let permissions = std::fs::metadata(into)?.permissions();
        std::fs::DirBuilder::new().mode(0o700).create(directory)?;
        std::fs::set_permissions(directory, permissions)
    };
    make().map_err(|error| Error::io("create directory", directory, error))
}
