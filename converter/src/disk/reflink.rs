//! Reflinks: a range of one file becomes a range of another, the blocks shared until either is
//! written (ioctl_ficlonerange(2): XFS, btrfs and others).
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;

nix::ioctl_write_ptr_bad!(ficlonerange, libc::FICLONERANGE, libc::file_clone_range);

/// Whether the file system of `file`, which is open for reading and writing, may have reflinks.
pub fn is_known(file: &File) -> bool {
    let end = file.metadata().map_or(0, |metadata| metadata.len());
    // Nothing, from the file's end to itself: refused by those that know no reflinks at all.
    !matches!(
        clone_range(file, end, 0, file, end),
        Err(Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::ENOSYS | Errno::EPERM)
    )
}

/// Shares `length_bytes` of `from` at `offset_bytes` with `to` at `at_bytes`. False: these two
/// files, or this range, cannot be shared.
pub fn share(
    from: &File,
    offset_bytes: u64,
    length_bytes: u64,
    to: &File,
    at_bytes: u64,
) -> io::Result<bool> {
    match clone_range(from, offset_bytes, length_bytes, to, at_bytes) {
        Ok(()) => Ok(true),
        Err(
            Errno::EOPNOTSUPP
            | Errno::ENOTTY
            | Errno::ENOSYS
            | Errno::EPERM
            | Errno::EXDEV
            | Errno::EINVAL
            | Errno::ETXTBSY,
        ) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn clone_range(
    from: &File,
    offset_bytes: u64,
    length_bytes: u64,
    to: &File,
    at_bytes: u64,
) -> Result<(), Errno> {
    let range = libc::file_clone_range {
        src_fd: from.as_raw_fd().into(),
        src_offset: offset_bytes,
        src_length: length_bytes,
        dest_offset: at_bytes,
    };
    // SAFETY: both descriptors are open for the length of the call, and the kernel only reads
    // `range`.
    unsafe { ficlonerange(to.as_raw_fd(), &raw const range) }.map(drop)
}
