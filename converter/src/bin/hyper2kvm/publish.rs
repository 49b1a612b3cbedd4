//! Publishes a conversion without a queue: made aside, durable, then in place by one rename.
//!
//! Nothing is replaced unless that was asked for, and what is replaced stays whole until then.
use std::path::{Path, PathBuf};

use converter::error::{Error, Result};
use queue::durable::{self, EntryKind, HostVolume, Stat, Volume};
use queue::job::VmName;

/// Where a conversion's result goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// One image, and nothing else.
    File(PathBuf),
    /// A directory that gets one per VM, and a link to its first disk.
    Directory(PathBuf),
}

impl Place {
    /// A directory if it is one or ends in a slash.
    pub fn of(output: &Path) -> Result<Self> {
        let ends_in_slash = output.as_os_str().as_encoded_bytes().ends_with(b"/");
        let path = std::path::absolute(output).map_err(|error| Error::io("find", output, error))?;
        if path.is_dir() || ends_in_slash {
            std::fs::create_dir_all(&path).map_err(|error| Error::io("create", &path, error))?;
            return Ok(Self::Directory(path));
        }
        let parent = durable::parent(&path);
        if !parent.is_dir() {
            let parent = parent.display();
            return Err(Error::invalid(format!("{parent} is not a directory"))
                .with_remedy("create it, or choose another output"));
        }
        Ok(Self::File(path))
    }

    /// The directory on whose file system the work is done.
    pub fn parent(&self) -> &Path {
        match self {
            Self::File(path) => durable::parent(path),
            Self::Directory(path) => path,
        }
    }
}

/// One result in the making: a directory aside, removed again unless it was published.
pub struct Staging {
    volume: HostVolume,
    directory: PathBuf,
    result: PathBuf,
    link: Option<PathBuf>,
    overwrite: bool,
    /// Only what this made is removed again.
    is_ours: bool,
}

impl Staging {
    /// Prepares the result of the VM `name`; what is in the way is an error before any work.
    pub fn create(place: &Place, name: &VmName, format: &str, overwrite: bool) -> Result<Self> {
        let (result, link) = match place {
            Place::File(path) => (path.clone(), None),
            Place::Directory(path) => {
                let link = path.join(format!("{name}.{format}"));
                (path.join(name.as_str()), Some(link))
            }
        };
        let parent = durable::parent(&result);
        let directory = parent.join(format!(".{name}.{}.part", std::process::id()));
        let mut staging = Self {
            volume: HostVolume,
            directory,
            result,
            link,
            overwrite,
            is_ours: false,
        };
        staging.check()?;
        staging.volume.create_dir(&staging.directory, 0o755)?;
        staging.is_ours = true;
        Ok(staging)
    }

    fn check(&self) -> Result<()> {
        for path in std::iter::once(&self.result).chain(&self.link) {
            let taken = self.volume.stat(path)?.is_some();
            if taken && !self.overwrite {
                return Err(self.in_the_way(path));
            }
        }
        let is_directory = self.volume.stat(&self.result)?.is_some_and(is_directory);
        if is_directory
            && self
                .volume
                .stat(&self.result.join("metadata.json"))?
                .is_none()
        {
            return Err(Error::invalid(format!(
                "{} is no result of a conversion, and is not overwritten",
                self.result.display()
            ))
            .with_remedy("move it away, or choose another output"));
        }
        Ok(())
    }

    fn in_the_way(&self, path: &Path) -> Error {
        Error::invalid(format!("{} is there already", path.display()))
            .with_remedy("choose another output, or say --overwrite")
    }

    /// Where the disks are to be written.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where they will be: for a single image, the directory it stands in.
    pub fn result_dir(&self) -> &Path {
        if self.link.is_some() {
            &self.result
        } else {
            durable::parent(&self.result)
        }
    }

    /// Makes the result durable and puts it in place; `first` is the first disk's file name.
    /// Returns the image's path.
    pub fn publish(self, first: &str) -> Result<PathBuf> {
        durable::sync_tree(&self.volume, &self.directory)?;
        let Some(link) = &self.link else {
            self.put(&self.directory.join(first), &self.result)?;
            self.volume.sync(durable::parent(&self.result))?;
            return Ok(self.result.clone());
        };
        self.put(&self.directory, &self.result)?;
        let parent = durable::parent(&self.result);
        self.volume.sync(parent)?;
        let name = self.result.file_name().unwrap_or_default();
        let target = Path::new(name).join(first);
        let aside = self.directory.with_extension("link");
        self.volume.symlink(&target, &aside)?;
        self.put(&aside, link)?;
        self.volume.sync(parent)?;
        Ok(self.result.join(first))
    }

    /// Renames; what is replaced ends up at `from` and goes with the staging.
    fn put(&self, from: &Path, to: &Path) -> Result<()> {
        if self.volume.rename_new(from, to)? {
            return Ok(());
        }
        if !self.overwrite {
            return Err(self.in_the_way(to));
        }
        if self.volume.exchange(from, to)? {
            return durable::remove_tree(&self.volume, from);
        }
        self.volume.rename(from, to)
    }
}

fn is_directory(stat: Stat) -> bool {
    stat.kind == EntryKind::Directory
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.is_ours {
            return;
        }
        // What cannot be removed is ours, hidden, and named after this process.
        let _ = durable::remove_tree(&self.volume, &self.directory);
        let _ = self
            .volume
            .remove_file(&self.directory.with_extension("link"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overwrites_results_and_nothing_else() {
        let top = tempfile::tempdir().unwrap();
        let place = Place::Directory(top.path().to_path_buf());
        let name = VmName::new("vm").unwrap();
        let foreign = top.path().join("vm");
        std::fs::create_dir(&foreign).unwrap();
        std::fs::write(foreign.join("thesis.odt"), "mine").unwrap();
        assert!(Staging::create(&place, &name, "qcow2", true).is_err());
        std::fs::rename(&foreign, top.path().join("mine")).unwrap();
        for overwrite in [false, true] {
            let staging = Staging::create(&place, &name, "qcow2", overwrite).unwrap();
            // Another process of the same number, on another host.
            assert!(Staging::create(&place, &name, "qcow2", true).is_err());
            std::fs::write(staging.directory().join("vm.qcow2"), "x").unwrap();
            std::fs::write(staging.directory().join("metadata.json"), "{}").unwrap();
            staging.publish("vm.qcow2").unwrap();
            assert!(top.path().join("vm.qcow2").is_file());
        }
    }
}
