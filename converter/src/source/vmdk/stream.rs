//! A streamOptimized VMDK that still arrives, read forward by its markers.
//!
//! What is streamed counts only if it is what the tables of the whole file name, grain by grain and
//! place by place: see `Trail`. What is not plainly a sequence of ascending grains is irregular,
//! which is no error of the file: it is converted by its tables once it is whole.
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::descriptor::Descriptor;
use super::grain::Sparse;
use super::header::{HEADER_BYTES, Header};
use super::marker::{GRAIN_HEAD_BYTES, MARKER_BYTES, Marker};
use crate::disk::{
    Extent, Extents, GuestOffset, HostOffset, Image, Packed, SECTOR_BYTES, Stored, Unpacked,
    Waiter, Window,
};
use crate::error::{Error, ErrorKind, Result};
use crate::source::arriving::{Arrived, Arriving};

/// What is read of the file at once for its hash.
const CHUNK_BYTES: usize = 1 << 20;

/// The grains of a disk in guest order and where each is stored, as one hash.
#[derive(Clone, Default)]
pub(in crate::source) struct Trail(blake3::Hasher);

impl Trail {
    fn add(&mut self, extent: &Extent) {
        if let Stored::Packed { unit, .. } = extent.stored {
            self.0.update(&extent.start.0.to_le_bytes());
            self.0.update(&unit.offset.0.to_le_bytes());
        }
    }

    /// That of an image which is whole; `go_on` is asked now and then.
    pub fn of(image: &dyn Image, go_on: &dyn Fn() -> Result<bool>) -> Result<Self> {
        const STEP: usize = 4096;
        let mut trail = Self::default();
        for (number, extent) in image.extents().enumerate() {
            if number % STEP == 0 {
                go_on()?;
            }
            trail.add(&extent?);
        }
        Ok(trail)
    }

    pub fn is(&self, other: &Self) -> bool {
        self.0.finalize() == other.0.finalize()
    }
}

pub(in crate::source) struct Stream {
    arriving: Arriving,
    sparse: Sparse,
    files: [Window; 1],
    /// Where the first marker is.
    first_bytes: u64,
    create_type: String,
    /// Of all grains, once the stream was read to its end.
    trail: Mutex<Option<Trail>>,
    /// The hash of the whole file, if it was asked for and read to its end.
    hash: OnceLock<blake3::Hash>,
    irregular: OnceLock<String>,
}

impl Stream {
    /// Reads the beginning of a file that arrives. The file comes back if it has to be whole first:
    /// its beginning is that of no stream.
    pub fn open(
        arriving: Arriving,
        waiter: &dyn Waiter,
    ) -> Result<std::result::Result<Self, Arriving>> {
        let window = arriving.window()?;
        let is_there = |end| Ok::<_, Error>(arriving.wait_for(end, waiter)? == Arrived::Yes);
        if !is_there(HEADER_BYTES as u64)? {
            return Ok(Err(arriving));
        }
        let bytes = super::grain::header_bytes(&window, 0)?;
        // What this says is wrong with it is said again of the whole file.
        let Ok(header) = Header::parse(&bytes, arriving.path(), window.length_bytes()) else {
            return Ok(Err(arriving));
        };
        let first_bytes = Header::overhead_bytes(&bytes);
        let Some((at, length_bytes)) = header.descriptor.filter(|_| header.compressed) else {
            return Ok(Err(arriving));
        };
        let end = at.saturating_add(length_bytes as u64);
        if first_bytes < end.max(HEADER_BYTES as u64) || !is_there(first_bytes)? {
            return Ok(Err(arriving));
        }
        let text = window.read_vec(at, length_bytes)?;
        let descriptor = Descriptor::parse(&text, arriving.path());
        let Ok(descriptor) = descriptor
            .map_err(|_| ())
            .and_then(|descriptor| descriptor.parent.is_none().then_some(descriptor).ok_or(()))
        else {
            return Ok(Err(arriving));
        };
        Ok(Ok(Self {
            arriving,
            sparse: Sparse {
                file: 0,
                window: window.clone(),
                start: GuestOffset(0),
                length_bytes: header.capacity_bytes,
                header,
            },
            files: [window],
            first_bytes,
            create_type: descriptor.create_type,
            trail: Mutex::new(None),
            hash: OnceLock::new(),
            irregular: OnceLock::new(),
        }))
    }

    fn capacity_bytes(&self) -> u64 {
        self.sparse.length_bytes
    }

    pub fn arriving(&self) -> &Arriving {
        &self.arriving
    }

    pub fn create_type(&self) -> &str {
        &self.create_type
    }

    /// Why it cannot be streamed after all.
    pub fn irregular(&self) -> Option<&str> {
        self.irregular.get().map(String::as_str)
    }

    /// Of the grains, if all of them were streamed.
    pub fn trail(&self) -> Option<Trail> {
        self.lock_trail().clone()
    }

    pub fn hash(&self) -> Option<blake3::Hash> {
        self.hash.get().copied()
    }

    /// Hashes the file as it arrives, to its end.
    pub fn read_hash(&self, waiter: &dyn Waiter) -> Result<()> {
        let window = &self.sparse.window;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut offset_bytes = 0u64;
        loop {
            // Also with nothing to wait for, so that it can be stopped.
            if !waiter.go_on(self.arriving.length_bytes())? {
                return Ok(());
            }
            match self
                .arriving
                .wait_for(offset_bytes.saturating_add(1), waiter)?
            {
                Arrived::Yes => {}
                Arrived::Never => break,
                Arrived::GivenUp => return Ok(()),
            }
            let there = self.arriving.length_bytes().saturating_sub(offset_bytes);
            let length_bytes = buffer
                .len()
                .min(usize::try_from(there).unwrap_or(usize::MAX));
            let Some(chunk) = buffer.get_mut(..length_bytes) else {
                break;
            };
            window.read_exact_at(chunk, offset_bytes)?;
            hasher.update(chunk);
            offset_bytes += length_bytes as u64;
        }
        let _ = self.hash.set(hasher.finalize());
        Ok(())
    }

    fn lock_trail(&self) -> MutexGuard<'_, Option<Trail>> {
        self.trail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the streaming: the first reason is the one to tell.
    fn give_up(&self, why: String) -> Error {
        let _ = self.irregular.set(why);
        let path = self.arriving.path().display();
        let why = self.irregular.get().map_or("", String::as_str);
        Error::new(
            ErrorKind::Unsupported,
            format!("{path} cannot be streamed: {why}"),
        )
    }
}

impl Image for Arc<Stream> {
    fn capacity_bytes(&self) -> u64 {
        Stream::capacity_bytes(self)
    }

    fn files(&self) -> &[Window] {
        &self.files
    }

    /// Nothing knows them before the file is whole.
    fn extents(&self) -> Extents<'_> {
        let what = format!("{} still arrives", self.arriving.path().display());
        Box::new(std::iter::once(Err(Error::new(ErrorKind::Internal, what))))
    }

    fn follow<'a>(&'a self, waiter: &'a dyn Waiter) -> Extents<'a> {
        Box::new(Following {
            stream: self,
            waiter,
            offset_bytes: self.first_bytes,
            guest_bytes: 0,
            trail: Trail::default(),
            pending: None,
            is_over: false,
        })
    }

    fn unpack(&self, unit: &Packed, stored: &[u8], out: &mut [u8]) -> Result<Unpacked> {
        self.sparse.unpack(unit, stored, out)
    }
}

/// The extents of a stream, each as soon as it is there.
struct Following<'a> {
    stream: &'a Stream,
    waiter: &'a dyn Waiter,
    /// The next marker's.
    offset_bytes: u64,
    /// Everything of the guest before it was told.
    guest_bytes: u64,
    trail: Trail,
    /// A grain behind the hole that was told last.
    pending: Option<Extent>,
    is_over: bool,
}

/// What comes next of a stream.
enum Next {
    Grain(Extent),
    End,
    GivenUp,
}

impl Following<'_> {
    fn advance(&mut self) -> Result<Option<Extent>> {
        let grain = match self.pending.take() {
            Some(grain) => Some(grain),
            None => match self.next_grain()? {
                Next::Grain(grain) => Some(grain),
                Next::End => None,
                Next::GivenUp => {
                    self.is_over = true;
                    return Ok(None);
                }
            },
        };
        let capacity_bytes = self.stream.capacity_bytes();
        let end = grain.map_or(capacity_bytes, |grain| grain.start.0);
        if end > self.guest_bytes {
            self.pending = grain;
            let start = std::mem::replace(&mut self.guest_bytes, end);
            return Ok(Some(Extent {
                start: GuestOffset(start),
                length_bytes: end - start,
                stored: Stored::Hole,
            }));
        }
        match grain {
            Some(grain) => self.guest_bytes += grain.length_bytes,
            None => {
                self.is_over = true;
                *self.stream.lock_trail() = Some(std::mem::take(&mut self.trail));
            }
        }
        Ok(grain)
    }

    fn next_grain(&mut self) -> Result<Next> {
        loop {
            let at = self.offset_bytes;
            match self.wait_for(at.saturating_add(MARKER_BYTES as u64))? {
                Arrived::Yes => {}
                Arrived::Never => return self.end(at),
                Arrived::GivenUp => return Ok(Next::GivenUp),
            }
            let mut bytes = [0; MARKER_BYTES];
            self.stream.sparse.window.read_exact_at(&mut bytes, at)?;
            let marker = Marker::parse(&bytes);
            self.offset_bytes = marker.next_offset(at);
            match marker {
                Marker::Grain {
                    sector,
                    stream_bytes,
                } => {
                    let grain = self.grain(at, sector, stream_bytes)?;
                    let end = at + GRAIN_HEAD_BYTES + u64::from(stream_bytes);
                    match self.wait_for(end)? {
                        Arrived::Yes => {}
                        Arrived::Never => {
                            return Err(self.cut(at, self.stream.arriving.length_bytes()));
                        }
                        Arrived::GivenUp => return Ok(Next::GivenUp),
                    }
                    self.trail.add(&grain);
                    return Ok(Next::Grain(grain));
                }
                Marker::Structure { .. } => {}
                // Some writers fill up what is behind it; a grain there would lack in the trail.
                Marker::EndOfStream => {
                    let end = self.stream.arriving.wait_for_end(self.waiter)?;
                    return Ok(end.map_or(Next::GivenUp, |_| Next::End));
                }
                Marker::Unknown => {
                    let why = format!("there is no marker at offset {at}");
                    return Err(self.stream.give_up(why));
                }
            }
        }
    }

    /// The grain whose marker is at `at`, if it follows on those before it.
    fn grain(&self, at: u64, sector: u64, stream_bytes: u32) -> Result<Extent> {
        let give_up = |what: &str| {
            let why = format!("the grain of sector {sector} at offset {at} {what}");
            Err(self.stream.give_up(why))
        };
        let header = &self.stream.sparse.header;
        let start = sector.saturating_mul(SECTOR_BYTES);
        let capacity_bytes = self.stream.capacity_bytes();
        if start >= capacity_bytes || !start.is_multiple_of(header.grain_bytes) {
            return give_up("is none of the disk's");
        }
        if start < self.guest_bytes {
            return give_up("comes after a later one");
        }
        if u64::from(stream_bytes) > 2 * header.grain_bytes {
            return give_up("is longer than two grains");
        }
        let length_bytes = header.grain_bytes.min(capacity_bytes - start);
        Ok(Extent {
            start: GuestOffset(start),
            length_bytes,
            stored: Stored::Packed {
                unit: Packed {
                    file: 0,
                    offset: HostOffset(at),
                    limit_bytes: GRAIN_HEAD_BYTES + u64::from(stream_bytes),
                    guest: GuestOffset(start),
                    unpacked_bytes: length_bytes,
                },
                skip_bytes: 0,
            },
        })
    }

    /// The file ends where a marker might be: without one, as some writers leave it, or cut.
    fn end(&self, at: u64) -> Result<Next> {
        match self.stream.arriving.length_bytes() {
            // The last grain may lack what fills its sector.
            length_bytes if length_bytes <= at => Ok(Next::End),
            length_bytes => Err(self.cut(at, length_bytes)),
        }
    }

    fn cut(&self, at: u64, length_bytes: u64) -> Error {
        let why = format!("it ends at {length_bytes}, within what begins at offset {at}");
        self.stream.give_up(why)
    }

    fn wait_for(&self, end_bytes: u64) -> Result<Arrived> {
        self.stream.arriving.wait_for(end_bytes, self.waiter)
    }
}

impl Iterator for Following<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let extent = self.advance();
        self.is_over |= extent.is_err();
        extent.transpose()
    }
}
