//! Path confinement: opens what untrusted names point to, beneath the roots a job may read, and
//! never elsewhere.
//!
//! Every open goes through openat2(2) with RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS |
//! RESOLVE_NO_MAGICLINKS, so neither `..`, nor an absolute path, nor a symbolic link leaves a root,
//! not even one that is swapped in between check and use. Only regular files are handed out.
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use crate::error::{Error, ErrorKind, Result};

/// One directory beneath which files may be opened.
#[derive(Debug)]
struct Root {
    path: PathBuf,
    directory: File,
}

/// The directories a job may read: its own first, then the configured source roots.
#[derive(Debug)]
pub struct Roots {
    job: Root,
    sources: Vec<Root>,
}

/// The directory of a file, held open: what is named beside that file, now and later.
#[derive(Debug)]
pub struct Folder(Root);

impl Folder {
    /// The regular file `name` in it; `None` if it is not there.
    pub fn open(&self, name: &str) -> Result<Option<File>> {
        match open_beneath(&self.0, Path::new(name)) {
            Err(error) if error.os_error() == Some(nix::libc::ENOENT) => Ok(None),
            file => file.map(Some),
        }
    }
}

impl Roots {
    /// `job` is where relative names resolve; `sources` are the directories beneath which absolute
    /// names may lie. A source root that does not exist is left out: nothing lies beneath it.
    pub fn open(job: &Path, sources: &[PathBuf]) -> Result<Self> {
        let mut roots = Vec::with_capacity(sources.len());
        for path in sources {
            match open_directory(path) {
                Ok(root) => roots.push(root),
                Err(error) if error.os_error() == Some(nix::libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            job: open_directory(job)?,
            sources: roots,
        })
    }

    /// The job's own directory.
    pub fn job(&self) -> &Path {
        &self.job.path
    }

    /// Opens the regular file that `name`, found in the file `referrer` (a path beneath the job's
    /// directory or a source root), points to.
    ///
    /// A relative name resolves beneath the referrer's own directory. An absolute one must lie
    /// beneath a source root; what it names is looked for in the job's directory first, where a
    /// claim may have moved it.
    pub fn open_reference(&self, referrer: &Path, name: &str) -> Result<(File, PathBuf)> {
        if name.is_empty() || name.contains('\0') {
            return Err(Error::invalid(format!(
                "{} names an empty path",
                referrer.display()
            )));
        }
        let named = Path::new(name);
        if named.is_relative() {
            let base = referrer.parent().unwrap_or(Path::new(""));
            return self
                .open_path(&base.join(named))
                .map_err(|error| refine(error, referrer, name));
        }
        for root in &self.sources {
            if let Ok(beneath) = named.strip_prefix(&root.path) {
                if let Ok(file) = open_beneath(&self.job, beneath) {
                    return Ok((file, self.job.path.join(beneath)));
                }
                let file =
                    open_beneath(root, beneath).map_err(|error| refine(error, referrer, name))?;
                return Ok((file, named.to_path_buf()));
            }
        }
        Err(outside(referrer, name))
    }

    /// Opens the directory of the file at `path`, which lies beneath the job's directory.
    pub fn folder_of(&self, path: &Path) -> Result<Folder> {
        let place = path.parent().unwrap_or(path);
        let beneath = place.strip_prefix(&self.job.path).map_err(|_| {
            Error::invalid(format!(
                "{} lies outside the job's directory",
                place.display()
            ))
        })?;
        let beneath = match beneath.as_os_str().is_empty() {
            true => Path::new("."),
            false => beneath,
        };
        let how = confined(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY);
        let directory = openat2(&self.job.directory, beneath, how)
            .map_err(|errno| Error::io("open directory", place, errno.into()))?;
        Ok(Folder(Root {
            path: place.to_path_buf(),
            directory: File::from(directory),
        }))
    }

    /// Opens the regular file at `path`, which lies beneath the job's directory or a source root.
    pub fn open_path(&self, path: &Path) -> Result<(File, PathBuf)> {
        for root in std::iter::once(&self.job).chain(&self.sources) {
            if let Ok(beneath) = path.strip_prefix(&root.path) {
                let file = open_beneath(root, beneath).map_err(|error| link(error, path))?;
                return Ok((file, path.to_path_buf()));
            }
        }
        Err(Error::invalid(format!(
            "{} lies outside the job's directory",
            path.display()
        ))
        .with_remedy(
            "put the file beside the one that names it, or add its directory to source_roots",
        ))
    }
}

/// A link is no trouble of the disk that time could heal. The number stays below, for `refine`.
fn link(error: Error, path: &Path) -> Error {
    let Some(number @ nix::libc::ELOOP) = error.os_error() else {
        return error;
    };
    Error::invalid(format!("{} is a link, or lies behind one", path.display()))
        .with_remedy("links are never followed: copy the file itself")
        .with_source(std::io::Error::from_raw_os_error(number))
}

fn refine(error: Error, referrer: &Path, name: &str) -> Error {
    match error.os_error() {
        Some(nix::libc::EXDEV | nix::libc::ELOOP) => outside(referrer, name),
        Some(nix::libc::ENOENT) => Error::new(
            ErrorKind::Invalid,
            format!("{} names {name:?}, which is not there", referrer.display()),
        )
        .with_remedy("put the missing file beside it and retry"),
        _ => error,
    }
}

fn outside(referrer: &Path, name: &str) -> Error {
    Error::invalid(format!(
        "{} names {name:?}, which leaves the directories this job may read",
        referrer.display()
    ))
    .with_remedy("put the file beside the one that names it, or add its directory to source_roots")
}

/// Whether `name` is a plain relative path: without `..`, not absolute, not empty.
pub fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && !name.contains('\0')
        && Path::new(name)
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
}

fn open_directory(path: &Path) -> Result<Root> {
    let directory = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_DIRECTORY | nix::libc::O_CLOEXEC)
        .open(path)
        .map_err(|error| Error::io("open directory", path, error))?;
    Ok(Root {
        path: path.to_path_buf(),
        directory,
    })
}

fn open_beneath(root: &Root, beneath: &Path) -> Result<File> {
    let path = root.path.join(beneath);
    if beneath
        .components()
        .any(|part| matches!(part, Component::ParentDir))
    {
        let error = std::io::Error::from_raw_os_error(nix::libc::EXDEV);
        return Err(Error::io("open", &path, error));
    }
    // O_NONBLOCK: a FIFO must not block the open; it is refused below.
    let how = confined(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY);
    let descriptor: OwnedFd = openat2(&root.directory, beneath, how)
        .map_err(|errno| Error::io("open", &path, errno.into()))?;
    let file = File::from(descriptor);
    let kind = file
        .metadata()
        .map_err(|error| Error::io("stat", &path, error))?
        .file_type();
    if !kind.is_file() {
        return Err(
            Error::invalid(format!("{} is not a regular file", path.display())).with_remedy(
                "devices, pipes and directories are never read; copy the data to a file",
            ),
        );
    }
    Ok(file)
}

fn confined(flags: OFlag) -> OpenHow {
    OpenHow::new().flags(flags).resolve(
        ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn opens_beneath_and_refuses_everything_else() {
        let top = tempfile::tempdir().unwrap();
        let job = top.path().join("job");
        let sources = top.path().join("sources");
        std::fs::create_dir_all(job.join("disks")).unwrap();
        std::fs::create_dir_all(&sources).unwrap();
        std::fs::write(job.join("disks/a.vmdk"), "a").unwrap();
        std::fs::write(sources.join("b.vmdk"), "b").unwrap();
        std::fs::write(top.path().join("secret"), "s").unwrap();
        std::os::unix::fs::symlink("../secret", job.join("link")).unwrap();
        std::os::unix::fs::symlink("/", job.join("slash")).unwrap();
        nix::unistd::mkfifo(&job.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let roots = Roots::open(&job, &[sources.clone(), top.path().join("absent")]).unwrap();
        let referrer = job.join("vm.vmdk");

        let (mut file, path) = roots.open_reference(&referrer, "disks/a.vmdk").unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), path), ("a", job.join("disks/a.vmdk")));

        let absolute = sources.join("b.vmdk");
        assert!(
            roots
                .open_reference(&referrer, absolute.to_str().unwrap())
                .is_ok()
        );

        for name in [
            "../secret",
            "disks/../../secret",
            "link",
            "slash/etc/passwd",
            "/etc/shadow",
            "fifo",
            "disks",
            "",
            "/dev/zero",
            "absent",
        ] {
            let error = roots.open_reference(&referrer, name).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid, "{name}: {error}");
        }
        let folder = roots.folder_of(&job.join("disks/a.vmdk")).unwrap();
        assert!(folder.open("a.vmdk").unwrap().is_some());
        assert!(folder.open("absent").unwrap().is_none());
        for name in ["../../secret", "/etc/shadow", ".", "../link"] {
            assert!(folder.open(name).is_err(), "{name}");
        }
        assert!(roots.folder_of(&job.join("vm.vmdk")).is_ok());
        for path in [sources.join("b.vmdk"), job.join("slash/etc/passwd")] {
            assert!(roots.folder_of(&path).is_err(), "{}", path.display());
        }
        // Also as the drop itself: it is not tried again.
        let error = roots.open_path(&job.join("link")).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    }
}
