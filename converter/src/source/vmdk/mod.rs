//! VMDK (Virtual Disk Format 5.0): streamOptimized, monolithicSparse, monolithicFlat, VMFS flat and
//! the two-gigabyte splits.
//!
//! Files that a descriptor names are opened by the caller's lookup, never by path.
pub(super) mod descriptor;
mod grain;
pub(super) mod header;
#[cfg(test)]
mod tests;

use std::path::Path;

use self::descriptor::{Descriptor, ExtentKind};
use self::grain::{Grains, Sparse, header_bytes};
use self::header::{Directory, HEADER_BYTES, Header, MAX_DESCRIPTOR_BYTES};
use super::Lookup;
use super::flat::FlatExtents;
use crate::disk::{
    Extent, Extents, GuestOffset, Image, Packed, SECTOR_BYTES, Stored, Unpacked, Window,
    check_capacity, corrupt, unsupported,
};
use crate::error::{Error, Result};

/// Footer marker, footer and end-of-stream marker.
const TAIL_BYTES: u64 = 3 * HEADER_BYTES as u64;

pub(super) struct Vmdk {
    files: Vec<Window>,
    parts: Vec<Part>,
    capacity_bytes: u64,
}

/// One extent of the descriptor, in guest order.
enum Part {
    Sparse(Sparse),
    Flat {
        file: usize,
        offset_bytes: u64,
        start: GuestOffset,
        length_bytes: u64,
    },
    Zero {
        start: GuestOffset,
        length_bytes: u64,
    },
}

/// Opens a sparse file that carries its own descriptor. Also returns its `createType`.
pub(super) fn open_sparse(window: Window) -> Result<(Vmdk, String)> {
    let header = read_header(&window)?;
    let path = window.path();
    let Some((offset_bytes, length_bytes)) = header.descriptor else {
        return Err(Error::invalid(format!(
            "{} is one extent of a split VMDK, without the descriptor",
            path.display()
        ))
        .with_remedy("convert the descriptor (the .vmdk without -s001) instead"));
    };
    let text = window.read_vec(offset_bytes, length_bytes)?;
    let descriptor = Descriptor::parse(&text, path)?;
    let capacity_bytes = header.capacity_bytes;
    let sparse = Sparse {
        file: 0,
        window: window.clone(),
        start: GuestOffset(0),
        length_bytes: capacity_bytes,
        header,
    };
    let image = Vmdk {
        files: vec![window],
        parts: vec![Part::Sparse(sparse)],
        capacity_bytes,
    };
    Ok((image, descriptor.create_type))
}

/// Opens a descriptor file and, by `lookup`, the extents that it names.
pub(super) fn open_descriptor(window: &Window, lookup: Lookup<'_>) -> Result<(Vmdk, String)> {
    let path = window.path();
    if window.length_bytes() > MAX_DESCRIPTOR_BYTES {
        return Err(corrupt(path, "the VMDK descriptor is larger than 1 MiB"));
    }
    let text = window.read_vec(0, window.length_bytes() as usize)?;
    let descriptor = Descriptor::parse(&text, path)?;
    let mut opened = Opened::default();
    let mut parts = Vec::with_capacity(descriptor.extents.len());
    let mut sectors = 0u64;
    for line in &descriptor.extents {
        let start = GuestOffset(check_capacity(path, sectors)?);
        let length_bytes = check_capacity(path, line.sectors)?;
        // Neither is more than 64 TiB, the sum cannot overflow.
        sectors += line.sectors;
        check_capacity(path, sectors)?;
        if length_bytes > 0 {
            parts.push(opened.part(&line.kind, start, length_bytes, lookup)?);
        }
    }
    if sectors == 0 {
        return Err(corrupt(path, "the VMDK descriptor claims a capacity of 0"));
    }
    let image = Vmdk {
        files: opened.files,
        parts,
        capacity_bytes: sectors * SECTOR_BYTES,
    };
    Ok((image, descriptor.create_type))
}

/// The files opened so far, each once however many extents name it.
#[derive(Default)]
struct Opened {
    names: Vec<String>,
    files: Vec<Window>,
}

impl Opened {
    fn file(&mut self, name: &str, lookup: Lookup<'_>) -> Result<(usize, Window)> {
        let known = self.names.iter().position(|known| known == name);
        if let Some((index, window)) = known.and_then(|at| Some((at, self.files.get(at)?))) {
            return Ok((index, window.clone()));
        }
        let window = lookup(name)?;
        self.names.push(name.to_owned());
        self.files.push(window.clone());
        Ok((self.files.len() - 1, window))
    }

    fn part(
        &mut self,
        kind: &ExtentKind,
        start: GuestOffset,
        length_bytes: u64,
        lookup: Lookup<'_>,
    ) -> Result<Part> {
        match kind {
            ExtentKind::Zero => Ok(Part::Zero {
                start,
                length_bytes,
            }),
            ExtentKind::Flat {
                file,
                offset_sectors,
            } => {
                let (file, window) = self.file(file, lookup)?;
                let offset_bytes = check_capacity(window.path(), *offset_sectors)?;
                if offset_bytes + length_bytes > window.length_bytes() {
                    let what = format!(
                        "truncated: its descriptor needs {length_bytes} bytes from offset \
                         {offset_bytes}, but it ends at {}",
                        window.length_bytes()
                    );
                    return Err(corrupt(window.path(), what));
                }
                Ok(Part::Flat {
                    file,
                    offset_bytes,
                    start,
                    length_bytes,
                })
            }
            ExtentKind::Sparse { file } => {
                let (file, window) = self.file(file, lookup)?;
                let header = read_header(&window)?;
                if header.capacity_bytes < length_bytes {
                    let what = format!(
                        "it holds {} bytes of the disk, but its descriptor says {length_bytes}",
                        header.capacity_bytes
                    );
                    return Err(corrupt(window.path(), what));
                }
                Ok(Part::Sparse(Sparse {
                    file,
                    window,
                    header,
                    start,
                    length_bytes,
                }))
            }
        }
    }
}

/// Reads the header, and the footer where the header defers to it.
fn read_header(window: &Window) -> Result<Header> {
    let (path, file_bytes) = (window.path(), window.length_bytes());
    let bytes = header_bytes(window, 0)?;
    if bytes.starts_with(b"COWD") {
        return Err(unsupported(path, "a VMFS sparse (COWD) extent"));
    }
    let header = Header::parse(&bytes, path, file_bytes)?;
    if header.directory != Directory::Footer {
        return Ok(header);
    }
    let tail_offset = file_bytes.saturating_sub(TAIL_BYTES);
    let tail = window.read_vec(tail_offset, TAIL_BYTES.min(file_bytes) as usize)?;
    let footer = Header::parse(header::footer(&tail, path)?, path, file_bytes)?;
    let agrees = footer.directory != Directory::Footer
        && footer.capacity_bytes == header.capacity_bytes
        && footer.grain_bytes == header.grain_bytes
        && footer.compressed == header.compressed;
    if !agrees {
        return Err(corrupt(path, "the VMDK footer contradicts the header"));
    }
    Ok(Header {
        descriptor: header.descriptor,
        ..footer
    })
}

impl Part {
    fn extents<'a>(&'a self, files: &'a [Window]) -> PartExtents<'a> {
        match self {
            Self::Sparse(sparse) => PartExtents::Sparse(sparse.extents()),
            Self::Flat {
                file,
                offset_bytes,
                start,
                length_bytes,
            } => match files.get(*file) {
                Some(window) => {
                    let range = *offset_bytes..offset_bytes.saturating_add(*length_bytes);
                    PartExtents::Flat(FlatExtents::new(window, *file, range, *start))
                }
                None => PartExtents::Zero(None),
            },
            Self::Zero {
                start,
                length_bytes,
            } => PartExtents::Zero(Some(Extent {
                start: *start,
                length_bytes: *length_bytes,
                stored: Stored::Zero,
            })),
        }
    }
}

enum PartExtents<'a> {
    Sparse(Grains<'a>),
    Flat(FlatExtents<'a>),
    Zero(Option<Extent>),
}

impl Iterator for PartExtents<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Sparse(extents) => extents.next(),
            Self::Flat(extents) => extents.next(),
            Self::Zero(extent) => extent.take().map(Ok),
        }
    }
}

impl Image for Vmdk {
    fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    fn files(&self) -> &[Window] {
        &self.files
    }

    fn extents(&self) -> Extents<'_> {
        Box::new(self.parts.iter().flat_map(|part| part.extents(&self.files)))
    }

    fn unpack(&self, unit: &Packed, stored: &[u8], out: &mut [u8]) -> Result<Unpacked> {
        let holds = |part: &&Sparse| {
            unit.guest >= part.start && unit.guest.0 - part.start.0 < part.length_bytes
        };
        let sparse = self
            .parts
            .iter()
            .filter_map(|part| match part {
                Part::Sparse(sparse) => Some(sparse),
                _ => None,
            })
            .find(holds)
            .ok_or_else(|| {
                corrupt(
                    self.files.first().map_or(Path::new(""), Window::path),
                    format!("no extent holds the grain at guest offset {}", unit.guest.0),
                )
            })?;
        sparse.unpack(unit, stored, out)
    }
}
