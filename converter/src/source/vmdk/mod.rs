//! VMDK (Virtual Disk Format 5.0): streamOptimized, monolithicSparse, monolithicFlat, the VMFS
//! forms, the two-gigabyte splits, and delta disks over their parents.
//!
//! Files that a descriptor names are opened by the caller's lookup, never by path.
mod describe;
pub(super) mod descriptor;
mod grain;
pub(super) mod header;
mod marker;
pub(super) mod stream;
#[cfg(test)]
mod tests;
pub(super) mod vmfs;

use std::path::Path;

use self::descriptor::{Descriptor, ExtentKind};
use self::grain::{Grains, Sparse, header_bytes};
use self::header::{Directory, HEADER_BYTES, Header, MAX_DESCRIPTOR_BYTES};
use super::Lookup;
use super::flat::FlatExtents;
use super::overlay::Overlay;
use super::parent;
use crate::disk::{
    Extent, Extents, GuestOffset, Image, Layer, Packed, SECTOR_BYTES, Stored, Unpacked, Window,
    check_capacity, corrupt, unsupported,
};
use crate::error::{Error, Result};

/// Footer marker, footer and end-of-stream marker.
const TAIL_BYTES: u64 = 3 * HEADER_BYTES as u64;

pub(super) struct Vmdk {
    /// What its own descriptor is in.
    window: Window,
    descriptor: Descriptor,
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

/// Opens a VMDK and, by `lookup`, its extents and parents. Also returns its `createType`.
pub(super) fn open(window: Window, lookup: Lookup<'_>) -> Result<(Box<dyn Image>, String)> {
    let mut link = Link::read(window)?;
    let create_type = link.descriptor.create_type.clone();
    let mut paths = Vec::new();
    let mut directory = String::new();
    let mut images = Vec::new();
    loop {
        let path = link.window.path().to_path_buf();
        let below = link.descriptor.parent.clone();
        let image = link.open(&directory, lookup)?;
        if below.is_some()
            && image
                .parts
                .iter()
                .any(|part| matches!(part, Part::Flat { .. }))
        {
            return Err(unsupported(&path, "a VMDK delta disk with a flat extent"));
        }
        images.push(image);
        let Some(below) = below else { break };
        parent::check_chain(&path, images.len(), paths.contains(&path))?;
        let open = |window: Window| Link::parent_of(&path, below.content_id, window);
        let hints = [below.hint.clone()];
        (link, directory) = parent::find(&path, &directory, &hints, lookup, open)?;
        paths.push(path);
    }
    let base = images
        .pop()
        .ok_or_else(|| Error::invalid("a VMDK chain without a disk"))?;
    Ok((Overlay::stack(base, images), create_type))
}

/// One disk of a chain, of which only the descriptor was read.
struct Link {
    window: Window,
    /// `None`: the file is nothing but a descriptor.
    header: Option<Header>,
    descriptor: Descriptor,
}

impl Link {
    fn read(window: Window) -> Result<Self> {
        let path = window.path();
        let is_sparse = window.length_bytes() >= HEADER_BYTES as u64
            && header_bytes(&window, 0)?.starts_with(&header::MAGIC);
        let header = is_sparse.then(|| read_header(&window)).transpose()?;
        let text = match &header {
            Some(header) => {
                let (offset_bytes, length_bytes) =
                    header.descriptor.ok_or_else(|| no_descriptor(path))?;
                window.read_vec(offset_bytes, length_bytes)?
            }
            None if window.length_bytes() > MAX_DESCRIPTOR_BYTES => {
                return Err(corrupt(path, "the VMDK descriptor is larger than 1 MiB"));
            }
            None => window.read_vec(0, window.length_bytes() as usize)?,
        };
        let descriptor = Descriptor::parse(&text, path)?;
        Ok(Self {
            window,
            header,
            descriptor,
        })
    }

    /// Reads what `child` takes for its parent, and refuses another or a changed disk.
    fn parent_of(child: &Path, content_id: u32, window: Window) -> Result<Self> {
        let parent = Self::read(window)?;
        if parent.descriptor.content_id == Some(content_id) {
            return Ok(parent);
        }
        let what = format!(
            "it is not the parent that {} knows: the CID is {:08x}, not {content_id:08x}",
            child.display(),
            parent.descriptor.content_id.unwrap_or(u32::MAX),
        );
        Err(corrupt(parent.window.path(), what))
    }

    /// Opens the extents; `directory` is where the disk was found, relative to the lookup's.
    fn open(self, directory: &str, lookup: Lookup<'_>) -> Result<Vmdk> {
        match self.header {
            Some(header) => Ok(sparse_image(self.window, self.descriptor, header)),
            None => split_image(self.window, self.descriptor, &|name| {
                if directory.is_empty() || name.starts_with('/') {
                    return lookup(name);
                }
                lookup(&format!("{directory}/{name}"))
            }),
        }
    }
}

/// An extent that was given instead of the descriptor that knows what it is a part of.
pub(super) fn no_descriptor(path: &Path) -> Error {
    Error::invalid(format!(
        "{} is one extent of a VMDK, without the descriptor",
        path.display()
    ))
    .with_remedy("convert the descriptor (the .vmdk without -s001, -delta or -sesparse) instead")
}

fn sparse_image(window: Window, descriptor: Descriptor, header: Header) -> Vmdk {
    let capacity_bytes = header.capacity_bytes;
    let sparse = Sparse {
        file: 0,
        window: window.clone(),
        start: GuestOffset(0),
        length_bytes: capacity_bytes,
        header,
    };
    Vmdk {
        files: vec![window.clone()],
        window,
        descriptor,
        parts: vec![Part::Sparse(sparse)],
        capacity_bytes,
    }
}

/// Opens the extents that a descriptor names.
fn split_image(window: Window, descriptor: Descriptor, lookup: Lookup<'_>) -> Result<Vmdk> {
    let path = window.path();
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
    Ok(Vmdk {
        window,
        descriptor,
        files: opened.files,
        parts,
        capacity_bytes: sectors * SECTOR_BYTES,
    })
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
    if bytes.starts_with(&vmfs::COWD_MAGIC) {
        return vmfs::cowd(window);
    }
    if bytes.starts_with(&vmfs::SE_MAGIC) {
        return vmfs::se_sparse(window);
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

    fn layers(&self) -> Vec<Layer> {
        vec![Layer::new(&self.window, "vmdk", describe::fields(self))]
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
