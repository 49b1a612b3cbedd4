//! What running exports owe to servers, in files: one per run, locked for as long as it lives.
//!
//! A run that died leaves its file unlocked; whoever comes next takes it over and cleans up.
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use queue::durable::{self, HostVolume, Lock, Volume};
use queue::job::JobId;

use crate::error::{Error, ErrorKind, Result};
use crate::machine::{Debt, Ledger};

const MODE: u32 = 0o700;
const MAX_BYTES: u64 = 1024 * 1024;
const LOCK: &str = "lock";
const DEBTS: &str = "json";

/// The debts of one run, in `<directory>/<run>.json`; nothing is there while it owes nothing.
pub struct FileLedger {
    /// Without an extension.
    path: PathBuf,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    debts: Vec<Debt>,
    lock: Option<Lock>,
}

impl FileLedger {
    pub fn new(directory: &Path) -> Self {
        Self {
            path: directory.join(JobId::new().to_string()),
            held: Mutex::default(),
        }
    }

    /// The ledgers of runs that died, taken over.
    pub fn abandoned(directory: &Path) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        if HostVolume.stat(directory)?.is_none() {
            return Ok(found);
        }
        for entry in HostVolume.read_dir(directory)? {
            let path = directory.join(&entry.name);
            if path.extension().is_none_or(|extension| extension != DEBTS) {
                continue;
            }
            let Some(lock) = HostVolume.lock(&path.with_extension(LOCK), true)? else {
                continue;
            };
            // Its run may have ended between the listing and the lock.
            let Some(bytes) = HostVolume.read(&path, MAX_BYTES)? else {
                HostVolume.remove_file(&path.with_extension(LOCK))?;
                continue;
            };
            let debts = serde_json::from_slice(&bytes).map_err(|error| {
                Error::invalid(format!("{} is not a list of debts", path.display()))
                    .with_remedy("move it away, and look for snapshots named hyper2kvm-*")
                    .with_source(error)
            })?;
            found.push(Self {
                path: path.with_extension(""),
                held: Mutex::new(Held {
                    debts,
                    lock: Some(lock),
                }),
            });
        }
        Ok(found)
    }

    pub fn debts(&self) -> Vec<Debt> {
        self.held().debts.clone()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, held: &mut Held) -> Result<()> {
        let path = self.path.with_extension(DEBTS);
        let lock = self.path.with_extension(LOCK);
        if held.debts.is_empty() {
            HostVolume.remove_file(&path)?;
            HostVolume.remove_file(&lock)?;
            HostVolume.sync(durable::parent(&path))?;
            held.lock = None;
            return Ok(());
        }
        if held.lock.is_none() {
            make_directories(durable::parent(&path))?;
            held.lock = HostVolume.lock(&lock, true)?;
        }
        let text = serde_json::to_vec_pretty(&held.debts).map_err(|error| {
            Error::new(ErrorKind::Internal, "write the list of debts").with_source(error)
        })?;
        durable::replace(&HostVolume, &path, &text)
    }
}

/// Durable as well: a debt must not go with its directory.
fn make_directories(directory: &Path) -> Result<()> {
    if HostVolume.stat(directory)?.is_some() {
        return Ok(());
    }
    if let Some(parent) = directory.parent() {
        make_directories(parent)?;
    }
    durable::ensure_dir(&HostVolume, directory, MODE).map(|_| ())
}

impl Ledger for FileLedger {
    fn owe(&self, debt: &Debt) -> Result<()> {
        let mut held = self.held();
        held.debts.push(debt.clone());
        self.write(&mut held)
    }

    fn settle(&self, debt: &Debt) -> Result<()> {
        let mut held = self.held();
        let before = held.debts.len();
        held.debts.retain(|owed| owed != debt);
        if held.debts.len() == before {
            return Ok(());
        }
        self.write(&mut held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debt(name: &str) -> Debt {
        Debt {
            provider: "vsphere".to_owned(),
            server: "vc".to_owned(),
            kind: "snapshot".to_owned(),
            of: "vm-1".to_owned(),
            name: name.to_owned(),
        }
    }

    #[test]
    fn a_dead_runs_debts_are_taken_over_once() {
        let top = tempfile::tempdir().unwrap();
        let place = top.path().join("state/debts");
        assert!(FileLedger::abandoned(&place).unwrap().is_empty());
        let ledger = FileLedger::new(&place);
        ledger.owe(&debt("a")).unwrap();
        ledger.owe(&debt("b")).unwrap();
        ledger.settle(&debt("a")).unwrap();
        assert!(FileLedger::abandoned(&place).unwrap().is_empty());
        drop(ledger);
        let taken = FileLedger::abandoned(&place).unwrap();
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].debts(), [debt("b")]);
        assert!(FileLedger::abandoned(&place).unwrap().is_empty());
        taken[0].settle(&debt("b")).unwrap();
        taken[0].settle(&debt("b")).unwrap();
        assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0);
        drop(taken);
        std::fs::write(place.join("x.json"), "[{").unwrap();
        assert!(FileLedger::abandoned(&place).is_err());
    }
}
