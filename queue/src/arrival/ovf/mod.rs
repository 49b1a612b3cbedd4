//! OVF descriptors (DMTF DSP0243 1.x and 2.x): one VM's disks in hardware order and its machine.
//!
//! Takes bytes, opens nothing: an `href` is data until someone confines it. Several VMs in one
//! descriptor are refused, never merged.
mod digests;
mod hardware;
mod items;
#[cfg(test)]
mod tests;
mod units;
mod xml;

use std::collections::{HashMap, HashSet};

use crate::job::Machine;
pub use digests::{Algorithm, MemberDigest, parse_digests};
use hardware::{Attachment, Backing};
use roxmltree::Node;
use xml::{attribute, child, children, quote};

use crate::error::{Error, ErrorKind, Result};

const MAX_DISKS: usize = 256;
const MAX_NOTES: usize = 100;

#[derive(Debug, Clone)]
pub struct Ovf {
    pub machine: Machine,
    /// In hardware order: the first is the one that firmware tries first.
    pub disks: Vec<OvfDisk>,
    /// `vmx-19` and the like.
    pub system_type: Option<String>,
    /// What was read over or left out, one line each; those about the machine are in it.
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OvfDisk {
    /// As written: a relative URI, in practice often with plain spaces; never yet confined.
    pub href: String,
    pub capacity_bytes: Option<u64>,
    /// `gzip`; absent for `identity`.
    pub compression: Option<String>,
    /// The file is cut into pieces of this size: `href.000000000`, `href.000000001` …
    pub chunk_size_bytes: Option<u64>,
    /// Of a file in chunks: the bytes of all of them together.
    pub size_bytes: Option<u64>,
    /// `scsi`, `sata`, `ide`, `nvme` or `usb`.
    pub bus: Option<String>,
}

/// Reads a descriptor of at most 10 MiB.
pub fn parse(bytes: &[u8]) -> Result<Ovf> {
    let text = xml::decode(bytes)?;
    let document = xml::parse(text)?;
    let envelope = document.root_element();
    if envelope.tag_name().name() != "Envelope" {
        let name = quote(envelope.tag_name().name());
        return Err(
            Error::invalid(format!("the descriptor is no OVF envelope but {name}"))
                .with_remedy("give the .ovf file that belongs to the disks"),
        );
    }
    let system = only_system(envelope)?;
    let (machine, attachments) = hardware::read(envelope, system);
    let mut package = Package::read(envelope)?;
    for attachment in attachments {
        package.attach(attachment)?;
    }
    package.append_unattached()?;
    let Package {
        chosen, mut notes, ..
    } = package;
    if chosen.is_empty() {
        return Err(Error::invalid("the OVF descriptor names no disk")
            .with_remedy("export the VM with its disks"));
    }
    let mut machine = machine;
    limit(&mut machine.notes);
    limit(&mut notes);
    Ok(Ovf {
        machine,
        disks: chosen,
        system_type: hardware::system_type(system),
        notes,
    })
}

/// An `href` without its percent signs; `None` if nothing is encoded, or not as UTF-8.
pub fn percent_decoded(text: &str) -> Option<String> {
    let (first, rest) = text.split_once('%')?;
    let mut bytes = first.as_bytes().to_vec();
    for part in rest.split('%') {
        let (hex, plain) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(hex, 16).ok()?);
        bytes.extend(plain.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

fn limit(notes: &mut Vec<String>) {
    if notes.len() > MAX_NOTES {
        let more = notes.len().saturating_sub(MAX_NOTES);
        notes.truncate(MAX_NOTES);
        notes.push(format!("and {more} more notes"));
    }
}

fn only_system<'a, 'input>(envelope: Node<'a, 'input>) -> Result<Node<'a, 'input>> {
    let mut systems = envelope
        .descendants()
        .filter(|node| node.is_element() && node.tag_name().name() == "VirtualSystem");
    let first = systems.next().ok_or_else(|| {
        Error::invalid("the OVF descriptor describes no virtual machine")
            .with_remedy("export the VM again, as one OVF or OVA")
    })?;
    let more = systems.count();
    if more > 0 {
        let collection = child(envelope, "VirtualSystemCollection");
        let name = collection
            .and_then(|node| attribute(node, "id"))
            .unwrap_or("without name");
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the OVF descriptor is a VirtualSystemCollection ({}) of {} virtual machines",
                quote(name),
                more.saturating_add(1)
            ),
        )
        .with_remedy("export each VM as an OVF or OVA of its own"));
    }
    Ok(first)
}

struct File {
    href: String,
    compression: Option<String>,
    chunk_size_bytes: Option<u64>,
    size_bytes: Option<u64>,
}

struct Disk {
    id: String,
    file: Option<String>,
    capacity_bytes: Option<u64>,
    is_delta: bool,
}

/// References and DiskSection, and the disks chosen from them so far.
struct Package {
    files: HashMap<String, File>,
    disks: Vec<Disk>,
    places: HashMap<String, usize>,
    used: HashSet<String>,
    chosen: Vec<OvfDisk>,
    notes: Vec<String>,
}

impl Package {
    fn read(envelope: Node<'_, '_>) -> Result<Self> {
        let mut package = Self {
            files: HashMap::new(),
            disks: Vec::new(),
            places: HashMap::new(),
            used: HashSet::new(),
            chosen: Vec::new(),
            notes: Vec::new(),
        };
        if let Some(references) = child(envelope, "References") {
            for node in children(references, "File") {
                package.read_file(node)?;
            }
        }
        if let Some(section) = child(envelope, "DiskSection") {
            for node in children(section, "Disk") {
                package.read_disk(node)?;
            }
        }
        Ok(package)
    }

    fn read_file(&mut self, node: Node<'_, '_>) -> Result<()> {
        let (Some(id), Some(href)) = (attribute(node, "id"), attribute(node, "href")) else {
            return Err(corrupt("a file of the OVF descriptor has no id or no href"));
        };
        let compression =
            attribute(node, "compression").filter(|name| !matches!(*name, "" | "identity"));
        let chunk_size_bytes = attribute(node, "chunkSize")
            .map(|text| {
                let size = text.parse().ok().filter(|size| *size > 0);
                size.ok_or_else(|| {
                    let (href, text) = (quote(href), quote(text));
                    corrupt(&format!("the file {href} has the chunk size {text}"))
                })
            })
            .transpose()?;
        let file = File {
            href: href.to_owned(),
            compression: compression.map(str::to_owned),
            chunk_size_bytes,
            size_bytes: chunk_size_bytes
                .and_then(|_| attribute(node, "size"))
                .and_then(|text| text.parse().ok()),
        };
        if self.files.insert(id.to_owned(), file).is_some() {
            let id = quote(id);
            return Err(corrupt(&format!("the file id {id} stands twice")));
        }
        Ok(())
    }

    fn read_disk(&mut self, node: Node<'_, '_>) -> Result<()> {
        let Some(id) = attribute(node, "diskId") else {
            return Err(corrupt("a disk of the OVF descriptor has no diskId"));
        };
        let disk = Disk {
            id: id.to_owned(),
            file: attribute(node, "fileRef")
                .filter(|id| !id.is_empty())
                .map(str::to_owned),
            capacity_bytes: self.capacity(id, node)?,
            is_delta: attribute(node, "parentRef").is_some_and(|parent| !parent.is_empty()),
        };
        if self
            .places
            .insert(id.to_owned(), self.disks.len())
            .is_some()
        {
            let id = quote(id);
            return Err(corrupt(&format!("the disk id {id} stands twice")));
        }
        self.disks.push(disk);
        Ok(())
    }

    fn capacity(&mut self, id: &str, node: Node<'_, '_>) -> Result<Option<u64>> {
        let Some(text) = attribute(node, "capacity") else {
            return Ok(None);
        };
        if text.starts_with("${") {
            let id = quote(id);
            self.notes.push(format!(
                "the capacity of disk {id} is a property; that of its file is used"
            ));
            return Ok(None);
        }
        let unit = attribute(node, "capacityAllocationUnits").unwrap_or("byte");
        let bytes = text
            .parse()
            .ok()
            .and_then(|value| units::to_bytes(value, unit));
        match bytes {
            Some(bytes) => Ok(Some(bytes)),
            None => Err(corrupt(&format!(
                "the disk {} has the capacity {} in units of {}",
                quote(id),
                quote(text),
                quote(unit)
            ))),
        }
    }

    fn attach(&mut self, attachment: Attachment) -> Result<()> {
        match attachment.backing {
            Backing::Disk(id) => {
                let place = self.places.get(&id).copied().ok_or_else(|| {
                    let id = quote(&id);
                    corrupt(&format!(
                        "the hardware has a disk {id} that is described nowhere"
                    ))
                })?;
                self.choose(place, attachment.bus)
            }
            Backing::File(id) => {
                if !self.used.insert(id.clone()) {
                    self.note_twice(&id);
                    return Ok(());
                }
                let disk = self.disk_of_file(&id, None, attachment.bus)?;
                self.push(disk)
            }
        }
    }

    fn append_unattached(&mut self) -> Result<()> {
        for place in 0..self.disks.len() {
            let Some(disk) = self.disks.get(place) else {
                continue;
            };
            let taken = disk
                .file
                .as_ref()
                .is_none_or(|file| self.used.contains(file));
            if taken {
                continue;
            }
            let id = quote(&disk.id);
            self.notes
                .push(format!("disk {id} hangs on no controller; it comes last"));
            self.choose(place, None)?;
        }
        Ok(())
    }

    fn choose(&mut self, place: usize, bus: Option<String>) -> Result<()> {
        let Some(disk) = self.disks.get(place) else {
            return Ok(());
        };
        let id = quote(&disk.id);
        if disk.is_delta {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("disk {id} of the OVF descriptor is a delta of another (parentRef)"),
            )
            .with_remedy("consolidate the VM's snapshots and export it again"));
        }
        let Some(file) = disk.file.clone() else {
            self.notes
                .push(format!("disk {id} is empty (no file) and is left out"));
            return Ok(());
        };
        let capacity = disk.capacity_bytes;
        if !self.used.insert(file.clone()) {
            self.note_twice(&file);
            return Ok(());
        }
        let disk = self.disk_of_file(&file, capacity, bus)?;
        self.push(disk)
    }

    fn note_twice(&mut self, file: &str) {
        let file = quote(file);
        self.notes.push(format!(
            "the file {file} is attached twice; it is converted once"
        ));
    }

    fn disk_of_file(
        &self,
        id: &str,
        capacity_bytes: Option<u64>,
        bus: Option<String>,
    ) -> Result<OvfDisk> {
        let file = self.files.get(id).ok_or_else(|| {
            let id = quote(id);
            corrupt(&format!(
                "a disk refers to the file {id}, which is not listed"
            ))
        })?;
        if file.href.is_empty() || file.href.contains("://") {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the OVF descriptor names a disk elsewhere: {}",
                    quote(&file.href)
                ),
            )
            .with_remedy("fetch the disk and put it beside the descriptor"));
        }
        Ok(OvfDisk {
            href: file.href.clone(),
            capacity_bytes,
            compression: file.compression.clone(),
            chunk_size_bytes: file.chunk_size_bytes,
            size_bytes: file.size_bytes,
            bus,
        })
    }

    fn push(&mut self, disk: OvfDisk) -> Result<()> {
        if self.chosen.len() >= MAX_DISKS {
            return Err(Error::invalid(format!(
                "the OVF descriptor has more than {MAX_DISKS} disks"
            ))
            .with_remedy("export the VM with fewer disks"));
        }
        self.chosen.push(disk);
        Ok(())
    }
}

fn corrupt(context: &str) -> Error {
    Error::new(ErrorKind::Corrupt, context).with_remedy("export the VM again")
}
