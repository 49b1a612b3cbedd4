//! What the provider may reach: everything that its user may read, or what a section names.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use queue::instance::exports::Server as Section;

use crate::error::{Error, Result};
use crate::transfer::http::Url;
use crate::transfer::tls::Trust;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    /// `None`: wherever this user may read, and every address.
    pub limits: Option<Limits>,
    /// Where the datastores that a `.vmx` names (`/vmfs/volumes/<name>`) are mounted here.
    pub datastores: BTreeMap<String, PathBuf>,
    /// Of `https://` sources.
    pub trust: Trust,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// The directories beneath which VMs may lie.
    pub roots: Vec<PathBuf>,
    /// The addresses beneath which they may lie; one without a slash at its end is a file's.
    pub addresses: Vec<Url>,
}

impl Reach {
    /// As the service's configuration says it.
    pub fn of(section: &Section, trust: Trust) -> Result<Self> {
        let addresses = section.urls.iter().map(|text| address(text));
        Ok(Self {
            limits: Some(Limits {
                roots: section.roots.clone(),
                addresses: addresses.collect::<Result<_>>()?,
            }),
            datastores: section.datastores.clone(),
            trust,
        })
    }

    /// The path of what `vm` names, without links; whatever links lead there, it lies beneath a
    /// root: whoever may drop a request may not read everything that the service may.
    pub fn path(&self, vm: &str) -> Result<PathBuf> {
        let Some(limits) = &self.limits else {
            let path = Path::new(vm);
            return std::fs::canonicalize(path).map_err(|error| {
                Error::io("open", path, error)
                    .with_remedy("give a directory of disks, a .vmx or a disk file that exists")
            });
        };
        for root in &limits.roots {
            let Ok(found) = std::fs::canonicalize(root.join(vm)) else {
                continue;
            };
            let root = resolved(root)?;
            if found != root && found.starts_with(&root) {
                return Ok(found);
            }
        }
        Err(Error::invalid(format!(
            "no disks of {vm} lie beneath the roots of this server"
        ))
        .with_remedy("name a VM, directory or disk file by its path beneath roots"))
    }

    /// The datastores, without links.
    pub fn datastores(&self) -> Result<BTreeMap<String, PathBuf>> {
        let mounted = self.datastores.iter();
        mounted
            .map(|(name, path)| Ok((name.clone(), resolved(path)?)))
            .collect()
    }

    /// The address of a file, if it may be asked for.
    pub fn url(&self, text: &str) -> Result<Url> {
        let url = address(text)?;
        self.check_url(&url)?;
        Ok(url)
    }

    pub fn check_url(&self, url: &Url) -> Result<()> {
        let Some(limits) = &self.limits else {
            return Ok(());
        };
        let lower = url.path().to_ascii_lowercase();
        // Some servers take these for slashes.
        let is_odd = lower.contains("%2f") || lower.contains("%5c");
        let is_beneath = |root: &Url| {
            root.origin() == url.origin()
                && (root.path() == url.path()
                    || root.path().ends_with('/') && url.path().starts_with(root.path()))
        };
        if !is_odd && limits.addresses.iter().any(is_beneath) {
            return Ok(());
        }
        let host = url.host_str().unwrap_or_default();
        let path = url.path();
        Err(Error::invalid(format!(
            "{path} of {host} is not beneath the urls of this server"
        ))
        .with_remedy("add its address to urls in hypervisord.toml, or name another"))
    }
}

pub fn is_url(text: &str) -> bool {
    let starts = |scheme: &str| {
        let start = text.get(..scheme.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    };
    starts("http://") || starts("https://")
}

/// What an address would give away is never told.
fn address(text: &str) -> Result<Url> {
    let bad = |what: &str| {
        Error::invalid(format!("the source's address {what}")).with_remedy(
            "give http:// or https://, a host and a path; what needs a password or a ticket, \
             download first",
        )
    };
    let url = Url::parse(text).map_err(|_| bad("cannot be read"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("holds a user's name or password"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("goes on behind its path (? or #)"));
    }
    if !is_url(text) || url.host_str().is_none() {
        return Err(bad("is neither http:// nor https://"));
    }
    Ok(url)
}

fn resolved(path: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(path).map_err(|error| Error::io("open", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limited(addresses: &[&str]) -> Reach {
        let addresses = addresses.iter().map(|text| address(text).unwrap());
        Reach {
            limits: Some(Limits {
                roots: Vec::new(),
                addresses: addresses.collect(),
            }),
            ..Reach::default()
        }
    }

    #[test]
    fn only_what_is_beneath_an_address_is_asked_for() {
        let reach = limited(&["https://images.example.com/vms/", "http://nas:8080/one.ova"]);
        for good in [
            "https://images.example.com/vms/web.ova",
            "HTTPS://images.example.com:443/vms/a/b.vmdk",
            "http://nas:8080/one.ova",
        ] {
            assert!(reach.url(good).is_ok(), "{good}");
        }
        for bad in [
            "http://images.example.com/vms/web.ova",
            "https://images.example.com:444/vms/web.ova",
            "https://images.example.com.evil.net/vms/web.ova",
            "https://images.example.com/vms/../secret.ova",
            "https://images.example.com/vms/%2e%2e/secret.ova",
            "https://images.example.com/vms/..%2fsecret.ova",
            "https://images.example.com/vmsecret.ova",
            "http://nas:8080/one.ova/two.ova",
            "http://169.254.169.254/latest/x.ova",
        ] {
            assert!(reach.url(bad).is_err(), "{bad}");
        }
        assert!(Reach::default().url("http://anywhere/x.ova").is_ok());
        assert!(limited(&[]).url("http://anywhere/x.ova").is_err());
    }

    #[test]
    fn what_an_address_gives_away_is_refused_and_not_told() {
        for bad in [
            "https://user:geheim@nas/x.ova",
            "https://geheim@nas/x.ova",
            "https://nas/x.ova?token=geheim",
            "https://nas/x.ova#geheim",
            "https://geheim[/x.ova",
            "ftp://geheim/x.ova",
        ] {
            let error = Reach::default().url(bad).unwrap_err();
            assert!(!format!("{error:?} {}", error.to_line()).contains("geheim"));
        }
    }
}
