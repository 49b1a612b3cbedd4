//! The snapshot that a running VM is exported from: in the ledger before it is made, and removed
//! whatever happens.
use std::time::Duration;

use queue::job::JobId;
use roxmltree::Node;

use super::properties::returned;
use super::session::{Effect, Session};
use super::soap::{self, Moref, element};
use super::task;
use crate::error::{Error, ErrorKind, Result};
use crate::machine::{Debt, Ledger};
use crate::transfer::Monitor;

pub const DEBT: &str = "snapshot";
const PREFIX: &str = "hyper2kvm-";
/// Quiescing a busy guest takes minutes, consolidating a large delta hours.
const CREATE: Duration = Duration::from_secs(30 * 60);
const REMOVE: Duration = Duration::from_secs(6 * 60 * 60);
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(2);

pub struct Snapshot<'a> {
    session: &'a Session,
    ledger: &'a dyn Ledger,
    debt: Debt,
    pub object: Moref,
    pub warnings: Vec<String>,
}

/// The debt of a snapshot that is not made yet.
pub fn debt(server: &str, vm: &Moref) -> Debt {
    Debt {
        provider: super::NAME.to_owned(),
        server: server.to_owned(),
        kind: DEBT.to_owned(),
        of: vm.id.clone(),
        name: format!("{PREFIX}{}", JobId::new()),
    }
}

impl<'a> Snapshot<'a> {
    /// `steady` never cancels: a task that was begun is waited for, so that it can be undone.
    pub fn create(
        session: &'a Session,
        ledger: &'a dyn Ledger,
        debt: Debt,
        quiesce: bool,
        steady: &dyn Monitor,
    ) -> Result<Self> {
        ledger.owe(&debt)?;
        let vm = Moref::new("VirtualMachine", &debt.of);
        let mut warnings = Vec::new();
        let mut made = make(session, &vm, &debt.name, quiesce, steady);
        if let Err(error) = &made
            && quiesce
            && soap::fault(error).is_some()
        {
            warnings.push(format!(
                "the guest could not be quiesced ({}): its disks are as after a power failure",
                error.to_line()
            ));
            let _ = discard(session, &debt, steady);
            made = make(session, &vm, &debt.name, false, steady);
        }
        match made {
            Ok(object) => Ok(Self {
                session,
                ledger,
                debt,
                object,
                warnings,
            }),
            // The answer may have been lost, and not the snapshot.
            Err(error) => match settle(session, ledger, &debt, steady) {
                Ok(()) => Err(error),
                Err(second) => Err(stays(&debt, second)),
            },
        }
    }

    pub fn remove(self, steady: &dyn Monitor) -> Result<()> {
        settle(self.session, self.ledger, &self.debt, steady)
            .map_err(|error| stays(&self.debt, error))
    }
}

fn stays(debt: &Debt, error: Error) -> Error {
    let (name, vm) = (&debt.name, &debt.of);
    Error::new(
        error.kind,
        format!("the snapshot {name} of {vm} could not be removed"),
    )
    .with_remedy("it is noted and removed by the next export from this server; or do it by hand")
    .with_source(error.to_line())
}

fn make(
    session: &Session,
    vm: &Moref,
    name: &str,
    quiesce: bool,
    steady: &dyn Monitor,
) -> Result<Moref> {
    let description = "made for an export; it is removed when that ends";
    let arguments = [
        element("name", name),
        element("description", description),
        element("memory", "false"),
        element("quiesce", if quiesce { "true" } else { "false" }),
    ]
    .concat();
    let method = "CreateSnapshot_Task";
    let task = session.call(vm, method, &arguments, Effect::Once, steady, returned)?;
    let doing = format!("make a snapshot of {}", vm.id);
    let made = task::wait(session, &task, &doing, CREATE, steady)?;
    made.ok_or_else(|| Error::new(ErrorKind::Io, doing).with_source("the task returned nothing"))
}

/// Removes the snapshot of a debt, wherever it is in the VM's tree, and settles the debt.
pub fn settle(
    session: &Session,
    ledger: &dyn Ledger,
    debt: &Debt,
    steady: &dyn Monitor,
) -> Result<()> {
    let mut attempt = 1;
    loop {
        match discard(session, debt, steady) {
            Ok(()) => return ledger.settle(debt),
            Err(error) if attempt >= ATTEMPTS || !error.kind.is_transient() => return Err(error),
            Err(_) => task::rest(PAUSE * attempt, steady)?,
        }
        attempt += 1;
    }
}

fn discard(session: &Session, debt: &Debt, steady: &dyn Monitor) -> Result<()> {
    let vm = Moref::new("VirtualMachine", &debt.of);
    let gone = |error: &Error| soap::is_fault(error, &["ManagedObjectNotFound"]);
    finish_making(session, &vm, steady)?;
    let paths = ["snapshot", "name"];
    let found = session.look(&vm, &paths, steady, |found| {
        Ok(found
            .get("snapshot")
            .and_then(|tree| find(tree, &debt.name)))
    });
    let snapshot = match found {
        Ok(Some(snapshot)) => snapshot,
        Ok(None) => return Ok(()),
        // The VM is gone, and its snapshots with it.
        Err(error) if gone(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    let arguments = "<removeChildren>false</removeChildren><consolidate>true</consolidate>";
    let method = "RemoveSnapshot_Task";
    let removed = session
        .call(&snapshot, method, arguments, Effect::Once, steady, returned)
        .and_then(|task| {
            let doing = format!("remove the snapshot {}", debt.name);
            task::wait(session, &task, &doing, REMOVE, steady)
        });
    match removed {
        Err(error) if !gone(&error) => Err(error),
        _ => Ok(()),
    }
}

/// A snapshot that is still being made is not in the tree yet.
fn finish_making(session: &Session, vm: &Moref, steady: &dyn Monitor) -> Result<()> {
    let recent = session.look(vm, &["name", "recentTask"], steady, |found| {
        Ok(super::hardware::references(found.get("recentTask")))
    });
    let Ok(recent) = recent else {
        // The VM is gone, or cannot be seen: the next look tells.
        return Ok(());
    };
    for object in recent {
        let paths = ["info.descriptionId", "info.state"];
        let runs = session.look(&object, &paths, steady, |found| {
            let creates = found
                .text("info.descriptionId")
                .is_some_and(|id| id.ends_with(".createSnapshot"));
            Ok(creates && matches!(found.text("info.state"), Some("queued" | "running")))
        });
        // A task that is over may be forgotten at any time; how it ended is not of interest.
        if runs.unwrap_or(false) {
            let _ = task::wait(session, &object, "make a snapshot", CREATE, steady);
        }
    }
    Ok(())
}

/// The snapshot of that name in a `VirtualMachineSnapshotInfo`.
fn find(info: Node<'_, '_>, name: &str) -> Option<Moref> {
    let mut waiting: Vec<Node<'_, '_>> = soap::children(info, "rootSnapshotList").collect();
    while let Some(tree) = waiting.pop() {
        if soap::text(tree, "name") == Some(name) {
            return soap::child(tree, "snapshot").and_then(Moref::read);
        }
        waiting.extend(soap::children(tree, "childSnapshotList"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snapshot_is_found_wherever_it_is() {
        let tree = |id: &str, name: &str, more: &str, list: &str| {
            format!(
                "<{list}><snapshot type=\"VirtualMachineSnapshot\">{id}</snapshot><vm \
                 type=\"VirtualMachine\">vm-1</vm><name>{name}</name><quiesced>true</quiesced>\
                 {more}</{list}>"
            )
        };
        let inner = tree("snapshot-3", "hyper2kvm-x", "", "childSnapshotList");
        let xml = format!(
            "<val>{}{}</val>",
            tree("snapshot-1", "monday", "", "rootSnapshotList"),
            tree("snapshot-2", "tuesday", &inner, "rootSnapshotList")
        );
        let document = roxmltree::Document::parse(&xml).unwrap();
        let find = |name| find(document.root_element(), name).map(|found| found.id);
        assert_eq!(find("hyper2kvm-x").as_deref(), Some("snapshot-3"));
        assert_eq!(find("monday").as_deref(), Some("snapshot-1"));
        assert_eq!(find("hyper2kvm"), None);
    }
}
