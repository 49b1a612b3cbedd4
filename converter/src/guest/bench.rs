//! The mounted guest as the repairs see it: files that are read, and changed with a note of why.
use super::appliance::Appliance;
use super::model::FileChange;
use crate::error::Result;

pub struct Bench<'a, 'b> {
    pub appliance: &'a mut Appliance<'b>,
    /// Every file that was changed, once, in the order of the first change.
    pub changes: Vec<FileChange>,
    pub skipped: Vec<String>,
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

    /// A regular file's contents; `None` if there is none.
    pub fn read(&mut self, path: &str) -> Result<Option<Vec<u8>>> {
        if !self.appliance.flag("exists", &[path])? {
            return Ok(None);
        }
        self.appliance.read(path).map(Some)
    }

    /// Makes the change, keeping owner and mode of a file that was there.
    pub fn put(&mut self, change: FileChange) -> Result<()> {
        if change.before == change.after {
            return Ok(());
        }
        match &change.after {
            None => self.appliance.call("rm_f", &[&change.path])?,
            Some(bytes) => {
                let stat = match change.before {
                    Some(_) => Some(self.appliance.stat(&change.path)?),
                    None => {
                        if let Some((parent, _)) = change.path.rsplit_once('/') {
                            self.appliance.call("mkdir_p", &[&format!("{parent}/")])?;
                        }
                        None
                    }
                };
                self.appliance.write(&change.path, bytes)?;
                if let Some(stat) = stat {
                    self.appliance.set_owner(&change.path, stat)?;
                }
            }
        }
        self.note(change);
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

    /// Runs a program of the guest that may change these files.
    pub fn run(&mut self, arguments: &[&str], touches: &[String], reason: &str) -> Result<String> {
        let mut before = Vec::with_capacity(touches.len());
        for path in touches {
            before.push(self.read(path)?);
        }
        self.ran.push(arguments.join(" "));
        let said = self.appliance.run(arguments)?;
        for (path, before) in touches.iter().zip(before) {
            let after = self.read(path)?;
            if before != after {
                self.note(FileChange {
                    path: path.clone(),
                    reason: reason.to_owned(),
                    before,
                    after,
                });
            }
        }
        Ok(said)
    }
}
