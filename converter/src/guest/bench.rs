//! The mounted guest as the repairs see it: files that are read, and changed with a note of why.
use super::appliance::Appliance;
use super::linux::edit::MAX_FILE_BYTES;
use super::linux::plan::Tree;
use super::model::{Entry, FileChange};
use crate::error::Result;

pub struct Bench<'a, 'b> {
    pub appliance: &'a mut Appliance<'b>,
    /// Every path that was changed, once, in the order of the first change.
    pub changes: Vec<FileChange>,
    /// What was left as it is, and why.
    pub skipped: Vec<String>,
    /// The guest's programs that were run.
    pub ran: Vec<String>,
}

impl<'a, 'b> Bench<'a, 'b> {
    pub fn new(appliance: &'a mut Appliance<'b>) -> Self {
        Self {
            appliance,
            changes: Vec::new(),
            skipped: Vec::new(),
            ran: Vec::new(),
        }
    }

    /// What stands at a path; of a device, a directory or a pipe: nothing.
    pub fn entry(&mut self, path: &str) -> Result<Entry> {
        if self.appliance.flag("is_symlink", &[path])? {
            return Ok(Entry::Link(self.appliance.text("readlink", &[path])?));
        }
        if !self.appliance.flag("is_file", &[path])? {
            return Ok(Entry::Nothing);
        }
        self.appliance.read(path).map(Entry::File)
    }

    /// Puts `after` at the path, keeping owner and mode of a file that stays one.
    pub fn put(&mut self, path: &str, after: Entry, reason: &str) -> Result<()> {
        let before = self.entry(path)?;
        if before == after {
            return Ok(());
        }
        if before == Entry::Nothing
            && let Some((parent, _)) = path.rsplit_once('/')
        {
            self.appliance.call("mkdir_p", &[&format!("{parent}/")])?;
        }
        match (&before, &after) {
            (_, Entry::Nothing) => self.appliance.call("rm_f", &[path])?,
            (_, Entry::Link(target)) => self.appliance.call("ln_sf", &[target, path])?,
            (Entry::File(_), Entry::File(bytes)) => {
                let stat = self.appliance.stat(path)?;
                self.appliance.write(path, bytes)?;
                self.appliance.set_owner(path, stat)?;
            }
            (_, Entry::File(bytes)) => {
                // A link is replaced, not written through.
                self.appliance.call("rm_f", &[path])?;
                self.appliance.write(path, bytes)?;
            }
        }
        self.note(FileChange {
            path: path.to_owned(),
            reason: reason.to_owned(),
            before,
            after,
        });
        Ok(())
    }

    fn note(&mut self, change: FileChange) {
        let earlier = self
            .changes
            .iter_mut()
            .find(|known| known.path == change.path);
        match earlier {
            Some(known) => {
                known.after = change.after;
                if !known.reason.contains(&change.reason) {
                    known.reason = format!("{}; {}", known.reason, change.reason);
                }
            }
            None => self.changes.push(change),
        }
        self.changes.retain(|change| change.before != change.after);
    }

    /// Runs a program of the guest that may change these files; what it printed.
    pub fn run(
        &mut self,
        arguments: &[String],
        touches: &[String],
        reason: &str,
    ) -> Result<String> {
        let mut before = Vec::with_capacity(touches.len());
        for path in touches {
            before.push(self.entry(path)?);
        }
        self.ran.push(arguments.join(" "));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let said = self.appliance.run(&arguments);
        // A program that failed half way has changed something, too.
        for (path, before) in touches.iter().zip(before) {
            let after = self.entry(path)?;
            if before != after {
                self.note(FileChange {
                    path: path.clone(),
                    reason: reason.to_owned(),
                    before,
                    after,
                });
            }
        }
        said
    }
}

impl Tree for Bench<'_, '_> {
    fn read(&mut self, path: &str) -> Result<Option<Vec<u8>>> {
        if !self.appliance.flag("is_file", &[path])? {
            return Ok(None);
        }
        let mut bytes = self.appliance.read(path)?;
        bytes.truncate(MAX_FILE_BYTES + 1);
        Ok(Some(bytes))
    }

    fn list(&mut self, directory: &str) -> Result<Vec<String>> {
        let directory = format!("{directory}/");
        if !self.appliance.flag("is_dir", &[&directory])? {
            return Ok(Vec::new());
        }
        self.appliance.list("ls", &[&directory])
    }

    fn exists(&mut self, path: &str) -> Result<bool> {
        self.appliance.flag("exists", &[path])
    }
}
