//! What the file systems beneath an instance's directories are: their free space, and whether
//! other hosts write to them.
use std::fs::File;
use std::path::Path;

use nix::sys::statfs::{FsType, fstatfs, statfs};
use nix::sys::statvfs::statvfs;

use crate::error::{Error, Result};

/// Free space for unprivileged users on the file system of `path`, in bytes.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let stat = statvfs(path).map_err(|errno| Error::io("statvfs", path, errno.into()))?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// Whether `path` lies on a file system that other hosts write to, so that inotify misses events.
pub fn is_network(path: &Path) -> Result<bool> {
    let stat = statfs(path).map_err(|errno| Error::io("statfs", path, errno.into()))?;
    Ok(is_remote(stat.filesystem_type()))
}

/// The same of an open file; `false` if it cannot be told.
pub fn is_network_file(file: &File) -> bool {
    fstatfs(file).is_ok_and(|stat| is_remote(stat.filesystem_type()))
}

/// Magic numbers from statfs(2) and linux/magic.h.
fn is_remote(kind: FsType) -> bool {
    const REMOTE: [i64; 10] = [
        0x6969,      // NFS
        0x517b,      // SMB
        0xff53_4d42, // CIFS
        0xfe53_4d42, // SMB2
        0x6573_5546, // FUSE (GlusterFS, sshfs)
        0x0102_1997, // 9p
        0x00c3_6400, // Ceph
        0x7461_636f, // OCFS2
        0x0116_1970, // GFS2
        0x0bd0_0bd0, // Lustre
    ];
    REMOTE.contains(&kind.0)
}
