//! What a repair writes on: throwaway overlays over the images, committed all or none.
//!
//! Staged images that a crash leaves half committed are converted again. On published ones, the
//! intention to commit is durable before the first byte is, and committing twice is the same as
//! once: `redo` finishes what a crash left.
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::appliance::{Drive, drive, guest};
use crate::error::{Error, Result};

/// In the directory of the images, until the repair ended.
const DIRECTORY: &str = ".repair";
const INTENTION: &str = "commit.json";
const TOOL: &str = "qemu-img";

/// A staged image and its format's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    pub path: PathBuf,
    pub format: &'static str,
}

/// How files become durable: whoever knows the queue lends it.
pub struct Shelf<'a> {
    /// Makes the file or directory at a path durable.
    pub sync: &'a dyn Fn(&Path) -> Result<()>,
    /// Puts a file in its place in one step, durably.
    pub replace: &'a dyn Fn(&Path, &[u8]) -> Result<()>,
}

/// The overlays that are to be committed, by file name.
#[derive(Debug, Serialize, Deserialize)]
struct Intention {
    overlays: Vec<String>,
}

/// Overlays over some images; dropped, they are gone, and the images are as they were.
pub struct Overlays {
    directory: PathBuf,
    files: Vec<PathBuf>,
}

impl Overlays {
    /// Creates an overlay for each image; `directory` is theirs.
    pub fn create(directory: &Path, images: &[Image]) -> Result<Self> {
        let directory = directory.join(DIRECTORY);
        clear(&directory)?;
        std::fs::create_dir(&directory).map_err(|e| Error::io("create", &directory, e))?;
        let mut overlays = Self {
            directory,
            files: Vec::with_capacity(images.len()),
        };
        for (number, image) in images.iter().enumerate() {
            let file = overlays.directory.join(format!("disk{number}.qcow2"));
            let mut command = Command::new(TOOL);
            command.args(["create", "-q", "-f", "qcow2", "-F", image.format, "-b"]);
            command.arg(&image.path).arg(&file);
            run(command)?;
            overlays.files.push(file);
        }
        Ok(overlays)
    }

    pub fn drives(&self) -> Result<Vec<Drive>> {
        self.files
            .iter()
            .map(|file| drive(file, "qcow2", false))
            .collect()
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    fn intention(&self) -> Intention {
        let name = |file: &PathBuf| Some(file.file_name()?.to_str()?.to_owned());
        Intention {
            overlays: self.files.iter().filter_map(name).collect(),
        }
    }

    /// Writes what the overlays hold into staged images.
    pub fn commit(self) -> Result<()> {
        carry_out(&self.directory, &self.intention())
    }

    /// Writes what the overlays hold into published images: into all of them, whatever happens.
    /// After an error, `redo` goes on.
    pub fn commit_durably(self, shelf: &Shelf<'_>) -> Result<()> {
        let intention = self.intention();
        for file in &self.files {
            (shelf.sync)(file)?;
        }
        let text = serde_json::to_vec(&intention)
            .map_err(|error| guest("note the commit of a repair").with_source(error))?;
        (shelf.replace)(&self.directory.join(INTENTION), &text)?;
        carry_out(&self.directory, &intention)
    }
}

impl Drop for Overlays {
    fn drop(&mut self) {
        // A commit that was begun is not forgotten.
        if !self.directory.join(INTENTION).exists() {
            let _ = clear(&self.directory);
        }
    }
}

/// Finishes the commit that was begun in this directory of images; whether there was one.
pub fn redo(directory: &Path) -> Result<bool> {
    let directory = directory.join(DIRECTORY);
    let path = directory.join(INTENTION);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            clear(&directory)?;
            return Ok(false);
        }
        Err(error) => return Err(Error::io("read", &path, error)),
    };
    let intention: Intention = serde_json::from_slice(&text)
        .map_err(|error| guest(format!("read {}", path.display())).with_source(error))?;
    carry_out(&directory, &intention)?;
    Ok(true)
}

fn carry_out(directory: &Path, intention: &Intention) -> Result<()> {
    for overlay in &intention.overlays {
        let mut command = Command::new(TOOL);
        // -d keeps the overlay whole, so that this may be done again.
        command
            .args(["commit", "-q", "-d", "-f", "qcow2"])
            .arg(directory.join(overlay));
        run(command)?;
    }
    // The intention first: without it, what else lies there means nothing.
    let path = directory.join(INTENTION);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", &path, error))
        }
        _ => clear(directory),
    }
}

fn clear(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", directory, error))
        }
        _ => Ok(()),
    }
}

fn run(mut command: Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| {
        guest(format!("start {TOOL}"))
            .with_remedy("install it (Debian: qemu-utils, Fedora and RHEL: qemu-img)")
            .with_source(error)
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().last().unwrap_or("it does not say why");
    let kind = match said.contains("No space left") {
        true => crate::error::ErrorKind::NoSpace,
        false => crate::error::ErrorKind::Guest,
    };
    Err(Error::new(kind, format!("{TOOL}: {said}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn staged(top: &Path) -> Vec<Image> {
        let make = |name: &str, byte: u8| {
            let path = top.join(name);
            std::fs::write(&path, vec![byte; 1 << 20]).unwrap();
            Image {
                path,
                format: "raw",
            }
        };
        vec![make("a.raw", 1), make("b.raw", 2)]
    }

    fn scribble(overlays: &Overlays) {
        for file in &overlays.files {
            let mut command = Command::new("qemu-io");
            command
                .args(["-f", "qcow2", "-c", "write -P 9 0 64k"])
                .arg(file);
            run(command).unwrap();
        }
    }

    fn first_bytes(images: &[Image]) -> Vec<u8> {
        images
            .iter()
            .map(|image| std::fs::read(&image.path).unwrap()[0])
            .collect()
    }

    #[test]
    fn nothing_or_all() {
        let top = tempfile::tempdir().unwrap();
        let images = staged(top.path());
        let overlays = Overlays::create(top.path(), &images).unwrap();
        scribble(&overlays);
        drop(overlays);
        assert_eq!(first_bytes(&images), [1, 2]);
        let overlays = Overlays::create(top.path(), &images).unwrap();
        scribble(&overlays);
        overlays.commit().unwrap();
        assert_eq!(first_bytes(&images), [9, 9]);
        assert!(!redo(top.path()).unwrap());
        assert_eq!(top.path().read_dir().unwrap().count(), 2);
    }

    #[test]
    fn a_crash_between_two_commits_is_finished() {
        let top = tempfile::tempdir().unwrap();
        let images = staged(top.path());
        let overlays = Overlays::create(top.path(), &images).unwrap();
        scribble(&overlays);
        // The process dies when the first image is written, the second is not.
        let second = overlays.files[1].clone();
        let hidden = second.with_extension("hidden");
        std::fs::rename(&second, &hidden).unwrap();
        let directory = overlays.directory.clone();
        let text = r#"{"overlays":["disk0.qcow2","disk1.qcow2"]}"#;
        std::fs::write(directory.join(INTENTION), text).unwrap();
        drop(overlays);
        assert!(redo(top.path()).is_err());
        assert_eq!(first_bytes(&images), [9, 2]);
        std::fs::rename(&hidden, &second).unwrap();
        assert!(redo(top.path()).unwrap());
        assert_eq!(first_bytes(&images), [9, 9]);
        assert!(!directory.exists());
    }
}
