//! Converts one disk: the only room that knows both the sources and the targets.
//!
//! Creates the target itself and never overwrites; never renames, links or fsyncs.
mod account;
mod batch;
mod blocks;
pub mod care;
pub mod examine;
mod fill;
mod growing;
pub mod journal;
mod keeper;
pub mod metadata;
mod output;
mod pipeline;
pub mod preflight;
mod progress;
mod resume;
pub mod reverse;
mod sharing;
mod target;
#[cfg(test)]
mod tests;
pub mod vm;
pub mod wishes;

use std::fs::File;
use std::path::Path;

use queue::instance::config::{Compress, Digest, OutFormat};
use serde::{Deserialize, Serialize};

pub use self::resume::Resume;

use self::pipeline::Outcome;
use self::resume::{Begun, Start};
use crate::disk::{BLOCK_BYTES, Observer, Stored, Unobserved, Window, unsupported};
use crate::error::{Error, ErrorKind, Result};
use crate::qcow2::{self, Qcow2Image};
use crate::source::SourceDisk;

/// What the target is to be.
#[derive(Debug, Clone)]
pub struct Plan {
    pub format: OutFormat,
    pub compress: Compress,
    pub compress_level: Option<u32>,
    /// Deflates every block itself, with back-references of at most 4 KiB.
    pub strict_window: bool,
    /// Whether the digest is wanted even of data that need not be read.
    pub digest: Digest,
    /// Worker threads; 0 is one per core. The result does not depend on it.
    pub threads: usize,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            format: OutFormat::Qcow2,
            compress: Compress::None,
            compress_level: None,
            strict_window: false,
            digest: Digest::Always,
            threads: 0,
        }
    }
}

/// What a finished copy was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    pub virtual_size_bytes: u64,
    pub source_bytes: u64,
    /// The target's length; of a raw target much of it may be holes.
    pub output_bytes: u64,
    /// Content digest, `blake3:<hex>`; see `disk::ContentDigest`. `None`: not all data was read.
    pub digest: Option<String>,
    /// Bytes that the target shares with the source, by reflink.
    pub shared_bytes: u64,
    /// Guest bytes in blocks that are not all zeros.
    pub data_bytes: u64,
    /// Guest bytes that were read and found to be zeros.
    pub zero_bytes: u64,
    /// Guest bytes that the source's map says are zeros: never read.
    pub hole_bytes: u64,
    /// Blocks whose deflate stream is the source's own, verified.
    pub grains_transplanted: u64,
    /// Blocks that were compressed here; of both, the rest stands as it is.
    pub clusters_encoded: u64,
    /// Source bytes that an earlier attempt had read, and that were not read again.
    pub resumed_bytes: u64,
}

/// Copies `disk` into a new file at `target`, which must not exist; all of it or an error.
///
/// The disk's checksums are verified in the same pass. What was written of a failed copy stays
/// for the caller to remove. Nothing is fsynced: that is the publisher's.
pub fn copy(
    disk: &SourceDisk,
    target: &Path,
    plan: &Plan,
    observer: &dyn Observer,
) -> Result<DiskReport> {
    let target = target::create(target, disk.capacity_bytes, plan)?;
    let start = pipeline::Start::afresh(disk);
    let outcome = pipeline::run(disk, Some(target), start, plan.threads, observer)?;
    Ok(report(disk, outcome, 0))
}

/// As `copy`, but goes on where an attempt was that was interrupted, if `target` is one's and
/// everything is as it was then. A target of anybody else is removed.
pub fn copy_on(
    disk: &SourceDisk,
    target: &Path,
    plan: &Plan,
    resume: &Resume<'_>,
    observer: &dyn Observer,
) -> Result<DiskReport> {
    let begun = match resume::start(disk, target, plan, resume, observer)? {
        Start::Done(report) => return Ok(report),
        Start::At(begun) => *begun,
    };
    let Begun {
        target,
        account,
        from,
        keeper,
    } = begun;
    let start = pipeline::Start {
        account,
        from,
        keeper: Some(&keeper),
    };
    let outcome = pipeline::run(disk, Some(target), start, plan.threads, observer);
    let outcome = outcome.inspect_err(|error| {
        let is_pause = match error.kind {
            ErrorKind::Cancelled => observer.is_paused(),
            ErrorKind::Io | ErrorKind::Timeout => true,
            _ => false,
        };
        if is_pause && let Err(error) = keeper.pause() {
            observer.tell(&format!("no last checkpoint: {}", error.to_line()));
        }
    })?;
    let report = report(disk, outcome, from.read_bytes);
    keeper.conclude(&report)?;
    Ok(report)
}

fn report(disk: &SourceDisk, outcome: Outcome, resumed_bytes: u64) -> DiskReport {
    let data_bytes = outcome
        .blocks
        .all
        .saturating_mul(BLOCK_BYTES)
        .min(disk.capacity_bytes);
    DiskReport {
        virtual_size_bytes: disk.capacity_bytes,
        source_bytes: disk.source_bytes,
        output_bytes: outcome.output_bytes,
        digest: outcome.digest,
        shared_bytes: outcome.shared_bytes,
        data_bytes,
        zero_bytes: disk.capacity_bytes.saturating_sub(data_bytes),
        hole_bytes: outcome.hole_bytes,
        grains_transplanted: outcome.blocks.transplanted,
        clusters_encoded: outcome.blocks.encoded,
        resumed_bytes,
    }
}

/// The content digest of a disk, its checksums verified, nothing written.
pub fn digest(disk: &SourceDisk, threads: usize, observer: &dyn Observer) -> Result<String> {
    let start = pipeline::Start::afresh(disk);
    let digest = pipeline::run(disk, None, start, threads, observer)?.digest;
    digest.ok_or_else(|| Error::new(ErrorKind::Internal, "a disk was read without a digest"))
}

/// Opens a qcow2 that `copy` wrote, to be read again by `digest`.
pub fn reopen(path: &Path) -> Result<SourceDisk> {
    let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
    let (image, references) = Qcow2Image::open(Window::whole(file, path)?)?;
    if references.backing.is_some() || references.data_file.is_some() {
        return Err(unsupported(
            path,
            "to verify a qcow2 with a backing or data file",
        ));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(SourceDisk::new(&name, "qcow2".to_owned(), Box::new(image)))
}

/// The content digest of a qcow2 that `copy` wrote.
pub fn digest_of_qcow2(path: &Path) -> Result<String> {
    digest(&reopen(path)?, 0, &Unobserved)
}

/// The most that `copy` will write, from the source's map: for the preflight. Of a disk that still
/// arrives nothing is known but what came of it.
pub fn space_needed_bytes(disk: &SourceDisk, plan: &Plan) -> Result<u64> {
    if disk.is_growing() {
        return Ok(disk.source_bytes);
    }
    let mut blocks = Touched::default();
    let mut tables = Touched::default();
    for extent in disk.image.extents() {
        let extent = extent?;
        if !matches!(extent.stored, Stored::Hole | Stored::Zero) {
            blocks.touch(extent.start.0, extent.length_bytes, BLOCK_BYTES);
            tables.touch(extent.start.0, extent.length_bytes, qcow2::L2_SPAN_BYTES);
        }
    }
    Ok(match plan.format {
        OutFormat::Raw => blocks.count.saturating_mul(BLOCK_BYTES),
        OutFormat::Qcow2 => qcow2::size_bytes(disk.capacity_bytes, blocks.count, tables.count),
    })
}

/// Counts the units that ascending ranges touch, each once.
#[derive(Default)]
struct Touched {
    count: u64,
    next: u64,
}

impl Touched {
    fn touch(&mut self, start_bytes: u64, length_bytes: u64, unit_bytes: u64) {
        let first = (start_bytes / unit_bytes).max(self.next);
        let end = start_bytes
            .saturating_add(length_bytes)
            .div_ceil(unit_bytes);
        self.count += end.saturating_sub(first);
        self.next = self.next.max(end);
    }
}
