//! A session's own directory, and its end: a library that is killed removes nothing itself.
//!
//! What dead sessions left is known by their process, which is named in the directory's name; what
//! they left among everybody's temporary files, by sockets that nobody has open any more.
use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::{Error, Result};

const PREFIX: &str = "session";
const LOG: &str = "appliance.log";
/// As libguestfs calls its directories (mkdtemp(3)).
const LIBRARY_PREFIX: &str = "libguestfs";
/// Where it makes the sockets, whose paths have to be short: never in TMPDIR.
const SOCKETS: &str = "/tmp";

const OLD: Duration = Duration::from_secs(3600);

/// `<work>/appliance/session.<host>.<pid>.<start>.<count>`, until it is dropped.
pub(super) struct Scratch {
    directory: PathBuf,
}

impl Scratch {
    pub fn create(work: &Path) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        sweep(work);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let start = started(pid).unwrap_or_default();
        let name = format!("{PREFIX}.{}.{pid}.{start}.{count}", host());
        let directory = shared(work).join(name);
        std::fs::create_dir_all(&directory).map_err(|e| Error::io("create", &directory, e))?;
        Ok(Self { directory })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What the process and its QEMU print.
    pub fn log(&self) -> PathBuf {
        self.directory.join(LOG)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is tried again by whoever sweeps next.
        let _ = std::fs::remove_dir_all(&self.directory);
        clear_sockets(Path::new(SOCKETS));
    }
}

/// Where all sessions of a work directory have what they share: the library's cached appliance.
pub(super) fn shared(work: &Path) -> PathBuf {
    work.join("appliance")
}

/// Removes what sessions left that were killed with their converter.
pub fn sweep(work: &Path) {
    let entries = std::fs::read_dir(shared(work)).into_iter().flatten();
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_some_and(is_dead) {
            tracing::debug!("removing {}", entry.path().display());
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    clear_sockets(Path::new(SOCKETS));
}

fn host() -> String {
    let host = nix::unistd::gethostname().unwrap_or_default();
    host.to_string_lossy().replace(['.', '/'], "-")
}

/// Whether the name is of a session whose process, of this host, is gone.
fn is_dead(name: &str) -> bool {
    let parts: Vec<&str> = name.split('.').collect();
    let [PREFIX, of, pid, start, _] = parts.as_slice() else {
        return false;
    };
    let Ok(pid) = pid.parse() else { return false };
    *of == host() && started(pid).as_deref() != Some(*start)
}

/// When a process started, as the kernel counts (proc_pid_stat(5), field 22).
fn started(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, behind_name) = stat.rsplit_once(") ")?;
    behind_name.split(' ').nth(19).map(str::to_owned)
}

/// Removes the library's directories of ours that hold nothing but sockets of processes that are
/// gone.
fn clear_sockets(top: &Path) {
    let Ok(bound) = std::fs::read_to_string("/proc/self/net/unix") else {
        return;
    };
    let bound: BTreeSet<&str> = bound
        .lines()
        .filter_map(|it| it.rsplit(' ').next())
        .collect();
    let entries = std::fs::read_dir(top).into_iter().flatten().flatten();
    let is_library = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with(LIBRARY_PREFIX);
    for entry in entries.filter(|entry| is_library(&entry.file_name())) {
        let is_ours = entry
            .metadata()
            .is_ok_and(|it| it.is_dir() && it.uid() == nix::unistd::geteuid().as_raw());
        if is_ours && has_only_dead_sockets(&entry.path(), &bound) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// An empty directory may be of a library that is about to make its socket, unless it is old.
fn has_only_dead_sockets(directory: &Path, bound: &BTreeSet<&str>) -> bool {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return false;
    };
    let mut found = 0;
    for entry in entries.flatten() {
        let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
        if !is_socket
            || entry
                .path()
                .to_str()
                .is_none_or(|path| bound.contains(path))
        {
            return false;
        }
        found += 1;
    }
    found > 0 || is_old(directory)
}

fn is_old(directory: &Path) -> bool {
    let made = directory.metadata().and_then(|it| it.modified());
    made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age >= OLD))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn what_dead_sessions_left_goes_and_what_lives_stays() {
        let work = tempfile::tempdir().unwrap();
        let mine = Scratch::create(work.path()).unwrap();
        let shared = shared(work.path());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let (gone, host) = (child.id(), host());
        child.wait().unwrap();
        let own = std::process::id();
        let dead = [
            format!("session.{host}.{gone}.5.0"),
            format!("session.{host}.{own}.5.0"),
        ];
        let others = ["session.elsewhere.1.5.0", ".guestfs-0", "session.a"].map(str::to_owned);
        for name in dead.iter().chain(&others) {
            std::fs::create_dir_all(shared.join(name).join("libguestfsABCDEF")).unwrap();
        }
        sweep(work.path());
        assert!(mine.directory().is_dir());
        assert!(others.iter().all(|name| shared.join(name).is_dir()));
        assert!(!dead.iter().any(|name| shared.join(name).exists()));
        let directory = mine.directory().to_path_buf();
        drop(mine);
        assert!(!directory.exists());
    }

    #[test]
    fn sockets_that_nobody_has_open_go() {
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| top.path().join(name);
        for name in [
            "libguestfsDEAD",
            "libguestfsLIVE",
            "libguestfsNEW",
            "libguestfsDATA",
            "x",
        ] {
            std::fs::create_dir(at(name)).unwrap();
        }
        std::fs::write(at("libguestfsDATA/file"), "").unwrap();
        drop(UnixListener::bind(at("libguestfsDEAD/guestfsd.sock")).unwrap());
        drop(UnixListener::bind(at("x/guestfsd.sock")).unwrap());
        let live = UnixListener::bind(at("libguestfsLIVE/guestfsd.sock")).unwrap();
        clear_sockets(top.path());
        assert!(!at("libguestfsDEAD").exists());
        for name in ["libguestfsLIVE", "libguestfsNEW", "libguestfsDATA", "x"] {
            assert!(at(name).exists(), "{name}");
        }
        drop(live);
    }
}
