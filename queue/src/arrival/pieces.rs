//! What an owner owns: the extents of a descriptor, the disks of an OVF or of a manifest.
//!
//! Names are data. One that is not plainly beneath the owner's directory is no piece of the drop:
//! it is left where it is, and opening it later is the business of `roots`.
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use crate::arrival::{candidate, parents, xml};
use crate::error::{Error, Result};
use crate::job::{Manifest, Priority, manifest};

/// The largest OVF or descriptor that is read, in bytes.
const MAX_TEXT_BYTES: u64 = 10 * 1024 * 1024;
const MAX_PIECES: usize = 4096;

/// What an owner's text says about the job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pieces {
    /// Relative to the directory that the owner's path is relative to; without the owner.
    pub names: Vec<String>,
    /// Those of `names` without which the drop is whole all the same (`.mf`, `.cert`).
    pub optional: Vec<String>,
    /// Those of `names` whose producer still appends to them, and says when that is over.
    pub growing: Vec<String>,
    /// Whether the owner is a differencing disk: `names` hold its parent, and that one's.
    pub has_parent: bool,
    /// Absolute names of a manifest's disks that lie outside the queue.
    pub outside: Vec<PathBuf>,
    pub vm_name: Option<String>,
    pub place: Option<String>,
    pub priority: Priority,
}

/// Where names are resolved: the owner's own directory beneath `base`, which stands for `queue`.
pub struct Scope<'a> {
    /// The directory beneath which the owner lies: the queue, or a job's `source/`.
    pub base: &'a Path,
    /// The queue directory: absolute names beneath it mean files that were dropped with the owner.
    pub queue: &'a Path,
    pub output: &'a Path,
}

impl Scope<'_> {
    /// The pieces of `owner`, a plain path relative to the base.
    pub fn pieces(&self, owner: &str) -> Result<Pieces> {
        self.pieces_by(owner, &mut |name| self.direct(name))
    }

    /// The same; `direct` tells what one file's text says.
    pub(super) fn pieces_by(
        &self,
        owner: &str,
        direct: &mut dyn FnMut(&str) -> Result<Pieces>,
    ) -> Result<Pieces> {
        let mut pieces = direct(owner)?;
        // A manifest's or OVF's disk may itself be a descriptor with extents, and a parent's parent
        // belongs to the chain.
        let mut known: BTreeSet<String> = pieces.names.iter().cloned().collect();
        let mut next = 0;
        while let Some(name) = pieces.names.get(next).cloned()
            && pieces.names.len() < MAX_PIECES
        {
            next += 1;
            let is_disk = candidate::classify(&name) == Some(candidate::Class::Disk);
            if is_disk
                && name != owner
                && let Ok(below) = direct(&name)
            {
                let fresh = below.names.into_iter().filter(|n| known.insert(n.clone()));
                pieces.names.extend(fresh);
            }
        }
        if pieces.has_parent && known.contains(owner) {
            // A chain that leads back into itself has no leaf: each of its disks is refused alone.
            pieces.names.clear();
        }
        pieces.names.sort_unstable();
        pieces.names.dedup();
        pieces.names.retain(|name| name != owner);
        pieces.names.truncate(MAX_PIECES);
        Ok(pieces)
    }

    /// What the text of `owner` itself says.
    pub(super) fn direct(&self, owner: &str) -> Result<Pieces> {
        let path = self.base.join(owner);
        match candidate::classify(owner) {
            Some(candidate::Class::Manifest) => {
                let bytes = read(&path, manifest::MAX_BYTES)?;
                Ok(self.of_manifest(owner, &Manifest::parse(&bytes)?))
            }
            Some(candidate::Class::Ovf) => self.of_ovf(owner, &read(&path, MAX_TEXT_BYTES)?),
            Some(candidate::Class::Disk) if is_descriptor_file(&path) => {
                Ok(self.of_descriptor(owner, &read(&path, MAX_TEXT_BYTES)?))
            }
            Some(candidate::Class::Disk) => Ok(self
                .of_differencing(owner, &path)
                .or_else(|| self.of_ova(owner, &path))
                .unwrap_or_default()),
            None => Ok(Pieces::default()),
        }
    }

    /// A differencing disk owns its parent, which lies beside it.
    fn of_differencing(&self, owner: &str, path: &Path) -> Option<Pieces> {
        let parent = parents::parent_name(&open(path).ok()?)?;
        Some(Pieces {
            names: vec![self.resolve(owner, &parent)?],
            has_parent: true,
            ..Pieces::default()
        })
    }

    /// An OVA owns nothing outside itself; its OVF names the VM.
    fn of_ova(&self, owner: &str, path: &Path) -> Option<Pieces> {
        let descriptor = ova_descriptor(&mut open(path).ok()?)?;
        let described = self.of_ovf(owner, &descriptor).ok()?;
        Some(Pieces {
            vm_name: described.vm_name,
            ..Pieces::default()
        })
    }

    fn of_manifest(&self, owner: &str, manifest: &Manifest) -> Pieces {
        let names = manifest.disks.iter().flat_map(|disk| {
            let pieces = disk.pieces.iter().map(|piece| &piece.local_path);
            std::iter::once(&disk.local_path).chain(pieces)
        });
        let names = names.filter_map(|name| self.resolve(owner, name));
        let growing = manifest
            .disks
            .iter()
            .filter(|disk| disk.growing)
            .filter_map(|disk| self.resolve(owner, &disk.local_path));
        let directory = manifest
            .output
            .as_ref()
            .and_then(|output| output.directory.clone());
        let place = directory.and_then(|directory| {
            let place = Path::new(&directory).strip_prefix(self.output).ok()?;
            let hidden = place
                .iter()
                .any(|part| part.to_string_lossy().starts_with('.'));
            let place = place
                .to_str()
                .filter(|place| crate::roots::is_plain(place) && !hidden);
            place.map(str::to_owned)
        });
        Pieces {
            names: names.collect(),
            growing: growing.collect(),
            optional: Vec::new(),
            has_parent: false,
            outside: manifest
                .disks
                .iter()
                .filter_map(|disk| self.outside(&disk.local_path))
                .collect(),
            vm_name: manifest.vm_name(),
            place,
            priority: manifest.priority(),
        }
    }

    fn of_ovf(&self, owner: &str, bytes: &[u8]) -> Result<Pieces> {
        let xml = xml::parse(xml::decode(bytes)?)?;
        let local = |node: &roxmltree::Node, name: &str| {
            node.attributes()
                .find(|a| a.name() == name)
                .map(|a| a.value().to_owned())
        };
        let mut pieces = Pieces::default();
        for node in xml.descendants().filter(roxmltree::Node::is_element) {
            match node.tag_name().name() {
                "File" => {
                    let href = local(&node, "href").unwrap_or_default();
                    let number = |name| local(&node, name).and_then(|text| text.parse().ok());
                    match (number("chunkSize"), number("size")) {
                        (Some(chunk), size) => {
                            let names = chunks(&href, chunk, size);
                            let names = names.filter_map(|name| self.resolve(owner, &name));
                            pieces.names.extend(names);
                        }
                        _ => pieces.names.extend(self.resolve(owner, &href)),
                    }
                }
                "VirtualSystem" => {
                    let name = node
                        .children()
                        .find(|child| child.tag_name().name() == "Name")
                        .and_then(|child| child.text().map(str::to_owned));
                    pieces.vm_name = name.or_else(|| local(&node, "id"));
                }
                _ => {}
            }
        }
        for extension in ["mf", "cert"] {
            let name = Path::new(owner).with_extension(extension);
            pieces.optional.extend(name.to_str().map(str::to_owned));
        }
        Ok(pieces)
    }

    fn of_descriptor(&self, owner: &str, bytes: &[u8]) -> Pieces {
        let text = String::from_utf8_lossy(bytes);
        let names = extents(&text).filter_map(|name| self.resolve(owner, name));
        let parent = parents::of_descriptor(&text).and_then(|name| self.resolve(owner, &name));
        Pieces {
            has_parent: parent.is_some(),
            names: names.chain(parent).collect(),
            ..Pieces::default()
        }
    }

    /// An absolute name outside the queue.
    fn outside(&self, name: &str) -> Option<PathBuf> {
        let path = Path::new(name);
        (path.is_absolute() && !path.starts_with(self.queue)).then(|| path.to_path_buf())
    }

    /// A name in `owner`'s text as a plain path relative to the base.
    fn resolve(&self, owner: &str, name: &str) -> Option<String> {
        let named = Path::new(name);
        let path: PathBuf = if named.is_absolute() {
            named.strip_prefix(self.queue).ok()?.to_path_buf()
        } else {
            Path::new(owner)
                .parent()
                .unwrap_or(Path::new(""))
                .join(named)
        };
        let mut plain = PathBuf::new();
        for part in path.components() {
            match part {
                Component::Normal(part) => plain.push(part),
                Component::CurDir => {}
                _ => return None,
            }
        }
        // Nothing of the queue's own (`.processing` and so on) is anybody's piece.
        let text = plain.to_str()?;
        (crate::roots::is_plain(text) && !text.starts_with('.')).then(|| text.to_owned())
    }
}

/// The OVF that an OVA begins with (DSP0243, 5.3), if it does.
pub fn ova_descriptor(archive: &mut dyn Read) -> Option<Vec<u8>> {
    let mut header = [0; 512];
    archive.read_exact(&mut header).ok()?;
    let text = |range| {
        let field: &[u8] = header.get(range)?;
        let field = field.split(|byte| *byte == 0).next()?;
        std::str::from_utf8(field).ok().map(str::trim)
    };
    let is_ovf = text(0..100)?.to_ascii_lowercase().ends_with(".ovf");
    if text(257..262)? != "ustar" || !is_ovf {
        return None;
    }
    let size_bytes = u64::from_str_radix(text(124..136)?, 8).ok()?;
    if size_bytes > MAX_TEXT_BYTES {
        return None;
    }
    let mut descriptor = Vec::new();
    archive.take(size_bytes).read_to_end(&mut descriptor).ok()?;
    (descriptor.len() as u64 == size_bytes).then_some(descriptor)
}

/// The names in the extent lines of a VMDK descriptor: `RW 4192256 SPARSE "vm-s001.vmdk"`.
pub fn extents(text: &str) -> impl Iterator<Item = &str> {
    let is_extent = |line: &&str| {
        ["RW ", "RDONLY ", "NOACCESS "]
            .iter()
            .any(|access| line.starts_with(access))
    };
    let lines = text.lines().map(str::trim_start).filter(is_extent);
    lines
        .filter_map(|line| line.split('"').nth(1))
        .take(MAX_PIECES)
}

/// The files that one of `size` bytes was cut into (DSP0243, 7.1): one at least.
fn chunks(href: &str, chunk: u64, size: Option<u64>) -> impl Iterator<Item = String> {
    let count = size.unwrap_or(1).div_ceil(chunk.max(1));
    (0..count.clamp(1, MAX_PIECES as u64)).map(move |number| format!("{href}.{number:09}"))
}

/// The VM that a manifest speaks of which is otherwise wrong: whoever wrote it polls for that name.
pub(super) fn name_in_manifest(path: &Path) -> Option<String> {
    let bytes = read(path, manifest::MAX_BYTES).ok()?;
    let value: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    let name = value.pointer("/source/vm_name")?;
    name.as_str().map(str::to_owned)
}

fn read(path: &Path, limit_bytes: u64) -> Result<Vec<u8>> {
    let volume = crate::durable::HostVolume;
    crate::durable::Volume::read(&volume, path, limit_bytes)?.ok_or_else(|| {
        let gone = std::io::Error::from_raw_os_error(nix::libc::ENOENT);
        Error::io("open", path, gone)
    })
}

fn is_descriptor_file(path: &Path) -> bool {
    head(path, 64).is_ok_and(|head| candidate::is_descriptor(&head))
}

/// The first bytes of a regular file, never following a link.
pub fn head(path: &Path, limit_bytes: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(limit_bytes).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Opens a regular file for reading, never following a link or waiting for a pipe.
pub fn open(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(std::io::Error::from(std::io::ErrorKind::InvalidInput))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_name_their_pieces_and_nothing_outside() {
        let top = tempfile::tempdir().unwrap();
        let queue = top.path().to_path_buf();
        let output = Path::new("/out");
        let scope = Scope {
            base: &queue,
            queue: &queue,
            output,
        };
        std::fs::write(
            queue.join("vm.vmdk"),
            "# Disk DescriptorFile\nRW 1 FLAT \"vm-flat.vmdk\" 0\nRW 1 FLAT \"/etc/shadow\" 0\n\
             RW 1 FLAT \"../x\" 0\nRW 1 FLAT \".processing/y\" 0\nRW 1 FLAT \"a\0b\" 0\n",
        )
        .unwrap();
        assert_eq!(scope.pieces("vm.vmdk").unwrap().names, ["vm-flat.vmdk"]);

        std::fs::write(
            queue.join("a.ovf"),
            r#"<Envelope xmlns:ovf="o"><References><File ovf:href="a-1.vmdk"/></References>
               <VirtualSystem ovf:id="x"><Name>App</Name></VirtualSystem></Envelope>"#,
        )
        .unwrap();
        let pieces = scope.pieces("a.ovf").unwrap();
        assert_eq!(pieces.names, ["a-1.vmdk"]);
        assert_eq!(pieces.optional, ["a.mf", "a.cert"]);
        assert_eq!(pieces.vm_name.as_deref(), Some("App"));
        std::fs::write(
            queue.join("b.ovf"),
            r#"<Envelope xmlns:ovf="o"><References>
               <File ovf:href="b.vmdk" ovf:chunkSize="1000" ovf:size="2001"/>
               </References></Envelope>"#,
        )
        .unwrap();
        let names = ["b.vmdk.000000000", "b.vmdk.000000001", "b.vmdk.000000002"];
        assert_eq!(scope.pieces("b.ovf").unwrap().names, names);

        let manifest = serde_json::json!({"manifest_version": "1.0", "disks": [
            {"id": "a", "source_format": "vmdk", "bytes": 0, "local_path": "vm.vmdk"},
            {"id": "b", "source_format": "raw", "bytes": 0,
             "local_path": queue.join("sub/b.raw").to_str().unwrap(),
             "pieces": [{"local_path": "sub/b.log", "bytes": 1}, {"local_path": "/x", "bytes": 1}]},
            {"id": "c", "source_format": "raw", "bytes": 0, "local_path": "/etc/shadow"}],
            "output": {"directory": "/out/site-a"}});
        std::fs::write(queue.join("m.json"), manifest.to_string()).unwrap();
        let pieces = scope.pieces("m.json").unwrap();
        assert_eq!(
            pieces.names,
            ["sub/b.log", "sub/b.raw", "vm-flat.vmdk", "vm.vmdk"]
        );
        assert_eq!(pieces.place.as_deref(), Some("site-a"));

        let mut ova = vec![0; 512];
        let xml = std::fs::read(queue.join("a.ovf")).unwrap();
        ova[..5].copy_from_slice(b"a.ovf");
        ova[124..136].copy_from_slice(format!("{:011o} ", xml.len()).as_bytes());
        ova[257..262].copy_from_slice(b"ustar");
        ova.extend(&xml);
        std::fs::write(queue.join("a.ova"), ova).unwrap();
        let pieces = scope.pieces("a.ova").unwrap();
        assert_eq!(pieces.vm_name.as_deref(), Some("App"));
        assert!(pieces.names.is_empty() && pieces.optional.is_empty());

        let bomb = "<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>";
        std::fs::write(queue.join("bomb.ovf"), bomb).unwrap();
        assert!(scope.pieces("bomb.ovf").is_err());
    }
}
