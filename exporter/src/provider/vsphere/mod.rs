//! Provider `vsphere`: VMs of a vCenter or an ESXi host, 6.5 to 8, over the SOAP API (vim25).
//!
//! A VM that is off is exported as it is, any other one from a snapshot of its own that is
//! removed again. Nothing else is changed on the server.
mod descriptor;
mod disks;
mod export;
mod hardware;
mod inventory;
mod lease;
mod networks;
mod properties;
mod session;
mod snapshot;
mod soap;
mod task;

use std::path::Path;
use std::time::Duration;

use queue::job::VmName;

use self::export::Export;
use self::hardware::Described;
use self::inventory::Inventory;
use self::session::Session;
use self::soap::Moref;
use super::secret::Secret;
use crate::error::{Error, ErrorKind, Result};
use crate::machine::{Debt, Exported, Ledger, Order, Provider, Summary, Vm};
use crate::transfer::http::Url;
use crate::transfer::tls::Trust;
use crate::transfer::{Monitor, Steady};

pub const NAME: &str = "vsphere";
pub const PORT: u16 = 443;

/// A vCenter or an ESXi host, and how to talk to it. Without its password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// A name or an address, an IPv6 one in brackets.
    pub host: String,
    pub port: u16,
    pub username: String,
    pub trust: Trust,
    /// Disks of a VM that are downloaded at the same time.
    pub disks_at_once: usize,
    /// How long the server may send nothing.
    pub stall: Duration,
}

impl Server {
    /// `address` is `host` or `host:port`.
    pub fn new(address: &str, username: &str, trust: Trust) -> Result<Self> {
        let bad = || {
            Error::invalid(format!("{address:?} is not the address of a server"))
                .with_remedy("give a host's name or address, with :port if it is not 443")
        };
        let url = Url::parse(&format!("https://{address}/")).map_err(|_| bad())?;
        let plain = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        if !plain || !url.username().is_empty() || url.password().is_some() {
            return Err(bad());
        }
        Ok(Self {
            host: url.host_str().ok_or_else(bad)?.to_owned(),
            port: url.port().unwrap_or(PORT),
            username: username.to_owned(),
            trust,
            disks_at_once: 4,
            stall: Duration::from_secs(60),
        })
    }

    /// `host:port`; how debts name it.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    fn url(&self, path: &str) -> Result<Url> {
        let text = format!("https://{}{path}", self.authority());
        Url::parse(&text).map_err(|error| {
            Error::invalid(format!("{} is no address", self.authority())).with_source(error)
        })
    }
}

pub struct Vsphere {
    server: Server,
    session: Session,
}

impl Vsphere {
    /// Logs in.
    pub fn connect(server: Server, secret: Secret) -> Result<Self> {
        let session = Session::open(&server, secret, &Steady)?;
        Ok(Self { server, session })
    }

    fn described(&self, vm: &Moref) -> Result<Described> {
        let session = &self.session;
        let mut described = session.look(vm, &hardware::PROPERTIES, &Steady, hardware::describe)?;
        let (path, datacenter) = inventory::locate(session, vm, &Steady)?;
        described.vm.location = Some(path);
        described.vm.datacenter = datacenter;
        networks::name(session, &mut described, &Steady)?;
        let name = VmName::new(&described.vm.name)?;
        for (number, disk) in (1..).zip(&mut described.vm.disks) {
            disk.file = format!("{name}-disk{number}.vmdk");
        }
        Ok(described)
    }
}

impl Drop for Vsphere {
    fn drop(&mut self) {
        self.session.log_out(&Steady);
    }
}

impl Provider for Vsphere {
    fn name(&self) -> &'static str {
        NAME
    }

    fn discover(&self, pattern: &str) -> Result<Vec<Summary>> {
        let found = Inventory::read(&self.session, &Steady)?.find(pattern);
        Ok(found.into_iter().map(|entry| entry.summary).collect())
    }

    fn describe(&self, vm: &str) -> Result<Vm> {
        let object = inventory::resolve(&self.session, vm, &Steady)?;
        self.described(&object).map(|described| described.vm)
    }

    fn export(
        &self,
        vm: &Vm,
        into: &Path,
        order: Order<'_>,
        ledger: &dyn Ledger,
        monitor: &dyn Monitor,
    ) -> Result<Exported> {
        let object = Moref::new("VirtualMachine", &vm.id);
        // As it is now: its power decides how it is exported.
        let mut described = self.described(&object)?;
        if described.vm.disks.len() != vm.disks.len() {
            return Err(Error::new(
                ErrorKind::Io,
                format!("the disks of {} changed since it was looked at", vm.name),
            )
            .with_remedy("export it again"));
        }
        for (disk, wanted) in described.vm.disks.iter_mut().zip(&vm.disks) {
            disk.file.clone_from(&wanted.file);
        }
        let export = Export {
            session: &self.session,
            server: &self.server,
            object,
            described: &described,
            into,
            order,
            ledger,
            monitor,
        };
        export.run()
    }

    fn clean_up(&self, debts: &[Debt], ledger: &dyn Ledger) -> Result<()> {
        let server = self.server.authority();
        let ours = debts
            .iter()
            .filter(|debt| debt.provider == NAME && debt.server == server);
        let mut failed = Ok(());
        for debt in ours {
            let settled = match debt.kind.as_str() {
                snapshot::DEBT => snapshot::settle(&self.session, ledger, debt, &Steady),
                _ => lease::settle(&self.session, ledger, debt, &Steady),
            };
            // The others are still to be tried.
            failed = failed.and(settled);
        }
        failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_servers() {
        let server = |address: &str| Server::new(address, "u", Trust::default());
        for (address, authority) in [
            ("vc.example.com", "vc.example.com:443"),
            ("vc:8443", "vc:8443"),
            ("10.0.0.1", "10.0.0.1:443"),
            ("[fe80::1]:9443", "[fe80::1]:9443"),
        ] {
            assert_eq!(server(address).unwrap().authority(), authority);
        }
        for wrong in [
            "",
            "a b",
            "user@vc",
            "u:p@vc",
            "vc/sdk",
            "vc?x",
            "vc:99999",
            "https://vc",
        ] {
            assert!(server(wrong).is_err(), "{wrong}");
        }
    }
}
