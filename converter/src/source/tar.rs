//! Lists a tar archive by position (POSIX.1 ustar and pax, GNU long names and sparse files).
//!
//! Only regular files are members. A link, a device or a name that comes twice is an error: an OVA
//! has none, and what they would mean is not ours to guess.
use std::collections::BTreeMap;
use std::path::Path;

use super::wrapper::Unpacker;
use crate::disk::{Window, corrupt, unsupported};
use crate::error::{Error, Result};

const BLOCK: usize = 512;
const MAX_MEMBERS: usize = 1024;
/// Of a pax header or a GNU long name.
const MAX_EXTENSION_BYTES: u64 = 64 * 1024;
/// Stored pieces of one sparse file.
const MAX_PIECES: usize = 1 << 20;
/// A sparse file's map in a header and in the blocks behind it: where it is, how many entries, and
/// the byte that says that another block follows (GNU tar manual, "Storing Sparse Files").
const MAP_IN_HEADER: (usize, usize, usize) = (386, 4, 482);
const MAP_IN_BLOCK: (usize, usize, usize) = (0, 21, 504);
const REAL_SIZE: std::ops::Range<usize> = 483..495;

type Header = [u8; BLOCK];

/// A regular file of an archive.
pub(super) struct Member {
    /// Its bytes as they are stored.
    window: Window,
    sparse: Option<Sparse>,
}

/// What of a file is stored: where each piece belongs, and its length.
struct Sparse {
    length_bytes: u64,
    pieces: Vec<(u64, u64)>,
}

impl Member {
    /// The file's bytes; one with holes is laid out first.
    pub(super) fn window(&self, unpacker: &Unpacker<'_>) -> Result<Window> {
        let Some(sparse) = &self.sparse else {
            return Ok(self.window.clone());
        };
        let mut pieces = Vec::with_capacity(sparse.pieces.len());
        let mut from = 0;
        for (at, length_bytes) in &sparse.pieces {
            let piece = self.window.part("piece", from, *length_bytes);
            let piece = piece.ok_or_else(|| {
                let what = format!("truncated: a sparse file's piece for offset {at} is cut");
                corrupt(self.window.path(), what)
            })?;
            pieces.push((*at, piece));
            from = from.saturating_add(*length_bytes);
        }
        unpacker.spread(&self.window, sparse.length_bytes, &pieces)
    }
}

/// The members by their names.
pub(super) fn members(archive: &Window) -> Result<BTreeMap<String, Member>> {
    let mut members = BTreeMap::new();
    let mut walk = Walk {
        archive,
        offset_bytes: 0,
        name: None,
        size: None,
    };
    while let Some((name, member)) = walk.next_member()? {
        if members.len() >= MAX_MEMBERS {
            return Err(corrupt(
                archive.path(),
                "the archive has more than 1024 members",
            ));
        }
        if members.insert(name.clone(), member).is_some() {
            return Err(Error::invalid(format!(
                "{}: the member {name:?} appears twice",
                archive.path().display()
            ))
            .with_remedy("build the OVA again with each file once"));
        }
    }
    Ok(members)
}

struct Walk<'a> {
    archive: &'a Window,
    offset_bytes: u64,
    /// What extension headers said of the next member.
    name: Option<String>,
    size: Option<u64>,
}

impl Walk<'_> {
    fn next_member(&mut self) -> Result<Option<(String, Member)>> {
        loop {
            let Some(header) = self.next_header()? else {
                return Ok(None);
            };
            let kind = header.get(156).copied().unwrap_or(0);
            let stated = number(header.get(124..136).unwrap_or_default());
            let size = match kind {
                b'x' | b'g' | b'L' | b'K' => stated,
                _ => self.size.take().or(stated),
            };
            let at = self.offset_bytes - BLOCK as u64;
            let size = size.ok_or_else(|| self.damaged(at, "has no valid size"))?;
            let sparse = (kind == b'S')
                .then(|| self.read_map(at, &header))
                .transpose()?;
            let content = self.offset_bytes;
            self.offset_bytes = size
                .checked_next_multiple_of(BLOCK as u64)
                .and_then(|padded| content.checked_add(padded))
                .filter(|_| content + size <= self.archive.length_bytes())
                .ok_or_else(|| {
                    let what = format!("claims {size} bytes, more than the file has left");
                    self.damaged(at, &what)
                })?;
            match kind {
                b'0' | b'7' | b'S' | 0 => {
                    let (name, window) = self.member(&header, content, size)?;
                    return Ok(Some((name, Member { window, sparse })));
                }
                b'5' | b'g' => self.name = None,
                b'x' => self.read_pax(at, content, size)?,
                b'L' => self.name = Some(self.read_long_name(at, content, size)?),
                _ => {
                    return Err(Error::invalid(format!(
                        "{}: the member {:?} is a link or a device",
                        self.archive.path().display(),
                        plain_name(&header)
                    ))
                    .with_remedy("an OVA holds regular files only; build it again without"));
                }
            }
        }
    }

    /// The next header; `None` at the end of the archive.
    fn next_header(&mut self) -> Result<Option<Header>> {
        if self.offset_bytes >= self.archive.length_bytes() {
            return Ok(None);
        }
        let mut header = [0; BLOCK];
        self.archive.read_exact_at(&mut header, self.offset_bytes)?;
        if header.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if number(header.get(148..156).unwrap_or_default()) != Some(checksum(&header)) {
            return Err(self.damaged(self.offset_bytes, "does not match its checksum"));
        }
        self.offset_bytes += BLOCK as u64;
        Ok(Some(header))
    }

    fn member(&mut self, header: &Header, content: u64, size: u64) -> Result<(String, Window)> {
        let name = self.name.take().unwrap_or_else(|| plain_name(header));
        let name = name
            .trim_start_matches("./")
            .trim_start_matches('/')
            .to_owned();
        let window = self
            .archive
            .part(&name, content, size)
            .ok_or_else(|| self.damaged(content, "lies outside"))?;
        Ok((name, window))
    }

    /// The map of a sparse file, which begins in its header; the content follows it.
    fn read_map(&mut self, at: u64, header: &Header) -> Result<Sparse> {
        let length_bytes = number(header.get(REAL_SIZE).unwrap_or_default());
        let length_bytes = length_bytes.ok_or_else(|| self.damaged(at, "has no real size"))?;
        let mut sparse = Sparse {
            length_bytes,
            pieces: Vec::new(),
        };
        let mut more = self.read_pieces(at, header, MAP_IN_HEADER, &mut sparse)?;
        while more {
            let mut block = [0; BLOCK];
            self.archive.read_exact_at(&mut block, self.offset_bytes)?;
            self.offset_bytes += BLOCK as u64;
            more = self.read_pieces(at, &block, MAP_IN_BLOCK, &mut sparse)?;
        }
        Ok(sparse)
    }

    /// True if the map goes on in another block.
    fn read_pieces(
        &self,
        at: u64,
        block: &Header,
        (start, entries, more_at): (usize, usize, usize),
        sparse: &mut Sparse,
    ) -> Result<bool> {
        let mut end = sparse
            .pieces
            .last()
            .map_or(0, |(at, length)| at.saturating_add(*length));
        let map = block.get(start..).unwrap_or_default();
        for entry in map.chunks_exact(24).take(entries) {
            let (offset, length) = entry.split_at(12);
            if offset.first() == Some(&0) {
                break;
            }
            let piece = number(offset).zip(number(length));
            let sound = piece.filter(|(offset, length)| {
                *offset >= end
                    && offset
                        .checked_add(*length)
                        .is_some_and(|end| end <= sparse.length_bytes)
            });
            let Some((offset, length)) = sound else {
                return Err(self.damaged(at, "has a map of a sparse file that is not sound"));
            };
            if sparse.pieces.len() >= MAX_PIECES {
                return Err(self.damaged(at, "has a sparse file of too many pieces"));
            }
            end = offset + length;
            sparse.pieces.push((offset, length));
        }
        Ok(block.get(more_at).is_some_and(|more| *more != 0))
    }

    /// `<length> <key>=<value>\n` records; only `path` and `size` matter.
    fn read_pax(&mut self, at: u64, content: u64, size: u64) -> Result<()> {
        let bytes = self.read_extension(at, content, size)?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (record, after) =
                pax_record(rest).ok_or_else(|| self.damaged(at, "has a broken pax record"))?;
            if let Some(path) = record.strip_prefix(b"path=") {
                self.name = Some(String::from_utf8_lossy(path).into_owned());
            } else if let Some(size) = record.strip_prefix(b"size=") {
                let size = std::str::from_utf8(size)
                    .ok()
                    .and_then(|text| text.parse().ok());
                let size = size.ok_or_else(|| self.damaged(at, "has a broken pax size"))?;
                self.size = Some(size);
            }
            if record.starts_with(b"GNU.sparse.") {
                let what = format!("a sparse file in the pax form (tar header at offset {at})");
                return Err(unsupported(self.archive.path(), what)
                    .with_remedy("build the archive with `tar --format=oldgnu -S`"));
            }
            rest = after;
        }
        Ok(())
    }

    fn read_long_name(&self, at: u64, content: u64, size: u64) -> Result<String> {
        let bytes = self.read_extension(at, content, size)?;
        Ok(text(&bytes))
    }

    fn read_extension(&self, at: u64, content: u64, size: u64) -> Result<Vec<u8>> {
        if size > MAX_EXTENSION_BYTES {
            return Err(self.damaged(at, &format!("is an extension of {size} bytes")));
        }
        self.archive.read_vec(content, size as usize)
    }

    fn damaged(&self, at: u64, what: &str) -> Error {
        let path: &Path = self.archive.path();
        corrupt(path, format!("the tar header at offset {at} {what}"))
    }
}

/// The first record without its length and newline, and what follows it.
fn pax_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(bytes.get(..space)?)
        .ok()?
        .parse()
        .ok()?;
    let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    Some((record, bytes.get(length..)?))
}

/// The name of a header, with the prefix of ustar.
fn plain_name(header: &Header) -> String {
    let name = text(header.get(..100).unwrap_or_default());
    let is_posix = header.get(257..263) == Some(b"ustar\0");
    let prefix = text(header.get(345..500).unwrap_or_default());
    if is_posix && !prefix.is_empty() {
        format!("{prefix}/{name}")
    } else {
        name
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

/// A number field: octal digits, or base 256 where the first bit is set (GNU).
fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // A second bit would make it negative.
        let start = u64::from(first & 0x7f);
        return rest.iter().try_fold(start, |sum, byte| {
            sum.checked_mul(256)?.checked_add((*byte).into())
        });
    }
    let digits = std::str::from_utf8(field).ok()?;
    let digits = digits.trim_matches(|c: char| c == '\0' || c == ' ');
    u64::from_str_radix(digits, 8).ok()
}

/// The sum of the header's bytes, its own field counted as spaces.
fn checksum(header: &Header) -> u64 {
    header
        .iter()
        .enumerate()
        .map(|(at, byte)| {
            u64::from(if (148..156).contains(&at) {
                b' '
            } else {
                *byte
            })
        })
        .sum()
}
