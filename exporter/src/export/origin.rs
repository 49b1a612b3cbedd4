//! Where VMs come from: what a server's section says, or flags that come to the same, becomes a
//! provider. Nothing else makes one.
use std::sync::Arc;

use queue::instance::exports::Server as Section;

use crate::error::{Error, ErrorKind, Result};
use crate::machine::{Debt, Provider};
use crate::provider::local::{self, Local, Reach};
use crate::provider::secret::Secret;
use crate::provider::vsphere::{self, Server, Vsphere};
use crate::transfer::tls::{Thumbprint, Trust, Vouched};

/// A place that VMs come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Files of this host, or on a web server.
    Local(Reach),
    /// A vCenter or an ESXi host.
    Vsphere { server: Server, secret: Secret },
}

impl Origin {
    /// The server `name` as its section says; `secret` is asked for a password if it has one.
    pub fn of(
        name: &str,
        section: &Section,
        secret: impl FnOnce(&Server) -> Result<Secret>,
    ) -> Result<Self> {
        match section.provider.as_str() {
            local::NAME => Ok(Self::Local(Reach::of(section, trust(section)?)?)),
            vsphere::NAME => {
                let server = server(name, section)?;
                let secret = secret(&server)?;
                Ok(Self::Vsphere { server, secret })
            }
            other => Err(Error::new(
                ErrorKind::Unsupported,
                format!("server {name:?}: this version has no provider {other:?}"),
            )
            .with_remedy("name one that it has: vsphere or local")),
        }
    }

    /// The server `name` as the service is configured for it, with the password that it was given.
    pub fn configured(name: &str, section: &Section) -> Result<Self> {
        let file = section.password_file.as_deref();
        Self::of(name, section, |_| Secret::of_server(name, file))
    }

    /// Whether all that it takes is there, as far as this host can tell.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Local(reach) => reach.trust.config("", &Vouched::default()).map(drop),
            Self::Vsphere { server, .. } => server
                .trust
                .config(&server.host, &Vouched::default())
                .map(drop),
        }
    }

    pub fn connect(&self) -> Result<Arc<dyn Provider>> {
        match self {
            Self::Local(reach) => Ok(Arc::new(Local::new(reach.clone()))),
            Self::Vsphere { server, secret } => {
                Ok(Arc::new(Vsphere::connect(server.clone(), secret.clone())?))
            }
        }
    }
}

/// Whether that server is the one that can settle the debt. Needs neither password nor network.
pub fn is_creditor(debt: &Debt, name: &str, section: &Section) -> bool {
    debt.provider == section.provider
        && section.provider == vsphere::NAME
        && server(name, section).is_ok_and(|server| server.authority() == debt.server)
}

fn server(name: &str, section: &Section) -> Result<Server> {
    let address = section.address.as_deref().unwrap_or(name);
    let username = section.username.as_deref().ok_or_else(|| {
        Error::invalid(format!("no user is given for {address}"))
            .with_remedy("give --username, or username in hypervisord.toml")
    })?;
    Server::new(address, username, trust(section)?)
}

/// Whom connections to it may trust.
pub fn trust(section: &Section) -> Result<Trust> {
    let thumbprint = section.thumbprint.as_deref().map(str::parse::<Thumbprint>);
    Ok(Trust {
        ca_file: section.ca_file.clone(),
        thumbprint: thumbprint.transpose()?,
        insecure: section.insecure,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section() -> Section {
        Section {
            provider: vsphere::NAME.to_owned(),
            username: Some("u".to_owned()),
            ..Section::default()
        }
    }

    fn secret(_: &Server) -> Result<Secret> {
        Ok(Secret::new("p"))
    }

    #[test]
    fn a_section_becomes_a_server() {
        let mut told = section();
        let Origin::Vsphere { server, .. } = Origin::of("vc", &told, secret).unwrap() else {
            panic!("another provider");
        };
        assert_eq!(server.authority(), "vc:443");
        told.address = Some("10.0.0.1:8443".to_owned());
        told.insecure = true;
        let Origin::Vsphere { server, .. } = Origin::of("vc", &told, secret).unwrap() else {
            panic!("another provider");
        };
        assert_eq!(server.authority(), "10.0.0.1:8443");
        assert!(server.trust.insecure);
        told.thumbprint = Some("12".to_owned());
        assert!(Origin::of("vc", &told, secret).is_err());
        let none = Section::default();
        assert!(Origin::of("vc", &none, secret).is_err());
    }

    #[test]
    fn only_the_server_that_is_owed_is_asked() {
        let debt = Debt {
            provider: vsphere::NAME.to_owned(),
            server: "vc:443".to_owned(),
            kind: "snapshot".to_owned(),
            of: "vm-1".to_owned(),
            name: "x".to_owned(),
        };
        assert!(is_creditor(&debt, "vc", &section()));
        assert!(!is_creditor(&debt, "esx", &section()));
        let elsewhere = Section {
            address: Some("vc:8443".to_owned()),
            ..section()
        };
        assert!(!is_creditor(&debt, "vc", &elsewhere));
    }
}
