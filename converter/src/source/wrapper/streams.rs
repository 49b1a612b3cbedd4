//! Compressed streams: gzip (RFC 1952), xz (The .xz File Format 1.2), zstd (RFC 8878).
//!
//! Several streams may follow each other, and zeros may follow a gzip or xz stream (padding);
//! anything else behind the last one is an error. Checksums are the decoders' to verify.
use std::io::{self, BufRead, Read};
use std::path::Path;

use flate2::bufread::GzDecoder;
use liblzma::bufread::XzDecoder;
use liblzma::stream::{Error as XzError, Stream, TELL_UNSUPPORTED_CHECK};

use super::Wrapper;
use super::staged::{Staged, go_on};
use crate::disk::{Observer, Window, corrupt, unsupported};
use crate::error::{Error, Result};

const BUFFER_BYTES: u64 = 1 << 20;
/// What a decoder may take, however large a dictionary its stream claims; xz -9 needs 65 MiB.
const XZ_MEMORY_BYTES: u64 = 256 << 20;
/// zstd reads windows of at most 128 MiB unless it is told otherwise; so do we.
const ZSTD_TOO_LARGE: &str = "too much memory";
const MAGIC_BYTES: usize = 6;

/// Files that are read one after the other.
pub(super) struct Stored<'a> {
    windows: &'a [Window],
    observer: &'a dyn Observer,
    /// Where the buffer begins.
    buffer_at: u64,
    buffer: Vec<u8>,
    /// Of the buffer, what was read.
    taken: usize,
}

impl<'a> Stored<'a> {
    pub(super) fn new(windows: &'a [Window], observer: &'a dyn Observer) -> Self {
        Self {
            windows,
            observer,
            buffer_at: 0,
            buffer: Vec::new(),
            taken: 0,
        }
    }

    pub(super) fn length_bytes(&self) -> u64 {
        let bytes = |sum: u64, window: &Window| sum.saturating_add(window.length_bytes());
        self.windows.iter().fold(0, bytes)
    }

    pub(super) fn path(&self) -> &Path {
        self.windows.first().map_or(Path::new(""), Window::path)
    }

    pub(super) fn copy(&mut self, staged: &mut Staged<'_>) -> Result<()> {
        staged
            .append(self)
            .map_err(|error| unwrap_error(error, |error| Error::io("read", self.path(), error)))
    }

    fn position(&self) -> u64 {
        self.buffer_at.saturating_add(self.taken as u64)
    }

    /// At most `most_bytes` from `at` on, within one file; none at the end.
    fn read_from(&self, at: u64, most_bytes: u64) -> Result<Vec<u8>> {
        let mut within = at;
        for window in self.windows {
            let left_bytes = window.length_bytes().saturating_sub(within);
            if left_bytes > 0 {
                return window.read_vec(within, most_bytes.min(left_bytes) as usize);
            }
            within = within.saturating_sub(window.length_bytes());
        }
        Ok(Vec::new())
    }

    /// The next bytes, as many as a magic number has or as there are.
    fn peek(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while bytes.len() < MAGIC_BYTES {
            let at = self.position().saturating_add(bytes.len() as u64);
            let more = self.read_from(at, (MAGIC_BYTES - bytes.len()) as u64)?;
            if more.is_empty() {
                break;
            }
            bytes.extend(more);
        }
        Ok(bytes)
    }

    /// Passes zeros; how many there were.
    fn skip_zeros(&mut self) -> Result<u64> {
        let from = self.position();
        loop {
            let bytes = self.fill()?;
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            let is_over = zeros < bytes.len() || bytes.is_empty();
            self.consume(zeros);
            if is_over {
                return Ok(self.position().saturating_sub(from));
            }
        }
    }

    fn fill(&mut self) -> Result<&[u8]> {
        if self.taken >= self.buffer.len() {
            go_on(self.observer)?;
            self.buffer_at = self.position();
            self.taken = 0;
            self.buffer = self.read_from(self.buffer_at, BUFFER_BYTES)?;
            self.observer.advance(self.buffer.len() as u64);
        }
        Ok(self.buffer.get(self.taken..).unwrap_or_default())
    }
}

impl Read for Stored<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(out)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Stored<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.fill().map_err(io::Error::other)
    }

    fn consume(&mut self, count: usize) {
        self.taken = self.taken.saturating_add(count).min(self.buffer.len());
    }
}

impl Wrapper {
    /// Unpacks every stream of `stored`, to its end.
    pub(super) fn unpack(self, stored: &mut Stored<'_>, staged: &mut Staged<'_>) -> Result<()> {
        if !self.begins(&stored.peek()?) {
            let what = format!("it is said to be {self}, but does not begin as one");
            return Err(corrupt(stored.path(), what));
        }
        loop {
            let start = stored.position();
            let unpacked = self.unpack_stream(stored, staged);
            if let Err(error) = unpacked {
                let damage = |error| self.damage(stored, start, error);
                return Err(unwrap_error(error, damage));
            }
            if !self.goes_on(stored)? {
                return Ok(());
            }
        }
    }

    fn unpack_stream(self, stored: &mut Stored<'_>, staged: &mut Staged<'_>) -> io::Result<()> {
        match self {
            Self::Gzip => staged.append(&mut GzDecoder::new(stored)),
            Self::Xz => {
                let stream = Stream::new_stream_decoder(XZ_MEMORY_BYTES, TELL_UNSUPPORTED_CHECK)?;
                staged.append(&mut XzDecoder::new_stream(stored, stream))
            }
            Self::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(stored)?;
                staged.append(&mut decoder.single_frame())
            }
        }
    }

    fn begins(self, bytes: &[u8]) -> bool {
        self == Self::Zstd && is_skippable(bytes) || bytes.starts_with(self.magic())
    }

    pub(in crate::source) fn magic(self) -> &'static [u8] {
        match self {
            Self::Gzip => b"\x1f\x8b\x08",
            Self::Xz => b"\xfd7zXZ\0",
            Self::Zstd => b"\x28\xb5\x2f\xfd",
        }
    }

    /// Behind a stream: whether another one follows.
    fn goes_on(self, stored: &mut Stored<'_>) -> Result<bool> {
        let end = stored.position();
        let zeros = match self {
            Self::Zstd => 0,
            _ => stored.skip_zeros()?,
        };
        let next = stored.peek()?;
        let is_whole = self != Self::Xz || zeros.is_multiple_of(4);
        if is_whole && (next.is_empty() || self.begins(&next)) {
            return Ok(!next.is_empty());
        }
        let what = format!("the {self} stream ends at offset {end}, but other bytes follow it");
        Err(corrupt(stored.path(), what))
    }

    fn damage(self, stored: &Stored<'_>, start: u64, error: io::Error) -> Error {
        let (path, at) = (stored.path(), stored.position());
        let xz = error
            .get_ref()
            .and_then(|below| below.downcast_ref::<XzError>());
        if matches!(xz, Some(XzError::MemLimit)) {
            let what = format!("an xz stream (at offset {start}) that takes more than 256 MiB");
            return unsupported(path, what).with_remedy("compress it with xz -9 or less");
        }
        if matches!(xz, Some(XzError::UnsupportedCheck | XzError::Options)) {
            let what = format!("an xz stream (at offset {start}) of such a filter or check");
            return unsupported(path, what).with_remedy("compress it with plain xz");
        }
        if error.to_string().contains(ZSTD_TOO_LARGE) {
            let what = format!("a zstd frame (at offset {start}) with a window above 128 MiB");
            return unsupported(path, what).with_remedy("compress it without --long or --ultra");
        }
        if error.kind() == io::ErrorKind::UnexpectedEof {
            let what = format!(
                "truncated: the {self} stream that begins at offset {start} does not end in the \
                 {} bytes of the file",
                stored.length_bytes()
            );
            return corrupt(path, what);
        }
        let what = format!(
            "the {self} stream that begins at offset {start} is damaged at or before offset {at}"
        );
        corrupt(path, what).with_source(error)
    }
}

/// A frame that holds nothing of the content (RFC 8878, 3.1.2); pzstd begins with one.
pub(in crate::source) fn is_skippable(bytes: &[u8]) -> bool {
    matches!(bytes, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// Our own error, if one came through a decoder; what else it is `otherwise` says.
fn unwrap_error(error: io::Error, otherwise: impl FnOnce(io::Error) -> Error) -> Error {
    error.downcast::<Error>().unwrap_or_else(otherwise)
}
