//! OVF packages: the descriptor, its `.mf` and its disks, in a directory or in an OVA.
//!
//! An OVA is never unpacked: its members are windows on the archive.
use std::collections::BTreeMap;
use std::path::Path;

use queue::arrival::ovf::{self, MemberDigest, Ovf, OvfDisk};
use queue::roots::Roots;

use super::content::{Claim, open_disk, open_opened, open_plain};
use super::tar::{self, Member};
use super::wrapper::Wrapper;
use super::{Appliance, Lookup, PackageFacts, SourceDisk, Unpacker, file_name};
use crate::disk::{Algorithm, Checksum, Window, brief, corrupt, unsupported};
use crate::error::{Error, Result};

const MAX_OVF_BYTES: u64 = 10 * 1024 * 1024;
const MAX_DIGESTS_BYTES: u64 = 1024 * 1024;
/// Chunks of one disk; their names have nine digits.
const MAX_CHUNKS: u64 = 4096;

/// Opens an OVF with its files around it.
pub(super) fn open_ovf(
    roots: &Roots,
    descriptor: &Window,
    lookup: Lookup<'_>,
    checksum: bool,
    unpacker: &Unpacker<'_>,
) -> Result<Appliance> {
    let path = descriptor.path().with_extension("mf");
    let digests = match roots.open_path(&path) {
        Ok((file, path)) => Some(Window::whole(file, &path)?),
        Err(error) if error.os_error() == Some(nix::libc::ENOENT) => None,
        Err(error) => return Err(error),
    };
    let package = Package {
        name: file_name(descriptor.path()),
        descriptor,
        digests: digests.as_ref(),
        checksum,
        lookup,
        unpacker,
    };
    package.open()
}

/// Opens an OVA: the one OVF in it and the members that it names.
pub(super) fn open_ova(
    archive: &Window,
    checksum: bool,
    unpacker: &Unpacker<'_>,
) -> Result<Appliance> {
    let members = tar::members(archive)?;
    let (name, descriptor) = only_descriptor(archive, &members)?;
    let descriptor = descriptor.window(unpacker)?;
    let digests = members
        .get(&format!("{}.mf", stem(name)))
        .map(|digests| digests.window(unpacker))
        .transpose()?;
    let lookup = |name: &str| {
        let plain = name.trim_start_matches("./");
        let member = members.get(plain).ok_or_else(|| {
            Error::invalid(format!(
                "{}: its OVF names {name:?}, which is not a member",
                archive.path().display()
            ))
            .with_remedy("export the VM again; the OVA is not whole")
        })?;
        member.window(unpacker)
    };
    let package = Package {
        name: name.to_owned(),
        descriptor: &descriptor,
        digests: digests.as_ref(),
        checksum,
        lookup: &lookup,
        unpacker,
    };
    package.open()
}

/// Whether the archive has an OVF in it.
pub(super) fn has_descriptor(archive: &Window) -> Result<bool> {
    Ok(tar::members(archive)?
        .keys()
        .any(|name| is_descriptor(name)))
}

/// Opens the disk that is alone in an archive: `disk.raw`, as Google Compute Engine exports it.
pub(super) fn open_lone_disk(archive: &Window, unpacker: &Unpacker<'_>) -> Result<SourceDisk> {
    let members = tar::members(archive)?;
    let mut members = members.iter();
    let (Some((name, member)), None) = (members.next(), members.next()) else {
        let path = archive.path().display();
        return Err(Error::invalid(format!(
            "{path} is a tar archive with neither an OVF nor a single disk in it"
        ))
        .with_remedy("give an OVA, or an archive that holds one disk image only"));
    };
    let window = member.window(unpacker)?;
    let nothing = |reference: &str| {
        let path = archive.path().display();
        Err(
            Error::invalid(format!("{path}: the disk in it names {reference:?}"))
                .with_remedy("give the disk with all of its files, not packed"),
        )
    };
    open_plain(window, name, &Claim::by_name(name), &nothing)
}

fn is_descriptor(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with(".ovf")
}

fn only_descriptor<'a>(
    archive: &Window,
    members: &'a BTreeMap<String, Member>,
) -> Result<(&'a str, &'a Member)> {
    let mut found = members.iter().filter(|(name, _)| is_descriptor(name));
    let path = archive.path().display();
    let (name, member) = found.next().ok_or_else(|| {
        Error::invalid(format!("{path} is a tar archive without an OVF in it"))
            .with_remedy("an OVA holds one .ovf and the disks that it names")
    })?;
    if let Some((other, _)) = found.next() {
        return Err(Error::invalid(format!(
            "{path} has two OVF members, {name:?} and {other:?}"
        ))
        .with_remedy("export each VM as an OVA of its own"));
    }
    Ok((name, member))
}

struct Package<'a> {
    name: String,
    descriptor: &'a Window,
    /// The `.mf`, and whether its digests are to be verified.
    digests: Option<&'a Window>,
    checksum: bool,
    lookup: Lookup<'a>,
    unpacker: &'a Unpacker<'a>,
}

impl Package<'_> {
    fn open(&self) -> Result<Appliance> {
        let digests = self.read_digests()?;
        for checksum in self.checksums(&digests, &self.name, self.descriptor) {
            checksum.verify(&|| true)?;
        }
        let bytes = read_text(self.descriptor, MAX_OVF_BYTES)?;
        let Ovf {
            machine,
            disks: named,
            system_type,
            mut notes,
        } = ovf::parse(&bytes).map_err(|error| self.at_descriptor(error))?;
        let mut disks = Vec::with_capacity(named.len());
        for disk in &named {
            disks.push(self.open_disk(disk, &digests, &mut notes)?);
        }
        let facts = PackageFacts {
            descriptor: self.name.clone(),
            digests: self.digests.map(|window| file_name(window.path())),
            system_type: system_type.as_deref().map(brief),
        };
        Ok(Appliance {
            machine,
            disks,
            package: Some(facts),
            notes,
        })
    }

    /// Parsers take bytes: which file they were is added here.
    fn at_descriptor(&self, mut error: Error) -> Error {
        error.context = format!("{}: {}", self.descriptor.path().display(), error.context);
        error
    }

    fn read_digests(&self) -> Result<Vec<MemberDigest>> {
        let Some(window) = self.digests.filter(|_| self.checksum) else {
            return Ok(Vec::new());
        };
        let bytes = read_text(window, MAX_DIGESTS_BYTES)?;
        ovf::parse_digests(&bytes).map_err(|mut error| {
            error.context = format!("{}: {}", window.path().display(), error.context);
            error
        })
    }

    fn checksums(&self, digests: &[MemberDigest], name: &str, window: &Window) -> Vec<Checksum> {
        let stated_by = self.digests.map(|window| file_name(window.path()));
        digests
            .iter()
            .filter(|digest| digest.name == name)
            .map(|digest| Checksum {
                window: window.clone(),
                algorithm: match digest.algorithm {
                    ovf::Algorithm::Sha1 => Algorithm::Sha1,
                    ovf::Algorithm::Sha256 => Algorithm::Sha256,
                    ovf::Algorithm::Sha512 => Algorithm::Sha512,
                },
                hex: digest.hex.clone(),
                stated_by: stated_by.clone().unwrap_or_default(),
            })
            .collect()
    }

    fn open_disk(
        &self,
        named: &OvfDisk,
        digests: &[MemberDigest],
        notes: &mut Vec<String>,
    ) -> Result<SourceDisk> {
        let path = self.descriptor.path();
        if named.href.contains("://") {
            let what = format!("the remote disk {:?}", named.href);
            return Err(unsupported(path, what).with_remedy("download it and name the file"));
        }
        let wrapper = self.wrapper(named)?;
        let (name, pieces) = self.pieces(named)?;
        let mut checksums = Vec::new();
        for (name, window) in &pieces {
            let found = self.checksums(digests, name, window);
            if self.checksum && self.digests.is_some() && found.is_empty() {
                notes.push(format!("the package's .mf has no digest of {name:?}"));
            }
            checksums.extend(found);
        }
        let stored: Vec<Window> = pieces.into_iter().map(|(_, window)| window).collect();
        let mut disk = self.open_stored(&name, &stored, wrapper)?;
        if let Some(bytes) = named
            .capacity_bytes
            .filter(|bytes| *bytes != disk.capacity_bytes)
        {
            let actual = disk.capacity_bytes;
            notes.push(format!(
                "the OVF says that {name:?} holds {bytes} bytes; it holds {actual}"
            ));
        }
        disk.bus.clone_from(&named.bus);
        disk.checksums = checksums;
        Ok(disk)
    }
}

impl Package<'_> {
    fn wrapper(&self, named: &OvfDisk) -> Result<Option<Wrapper>> {
        match named.compression.as_deref() {
            None => Ok(None),
            Some(method) if method.eq_ignore_ascii_case("gzip") => Ok(Some(Wrapper::Gzip)),
            Some(method) => {
                let what = format!("the disk {:?}, compressed with {method:?},", named.href);
                let error = unsupported(self.descriptor.path(), what);
                Err(error.with_remedy("export it again without compressing the files"))
            }
        }
    }

    /// The disk's name and its files: one, or the chunks that it was cut into, in their order.
    fn pieces(&self, named: &OvfDisk) -> Result<(String, Vec<(String, Window)>)> {
        let Some(chunk_bytes) = named.chunk_size_bytes else {
            let (name, window) = self.find(&named.href)?;
            return Ok((name.clone(), vec![(name, window)]));
        };
        let mut chunks: Vec<(String, Window)> = Vec::new();
        let mut length_bytes = 0u64;
        for number in 0..MAX_CHUNKS {
            // The size says how many there are; without one, what is there is all.
            let is_over = named.size_bytes.map(|size| length_bytes >= size);
            if is_over == Some(true) {
                break;
            }
            match self.find(&format!("{}.{number:09}", named.href)) {
                Ok(chunk) => {
                    length_bytes = length_bytes.saturating_add(chunk.1.length_bytes());
                    chunks.push(chunk);
                }
                Err(_) if is_over.is_none() && number > 0 => break,
                Err(error) => return Err(error),
            }
        }
        let whole = chunks.split_last().is_some_and(|((_, last), others)| {
            last.length_bytes() <= chunk_bytes
                && others
                    .iter()
                    .all(|(_, chunk)| chunk.length_bytes() == chunk_bytes)
        });
        if !whole || named.size_bytes.is_some_and(|size| size != length_bytes) {
            let what = format!(
                "the {} chunks of {:?} with {length_bytes} bytes are not of {chunk_bytes} bytes \
                 each, or not the size that the OVF says",
                chunks.len(),
                named.href
            );
            return Err(corrupt(self.descriptor.path(), what));
        }
        let name = ovf::percent_decoded(&named.href).unwrap_or_else(|| named.href.clone());
        Ok((name, chunks))
    }

    /// A URI, in practice often written as a plain name: the name as it stands comes first.
    fn find(&self, href: &str) -> Result<(String, Window)> {
        match (self.lookup)(href) {
            Ok(window) => Ok((href.to_owned(), window)),
            Err(error) => match ovf::percent_decoded(href) {
                Some(name) => (self.lookup)(&name).map(|window| (name, window)),
                None => Err(error),
            },
        }
    }

    /// Opens what `stored` holds, put together and unpacked as the OVF says.
    fn open_stored(
        &self,
        name: &str,
        stored: &[Window],
        wrapper: Option<Wrapper>,
    ) -> Result<SourceDisk> {
        let source_bytes = stored.iter().map(Window::length_bytes).sum();
        let joined = match stored {
            [window] => window.clone(),
            pieces => self.unpacker.unpack(pieces, name, None)?,
        };
        let mut disk = match wrapper {
            Some(wrapper) => {
                let opened = self.unpacker.open_wrapped(joined, name, wrapper)?;
                let claim = Claim::by_name(&opened.name);
                open_opened(opened, name, &claim, self.lookup, self.unpacker)?
            }
            None => open_disk(joined, name, None, self.lookup, self.unpacker)?,
        };
        disk.source_bytes = source_bytes;
        Ok(disk)
    }
}

fn read_text(window: &Window, most_bytes: u64) -> Result<Vec<u8>> {
    let length_bytes = window.length_bytes();
    if length_bytes > most_bytes {
        let what = format!("{length_bytes} bytes are too long for such a file");
        return Err(corrupt(window.path(), what));
    }
    window.read_vec(0, length_bytes as usize)
}

fn stem(name: &str) -> String {
    let path = Path::new(name).with_extension("");
    path.to_string_lossy().into_owned()
}
