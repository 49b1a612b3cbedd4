//! File systems of their own for tests: tmpfs, and XFS or btrfs in a file; unmounted when dropped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a panic is how a test fails
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::images::{run, text};

pub struct Mount(PathBuf);

impl Mount {
    pub fn tmpfs(at: &Path, size: &str) -> Self {
        needs_root("a tmpfs of limited size");
        std::fs::create_dir_all(at).unwrap();
        let option = format!("size={size},mode=0750");
        let arguments = ["-t", "tmpfs", "-o", &option, "tmpfs", text(at)];
        run("mount", "mount", &arguments);
        Self(at.to_path_buf())
    }

    /// A new file system of `kind` (`xfs` or `btrfs`) in the new sparse file `image`.
    pub fn formatted(kind: &str, image: &Path, size_bytes: u64, at: &Path) -> Self {
        needs_root("a loop device");
        std::fs::create_dir_all(at).unwrap();
        File::create_new(image)
            .unwrap()
            .set_len(size_bytes)
            .unwrap();
        let (package, mkfs) = match kind {
            "xfs" => ("xfsprogs", "mkfs.xfs"),
            "btrfs" => ("btrfs-progs", "mkfs.btrfs"),
            _ => panic!("no package is known for {kind}"),
        };
        run(package, mkfs, &["-q", text(image)]);
        let arguments = ["-t", kind, "-o", "loop", text(image), text(at)];
        run("mount", "mount", &arguments);
        Self(at.to_path_buf())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn needs_root(what: &str) {
    let is_root = nix::unistd::geteuid().is_root();
    assert!(is_root, "needs root, to mount {what}");
}
