//! What the file systems beneath an instance's directories are: their free space, and whether
//! other hosts write to them.
use std::path::Path;

use nix::sys::statfs::statfs;
use nix::sys::statvfs::statvfs;

use crate::error::{Error, Result};

/// Free space for unprivileged users on the file system of `path`, in bytes.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let stat = statvfs(path).map_err(|errno| Error::io("statvfs", path, errno.into()))?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// Whether `path` lies on a file system that other hosts write to, so that inotify misses events.
/// Magic numbers from statfs(2) and linux/magic.h.
pub fn is_network(path: &Path) -> Result<bool> {
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
    let stat = statfs(path).map_err(|errno| Error::io("statfs", path, errno.into()))?;
    Ok(REMOTE.contains(&(stat.filesystem_type().0 as i64)))
}
