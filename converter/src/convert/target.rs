//! Creates the target file and the layout that places blocks in it.
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use queue::instance::config::{Compress, Digest, OutFormat};

use super::Plan;
use crate::disk::{BLOCK_BYTES, HostOffset, Layout, unsupported};
use crate::error::{Error, ErrorKind, Result};
use crate::qcow2::{Compression, Qcow2Layout};

pub(super) struct Target {
    pub file: Arc<File>,
    pub path: PathBuf,
    pub layout: Box<dyn Layout>,
    /// Blocks are packed if that makes them shorter.
    pub packing: Option<Packing>,
    /// The digest is wanted even of data that need not be read.
    pub always_digest: bool,
}

impl Target {
    pub(super) fn length_bytes(&self) -> Result<u64> {
        let found = self.file.metadata();
        let found = found.map_err(|error| Error::io("stat", &self.path, error))?;
        Ok(found.len())
    }

    /// Cuts off what lies behind `length_bytes`.
    pub(super) fn cut(&self, length_bytes: u64) -> Result<()> {
        let cut = self.file.set_len(length_bytes);
        cut.map_err(|error| Error::io("cut", &self.path, error))
    }

    /// Writes zeros over what an interrupted attempt may have left, less than a block.
    pub(super) fn clear(&self, from_bytes: u64, to_bytes: u64) -> Result<()> {
        let zeros = [0; BLOCK_BYTES as usize];
        let length_bytes = to_bytes.saturating_sub(from_bytes) as usize;
        let written = match zeros.get(..length_bytes) {
            Some(zeros) => self.file.write_all_at(zeros, from_bytes),
            None => Ok(()),
        };
        written.map_err(|error| Error::io("write", &self.path, error))
    }
}

/// How blocks are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packing {
    pub compression: Compression,
    /// Of libdeflate (0 to 12) or of zstd (0 to 19, 0 its default).
    pub level: u32,
    /// Deflate with the window of the qcow2 specification and nothing that may need a larger one.
    pub strict_window: bool,
}

/// As zlib's and zstd's own defaults: good size at a good speed.
const DEFAULT_ZLIB_LEVEL: u32 = 6;
const DEFAULT_ZSTD_LEVEL: u32 = 3;

impl Packing {
    /// Whether streams that the source's writer deflated may be carried over.
    pub(super) fn takes_streams(self) -> bool {
        self.compression == Compression::Zlib && !self.strict_window
    }

    fn of(plan: &Plan) -> Option<Self> {
        let (compression, default_level) = match plan.compress {
            Compress::None => return None,
            Compress::Zlib => (Compression::Zlib, DEFAULT_ZLIB_LEVEL),
            Compress::Zstd => (Compression::Zstd, DEFAULT_ZSTD_LEVEL),
        };
        Some(Self {
            compression,
            level: plan.compress_level.unwrap_or(default_level),
            strict_window: plan.strict_window,
        })
    }
}

/// Creates `path` exclusively: an existing file or symbolic link is an error.
pub(super) fn create(path: &Path, capacity_bytes: u64, plan: &Plan) -> Result<Target> {
    let mut options = OpenOptions::new();
    open(path, capacity_bytes, plan, options.create_new(true))
}

/// Opens what an interrupted attempt created; its layout begins anew.
pub(super) fn reopen(path: &Path, capacity_bytes: u64, plan: &Plan) -> Result<Target> {
    open(path, capacity_bytes, plan, &mut OpenOptions::new())
}

fn open(
    path: &Path,
    capacity_bytes: u64,
    plan: &Plan,
    options: &mut OpenOptions,
) -> Result<Target> {
    let packing = Packing::of(plan);
    if packing.is_some() && plan.format == OutFormat::Raw {
        return Err(unsupported(path, "a compressed raw target")
            .with_remedy("set compress = \"none\", or out_format = \"qcow2\""));
    }
    let file = options
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_CLOEXEC)
        .open(path)
        .map_err(|error| Error::io("create", path, error))?;
    let file = Arc::new(file);
    let layout: Box<dyn Layout> = match plan.format {
        OutFormat::Qcow2 => Box::new(Qcow2Layout::new(
            Arc::clone(&file),
            path.to_path_buf(),
            capacity_bytes,
            packing
                .map(|packing| packing.compression)
                .unwrap_or_default(),
        )),
        OutFormat::Raw => Box::new(RawLayout {
            file: Arc::clone(&file),
            path: path.to_path_buf(),
            capacity_bytes,
        }),
    };
    Ok(Target {
        file,
        path: path.to_path_buf(),
        layout,
        packing,
        always_digest: plan.digest == Digest::Always,
    })
}

/// Every block stands where the guest sees it; the rest are holes.
struct RawLayout {
    file: Arc<File>,
    path: PathBuf,
    capacity_bytes: u64,
}

impl Layout for RawLayout {
    fn is_dense(&self) -> bool {
        false
    }

    fn place(&mut self, index: u64) -> Result<HostOffset> {
        Ok(HostOffset(index.saturating_mul(BLOCK_BYTES)))
    }

    fn place_packed(&mut self, index: u64, _length_bytes: u64) -> Result<HostOffset> {
        let what = format!("raw layout: block {index} came compressed");
        Err(Error::new(ErrorKind::Internal, what))
    }

    /// Also cuts the padding of a last block.
    fn finish(&mut self) -> Result<u64> {
        self.file
            .set_len(self.capacity_bytes)
            .map_err(|error| Error::io("set the length of", &self.path, error))?;
        Ok(self.capacity_bytes)
    }
}
