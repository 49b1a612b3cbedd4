//! OVF packages: the descriptor, its `.mf` and its disks, in a directory or in an OVA.
//!
//! An OVA is never unpacked: its members are windows on the archive.
use std::collections::BTreeMap;
use std::path::Path;

use queue::roots::Roots;

use super::content::{Claim, open_disk};
use super::ovf::{self, MemberDigest, Ovf, OvfDisk};
use super::{Appliance, Lookup, SourceDisk, file_name, tar};
use crate::disk::{Algorithm, Checksum, Window, corrupt, unsupported};
use crate::error::{Error, Result};

const MAX_OVF_BYTES: u64 = 10 * 1024 * 1024;
const MAX_DIGESTS_BYTES: u64 = 1024 * 1024;

/// Opens an OVF with its files around it.
pub(super) fn open_ovf(
    roots: &Roots,
    descriptor: &Window,
    lookup: Lookup<'_>,
    checksum: bool,
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
        digests: digests.as_ref().filter(|_| checksum),
        lookup,
    };
    package.open()
}

/// Opens an OVA: the one OVF in it and the members that it names.
pub(super) fn open_ova(archive: &Window, checksum: bool) -> Result<Appliance> {
    let members = tar::members(archive)?;
    let (name, descriptor) = only_descriptor(archive, &members)?;
    let digests = members.get(&format!("{}.mf", stem(name)));
    let lookup = |name: &str| {
        let plain = name.trim_start_matches("./");
        members.get(plain).cloned().ok_or_else(|| {
            Error::invalid(format!(
                "{}: its OVF names {name:?}, which is not a member",
                archive.path().display()
            ))
            .with_remedy("export the VM again; the OVA is not whole")
        })
    };
    let package = Package {
        name: name.to_owned(),
        descriptor,
        digests: digests.filter(|_| checksum),
        lookup: &lookup,
    };
    package.open()
}

fn only_descriptor<'a>(
    archive: &Window,
    members: &'a BTreeMap<String, Window>,
) -> Result<(&'a str, &'a Window)> {
    let mut found = members
        .iter()
        .filter(|(name, _)| name.to_ascii_lowercase().ends_with(".ovf"));
    let path = archive.path().display();
    let (name, window) = found.next().ok_or_else(|| {
        Error::invalid(format!("{path} is a tar archive without an OVF in it"))
            .with_remedy("an OVA holds one .ovf and the disks that it names")
    })?;
    if let Some((other, _)) = found.next() {
        return Err(Error::invalid(format!(
            "{path} has two OVF members, {name:?} and {other:?}"
        ))
        .with_remedy("export each VM as an OVA of its own"));
    }
    Ok((name, window))
}

struct Package<'a> {
    name: String,
    descriptor: &'a Window,
    /// The `.mf`, if its digests are to be verified.
    digests: Option<&'a Window>,
    lookup: Lookup<'a>,
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
            mut notes,
        } = ovf::parse(&bytes).map_err(|error| self.at_descriptor(error))?;
        let mut disks = Vec::with_capacity(named.len());
        for disk in &named {
            disks.push(self.open_disk(disk, &digests, &mut notes)?);
        }
        Ok(Appliance {
            machine,
            disks,
            notes,
        })
    }

    /// Parsers take bytes: which file they were is added here.
    fn at_descriptor(&self, mut error: Error) -> Error {
        error.context = format!("{}: {}", self.descriptor.path().display(), error.context);
        error
    }

    fn read_digests(&self) -> Result<Vec<MemberDigest>> {
        let Some(window) = self.digests else {
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
        if let Some(method) = &named.compression {
            let what = format!("the disk {:?}, compressed with {method:?},", named.href);
            return Err(unsupported(path, what)
                .with_remedy("export it again without compressing the files"));
        }
        if named.chunk_size_bytes.is_some() {
            let what = format!("the disk {:?}, cut into chunks,", named.href);
            return Err(unsupported(path, what).with_remedy("export it again without chunks"));
        }
        if named.href.contains("://") {
            let what = format!("the remote disk {:?}", named.href);
            return Err(unsupported(path, what).with_remedy("download it and name the file"));
        }
        // A URI, in practice often written as a plain name: the name as it stands comes first.
        let (name, window) = match (self.lookup)(&named.href) {
            Ok(window) => (named.href.clone(), window),
            Err(error) => match percent_decoded(&named.href) {
                Some(name) => {
                    let window = (self.lookup)(&name)?;
                    (name, window)
                }
                None => return Err(error),
            },
        };
        let checksums = self.checksums(digests, &name, &window);
        if self.digests.is_some() && checksums.is_empty() {
            notes.push(format!("the package's .mf has no digest of {name:?}"));
        }
        let claim = Claim::by_name(&name);
        let mut disk = open_disk(window, &name, &claim, self.lookup)?;
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

/// `None` if nothing is encoded, or not as UTF-8.
fn percent_decoded(text: &str) -> Option<String> {
    let (first, rest) = text.split_once('%')?;
    let mut bytes = first.as_bytes().to_vec();
    for part in rest.split('%') {
        let (hex, plain) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(hex, 16).ok()?);
        bytes.extend(plain.as_bytes());
    }
    String::from_utf8(bytes).ok()
}
