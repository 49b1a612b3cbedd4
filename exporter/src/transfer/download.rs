//! One file over HTTP, hashed while it arrives; interrupted ones go on where the server allows it.
//!
//! The file grows from its beginning and is never written ahead of itself, so that a reader may
//! follow it; it begins anew only where the server cannot go on, and its sink lets it.
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use super::http::{Answer, Client, Request, StatusCode, Url, header};
use super::{Algorithm, Hasher, MODE, Monitor, cancelled};
use crate::error::{Error, ErrorKind, Result};

/// Attempts in a row that bring nothing new, and attempts at all.
const FRUITLESS_ATTEMPTS: u32 = 5;
const ATTEMPTS: u32 = 100;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(50);

/// What is to be fetched, and what is known of it.
pub struct Source<'a> {
    pub url: Url,
    /// Told to the user instead of the URL.
    pub name: &'a str,
    /// Exactly, if the server has told.
    pub size_bytes: Option<u64>,
    pub algorithms: &'a [Algorithm],
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    pub size_bytes: u64,
    /// As `Source::algorithms`.
    pub checksums: Vec<String>,
}

/// Where a download goes.
pub trait Sink {
    /// Takes away what lies behind so many bytes.
    fn cut(&mut self, length_bytes: u64) -> Result<()>;
    /// Writes all of `bytes` to the end.
    fn append(&mut self, bytes: &[u8]) -> Result<()>;
    /// Nothing more comes.
    fn finish(&mut self) -> Result<()>;
}

/// A file that nobody reads before it is whole.
pub struct NewFile<'a> {
    file: File,
    path: &'a Path,
}

impl<'a> NewFile<'a> {
    pub fn create(path: &'a Path) -> Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(MODE)
            .open(path)
            .map_err(|error| Error::io("create", path, error))?;
        // Whatever the umask says: a download that the converter cannot read is none.
        file.set_permissions(std::fs::Permissions::from_mode(MODE))
            .map_err(|error| Error::io("set the mode of", path, error))?;
        Ok(Self { file, path })
    }
}

impl Sink for NewFile<'_> {
    fn cut(&mut self, length_bytes: u64) -> Result<()> {
        self.file
            .set_len(length_bytes)
            .and_then(|()| self.file.seek(SeekFrom::Start(length_bytes)))
            .map_err(|error| Error::io("set the length of", self.path, error))?;
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .map_err(|error| Error::io("write", self.path, error))
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Downloads into an empty sink.
pub fn fetch(
    client: &Client,
    source: &Source<'_>,
    sink: &mut dyn Sink,
    monitor: &dyn Monitor,
) -> Result<Fetched> {
    let mut download = Download {
        client,
        source,
        sink,
        monitor,
        hashers: Vec::new(),
        written: 0,
        farthest: 0,
        counted: 0,
        version: None,
    };
    download.begin_anew()?;
    download.run()?;
    download.sink.finish()?;
    let hashers = std::mem::take(&mut download.hashers);
    Ok(Fetched {
        size_bytes: download.written,
        checksums: hashers.into_iter().map(Hasher::finish).collect(),
    })
}

struct Download<'a> {
    client: &'a Client,
    source: &'a Source<'a>,
    sink: &'a mut dyn Sink,
    monitor: &'a dyn Monitor,
    hashers: Vec<Hasher>,
    written: u64,
    farthest: u64,
    /// What the monitor was told of.
    counted: u64,
    /// The validator that the first answer had.
    version: Option<String>,
}

impl Download<'_> {
    fn run(&mut self) -> Result<()> {
        let mut fruitless = 0;
        for attempt in 1.. {
            let before = self.farthest;
            let error = match self.attempt() {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            fruitless = if self.farthest > before {
                0
            } else {
                fruitless + 1
            };
            let is_hopeless = fruitless >= FRUITLESS_ATTEMPTS || attempt >= ATTEMPTS;
            if !error.kind.is_transient() || error.kind == ErrorKind::NoSpace || is_hopeless {
                return Err(self.explain(error, attempt));
            }
            self.monitor
                .message(&format!("{}; trying again", error.to_line()));
            pause(fruitless, self.monitor)?;
            self.monitor.message("");
        }
        Ok(())
    }

    fn explain(&self, error: Error, attempts: u32) -> Error {
        let remedy = error.remedy.clone();
        if error.kind == ErrorKind::Cancelled || attempts < 2 {
            return error;
        }
        let (name, written) = (self.source.name, self.farthest);
        let outer = Error::new(
            error.kind,
            format!("download {name}: {attempts} attempts ended at byte {written} at best"),
        )
        .with_source(error);
        match remedy {
            Some(remedy) => outer.with_remedy(remedy),
            None => outer,
        }
    }

    fn begin_anew(&mut self) -> Result<()> {
        self.written = 0;
        self.version = None;
        // What a failed write may have left behind the bytes that count goes as well.
        self.sink.cut(0)?;
        let algorithms = self.source.algorithms.iter();
        self.hashers = algorithms
            .map(|algorithm| Hasher::new(*algorithm))
            .collect();
        Ok(())
    }

    fn attempt(&mut self) -> Result<()> {
        let mut request = Request::get(self.source.url.clone());
        if self.written > 0 {
            let range = format!("bytes={}-", self.written);
            let value = header::HeaderValue::from_str(&range).map_err(|error| {
                Error::new(ErrorKind::Internal, "ask for a range").with_source(error)
            })?;
            request.headers.insert(header::RANGE, value);
        }
        let mut answer = self.client.send(request, self.monitor)?;
        let end = self.accept(&answer)?;
        while let Some(chunk) = answer.chunk(self.monitor)? {
            if self.monitor.is_cancelled() {
                return Err(cancelled());
            }
            self.take(chunk.as_ref(), end)?;
        }
        match end {
            Some(end) if self.written != end => {
                let (written, name) = (self.written, self.source.name);
                Err(Error::new(
                    ErrorKind::Io,
                    format!("{name} ended at byte {written} of {end}"),
                ))
            }
            _ => Ok(()),
        }
    }

    /// Whether the answer goes on where the file ends; if not, the file begins anew. The size that
    /// the whole must have, where anybody tells it.
    fn accept(&mut self, answer: &Answer<'_>) -> Result<Option<u64>> {
        let name = self.source.name;
        let status = answer.status();
        let range = answer
            .header(header::CONTENT_RANGE)
            .and_then(ContentRange::parse);
        let length = answer
            .header(header::CONTENT_LENGTH)
            .and_then(|text| text.parse::<u64>().ok());
        let version = answer
            .header(header::ETAG)
            .or_else(|| answer.header(header::LAST_MODIFIED))
            .map(str::to_owned);
        let told = match status {
            StatusCode::OK => {
                self.begin_anew()?;
                length
            }
            StatusCode::PARTIAL_CONTENT if self.written > 0 => match range {
                Some(range) if range.start == self.written && version == self.version => {
                    self.sink.cut(self.written)?;
                    let end = length.map(|length| self.written.saturating_add(length));
                    range.total.or(end)
                }
                // Some other part, or of something that has changed.
                _ => {
                    self.begin_anew()?;
                    return Err(Error::new(
                        ErrorKind::Io,
                        format!("{name}: the server sent another part than was asked for"),
                    ));
                }
            },
            StatusCode::RANGE_NOT_SATISFIABLE => {
                self.begin_anew()?;
                return Err(refused(name, status));
            }
            _ => return Err(refused(name, status)),
        };
        self.version = version;
        match (self.source.size_bytes, told) {
            (Some(wanted), Some(told)) if wanted != told => Err(Error::new(
                ErrorKind::Io,
                format!("{name}: the server sends {told} bytes instead of {wanted}"),
            )),
            (wanted, told) => Ok(wanted.or(told)),
        }
    }

    fn take(&mut self, bytes: &[u8], end: Option<u64>) -> Result<()> {
        let after = self.written.saturating_add(bytes.len() as u64);
        if let Some(end) = end.filter(|end| after > *end) {
            let name = self.source.name;
            return Err(Error::new(
                ErrorKind::Io,
                format!("{name}: the server sends more than {end} bytes"),
            ));
        }
        self.sink.append(bytes)?;
        for hasher in &mut self.hashers {
            hasher.update(bytes);
        }
        self.written = after;
        self.farthest = self.farthest.max(after);
        // What is fetched again counts once.
        self.monitor.advance(self.farthest - self.counted);
        self.counted = self.farthest;
        Ok(())
    }
}

pub fn refused(name: &str, status: StatusCode) -> Error {
    let kind = match status.as_u16() {
        408 | 416 | 429 | 500.. => ErrorKind::Io,
        _ => ErrorKind::Invalid,
    };
    Error::new(kind, format!("{name}: the server answered {status}"))
}

/// Twice as long each time, and never in step with others.
fn pause(fruitless: u32, monitor: &dyn Monitor) -> Result<()> {
    let longest = FIRST_PAUSE
        .saturating_mul(1 << fruitless.min(8))
        .min(LAST_PAUSE);
    let end = Instant::now() + longest.mul_f64(jitter());
    while Instant::now() < end {
        if monitor.is_cancelled() {
            return Err(cancelled());
        }
        std::thread::sleep(TICK);
    }
    Ok(())
}

/// Between a half and one.
fn jitter() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    // Seeded by the system, each anew.
    let random = std::hash::RandomState::new().build_hasher().finish();
    0.5 + (random >> 12) as f64 / (1_u64 << 53) as f64
}

#[derive(Debug, PartialEq, Eq)]
pub struct ContentRange {
    pub start: u64,
    pub total: Option<u64>,
}

impl ContentRange {
    /// `bytes 100-199/200` or `bytes 100-199/*` (RFC 9110, 14.4).
    pub fn parse(text: &str) -> Option<Self> {
        let (range, total) = text
            .trim()
            .strip_prefix("bytes")?
            .trim_start()
            .split_once('/')?;
        let (start, end) = range.split_once('-')?;
        let (start, end) = (start.parse().ok()?, end.parse::<u64>().ok()?);
        let total = match total {
            "*" => None,
            total => Some(total.parse::<u64>().ok()?),
        };
        let fits = start <= end && total.is_none_or(|total| end < total);
        fits.then_some(Self { start, total })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        let range = |start, total| Some(ContentRange { start, total });
        for (text, parsed) in [
            ("bytes 100-199/200", range(100, Some(200))),
            ("bytes 0-0/*", range(0, None)),
            ("bytes 5-4/9", None),
            ("bytes 5-9/9", None),
            ("bytes */9", None),
            ("items 0-1/2", None),
            ("bytes 0-1", None),
            ("", None),
        ] {
            assert_eq!(ContentRange::parse(text), parsed, "{text}");
        }
    }

    #[test]
    fn pauses_are_never_the_same_and_never_too_long() {
        let values: Vec<f64> = (0..64).map(|_| jitter()).collect();
        assert!(values.iter().all(|value| (0.5..=1.0).contains(value)));
        assert!(values.iter().any(|value| value != &values[0]));
    }
}
