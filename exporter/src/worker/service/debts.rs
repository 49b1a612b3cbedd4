//! What exports that died left on servers is removed: before the next export from that server, and
//! now and then for those that are never tried again.
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Servers, connect};
use crate::error::{Error, ErrorKind, Result};
use crate::export::origin::is_creditor;
use crate::machine::Provider;
use crate::worker::ledger::FileLedger;

/// How often debts are looked for: an export that is tried again settles its own.
const INTERVAL: Duration = Duration::from_secs(60);

/// Settles what dead exports owe to the server that `provider` talks to.
pub fn settle(debts: &Path, provider: &dyn Provider) -> Result<()> {
    for ledger in FileLedger::abandoned(debts)? {
        provider.clean_up(&ledger.debts(), &ledger)?;
    }
    Ok(())
}

/// The thread that settles what no export does.
pub struct Collector {
    servers: Arc<Mutex<Servers>>,
}

impl Collector {
    pub fn start(debts: &Path, servers: &Servers) -> Result<Self> {
        let collector = Self {
            servers: Arc::new(Mutex::new(servers.clone())),
        };
        let (debts, servers) = (debts.to_path_buf(), collector.servers.clone());
        std::thread::Builder::new()
            .name("debts".to_owned())
            .spawn(move || collect(&debts, &servers))
            .map_err(|error| {
                Error::new(ErrorKind::Internal, "start a thread").with_source(error)
            })?;
        Ok(collector)
    }

    pub fn set_servers(&self, servers: &Servers) {
        *self.servers.lock().unwrap_or_else(PoisonError::into_inner) = servers.clone();
    }
}

/// Ends with the process: a ledger survives that at any moment.
fn collect(debts: &Path, servers: &Mutex<Servers>) {
    loop {
        let now = servers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Err(error) = settle_all(debts, &now) {
            tracing::warn!(
                "what dead exports left cannot be looked for: {}",
                error.to_line()
            );
        }
        std::thread::sleep(INTERVAL);
    }
}

fn settle_all(debts: &Path, servers: &Servers) -> Result<()> {
    for ledger in FileLedger::abandoned(debts)? {
        for (name, server) in servers {
            let owed = ledger.debts();
            if !owed.iter().any(|debt| is_creditor(debt, name, server)) {
                continue;
            }
            let cleaned =
                connect(name, server).and_then(|provider| provider.clean_up(&owed, &ledger));
            // The other servers are still to be tried.
            if let Err(error) = cleaned {
                let cause = error.to_line();
                tracing::warn!("left on server {name}, to be tried again: {cause}");
            }
        }
        for debt in ledger.debts() {
            let mut known = servers.iter();
            if known.any(|(name, server)| is_creditor(&debt, name, server)) {
                continue;
            }
            let (kind, of, server) = (&debt.kind, &debt.of, &debt.server);
            tracing::warn!("a {kind} of {of} is left on {server}, which is not configured");
        }
    }
    Ok(())
}
