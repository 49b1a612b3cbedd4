//! A guest in memory, from a folder of samples.
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::Result;
use crate::guest::linux::plan::{Action, Tree};
use crate::guest::model::Guest;

pub type Contents = BTreeMap<String, Vec<u8>>;

#[derive(Debug, Clone, Default)]
pub struct Files {
    pub contents: Contents,
    pub links: BTreeMap<String, String>,
    pub present: Vec<String>,
}

impl Tree for Files {
    fn read(&mut self, path: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.contents.get(path).cloned())
    }

    fn list(&mut self, directory: &str) -> Result<Vec<String>> {
        let inside = format!("{directory}/");
        let all = self
            .contents
            .keys()
            .chain(self.links.keys())
            .chain(&self.present);
        let mut names: Vec<String> = all
            .filter_map(|path| path.strip_prefix(&inside)?.split('/').next())
            .map(str::to_owned)
            .collect();
        names.sort();
        names.dedup();
        Ok(names)
    }

    fn exists(&mut self, path: &str) -> Result<bool> {
        let inside = format!("{path}/");
        let mut all = self
            .contents
            .keys()
            .chain(self.links.keys())
            .chain(&self.present);
        Ok(all.any(|known| known == path || known.starts_with(&inside)))
    }
}

impl Files {
    pub fn apply(&mut self, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Write {
                    path,
                    contents,
                    changes,
                } => {
                    assert!(!changes.is_empty(), "{path} is written without a reason");
                    assert!(path.starts_with('/') && !path.contains("/../"), "{path}");
                    self.contents.insert(path.clone(), contents.clone());
                }
                Action::Remove { path, .. } => {
                    let was = self.contents.remove(path).is_some();
                    assert!(
                        was || self.links.remove(path).is_some(),
                        "{path} is not there"
                    );
                }
                Action::Link { path, target, .. } => {
                    assert!(
                        self.links.insert(path.clone(), target.clone()).is_none(),
                        "{path}"
                    );
                }
                Action::Copy { from, to, .. } => {
                    let contents = self.contents.get(from).unwrap().clone();
                    self.contents.insert(to.clone(), contents);
                }
                Action::Rebuild { .. } | Action::Run { .. } | Action::Warn { .. } => {}
            }
        }
    }
}

/// What is known of a sample besides its files.
#[derive(Deserialize)]
struct Facts {
    guest: Guest,
    links: BTreeMap<String, String>,
    present: Vec<String>,
}

pub struct Sample {
    folder: PathBuf,
    pub guest: Guest,
    pub files: Files,
}

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/guest/linux/samples")
}

fn load_files(top: &Path) -> Contents {
    let mut files = Contents::new();
    let mut folders = vec![top.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let inside = path.strip_prefix(top).unwrap().to_str().unwrap();
                files.insert(format!("/{inside}"), std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

impl Sample {
    pub fn names() -> Vec<String> {
        let entries = std::fs::read_dir(top()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub fn load(name: &str) -> Self {
        let folder = top().join(name);
        let facts = std::fs::read(folder.join("guest.json")).unwrap();
        let Facts {
            guest,
            links,
            present,
        } = serde_json::from_slice(&facts).unwrap();
        let contents = load_files(&folder.join("before"));
        let files = Files {
            contents,
            links,
            present,
        };
        Self {
            folder,
            guest,
            files,
        }
    }

    /// As if every initramfs had been made anew.
    pub fn rebuilt(&mut self) {
        for kernel in &mut self.guest.kernels {
            let all = crate::guest::linux::initramfs::listing::WANTED;
            kernel.drivers = all.map(str::to_owned).to_vec();
        }
    }

    /// The files as they should be afterwards, and the list of actions.
    pub fn expected(&self, before: &Contents) -> (Contents, String) {
        let told = std::fs::read_to_string(self.folder.join("actions.txt")).unwrap();
        let mut files = before.clone();
        for line in told.lines() {
            if let Some(path) = line.strip_prefix("remove ") {
                files.remove(path.split(": ").next().unwrap());
            }
        }
        files.extend(load_files(&self.folder.join("after")));
        (files, told)
    }

    pub fn write(&self, before: &Contents, told: &str) {
        let after = self.folder.join("after");
        let _ = std::fs::remove_dir_all(&after);
        std::fs::create_dir_all(&after).unwrap();
        for (path, contents) in &self.files.contents {
            if before.get(path) != Some(contents) {
                let path = after.join(path.trim_start_matches('/'));
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, contents).unwrap();
            }
        }
        std::fs::write(self.folder.join("actions.txt"), told).unwrap();
    }
}

/// One line for each action, and one below for each change of a file.
pub fn describe(actions: &[Action]) -> String {
    let mut text = String::new();
    for action in actions {
        match action {
            Action::Write { path, changes, .. } => {
                writeln!(text, "write {path}").unwrap();
                for change in changes {
                    writeln!(text, "  {}: {}", change.line, change.reason).unwrap();
                }
            }
            Action::Remove { path, reason } => writeln!(text, "remove {path}: {reason}").unwrap(),
            Action::Link {
                path,
                target,
                reason,
            } => {
                writeln!(text, "link {path} -> {target}: {reason}").unwrap();
            }
            Action::Copy { from, to, reason } => {
                writeln!(text, "copy {from} -> {to}: {reason}").unwrap();
            }
            Action::Rebuild {
                build,
                list,
                drivers,
                touches,
                reason,
                ..
            } => {
                writeln!(text, "rebuild {}: {reason}", build.join(" ")).unwrap();
                writeln!(text, "  {} must list {}", list.join(" "), drivers.join(" ")).unwrap();
                writeln!(text, "  changes {}", touches.join(" ")).unwrap();
            }
            Action::Run {
                arguments, reason, ..
            } => {
                writeln!(text, "run {}: {reason}", arguments.join(" ")).unwrap();
            }
            Action::Warn { code, text: said } => writeln!(text, "warn {code}: {said}").unwrap(),
        }
    }
    text
}
