//! HttpNfcLease: the server's permission to download a VM's disks, which ends unless it is told
//! again and again how far the download is.
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use roxmltree::Node;

use super::session::{Effect, Session};
use super::soap::{self, Fault, Moref, element};
use super::task;
use crate::error::{Error, ErrorKind, Result};
use crate::machine::{Debt, Ledger};
use crate::transfer::Monitor;

pub const DEBT: &str = "lease";
const READY: Duration = Duration::from_secs(10 * 60);
const SHORTEST_BEAT: Duration = Duration::from_millis(200);
const LONGEST_BEAT: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(50);

pub struct Lease<'a> {
    session: &'a Session,
    ledger: &'a dyn Ledger,
    debt: Debt,
    object: Moref,
    pub info: Info,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Info {
    pub timeout_seconds: u64,
    pub devices: Vec<Device>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// `/vm-1/ParaVirtualSCSIController0:1`.
    pub key: String,
    /// Its host may be `*`.
    pub url: String,
    pub is_disk: bool,
    /// Of the host that the URL names; SHA-1.
    pub thumbprint: Option<String>,
}

/// What the server sent, as it says itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub size_bytes: Option<u64>,
    /// As a manifest spells it: `sha256:<hex>`, `sha1:<hex>`.
    pub checksum: Option<String>,
}

/// Tells that the work is over, even if it panicked: its scope waits for who listens.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<'a> Lease<'a> {
    /// Waits until the lease that a method returned is ready.
    pub fn take(
        session: &'a Session,
        ledger: &'a dyn Ledger,
        server: &str,
        object: Moref,
        monitor: &dyn Monitor,
        steady: &dyn Monitor,
    ) -> Result<Self> {
        let mut lease = Self {
            session,
            ledger,
            debt: Debt {
                provider: super::NAME.to_owned(),
                server: server.to_owned(),
                kind: DEBT.to_owned(),
                of: String::new(),
                name: object.id.clone(),
            },
            object,
            info: Info::default(),
        };
        let waited = ledger
            .owe(&lease.debt)
            .and_then(|()| wait_until_ready(session, &lease.object, monitor));
        match waited {
            Ok(info) => {
                lease.info = info;
                Ok(lease)
            }
            Err(error) => {
                lease.abort(steady);
                Err(error)
            }
        }
    }

    pub fn complete(self, steady: &dyn Monitor) -> Result<()> {
        let method = "HttpNfcLeaseComplete";
        let done = self
            .session
            .call(&self.object, method, "", Effect::None, steady, |_| Ok(()));
        match done {
            Ok(()) => self.ledger.settle(&self.debt),
            Err(error) => {
                self.abort(steady);
                Err(error)
            }
        }
    }

    /// Best effort: a lease that nobody keeps alive ends by itself.
    pub fn abort(self, steady: &dyn Monitor) {
        abort(self.session, &self.object, steady);
        let _ = self.ledger.settle(&self.debt);
    }

    /// Asks for SHA-256 in the manifest; whether the server can do that (6.7 and later).
    pub fn ask_for_sha256(&self, monitor: &dyn Monitor) -> bool {
        let pair = |device: &Device| {
            let (key, value) = (element("key", &device.key), element("value", "sha256"));
            format!("<deviceUrlsToChecksumTypes>{key}{value}</deviceUrlsToChecksumTypes>")
        };
        let disks = self.info.devices.iter().filter(|device| device.is_disk);
        let arguments: String = disks.map(pair).collect();
        let method = "HttpNfcLeaseSetManifestChecksumType";
        let (session, lease) = (self.session, &self.object);
        let asked = session.call(lease, method, &arguments, Effect::None, monitor, |_| Ok(()));
        asked.is_ok()
    }

    /// What was sent so far; empty if the server does not tell.
    pub fn manifest(&self, monitor: &dyn Monitor) -> Result<Vec<Entry>> {
        let method = "HttpNfcLeaseGetManifest";
        let (session, lease) = (self.session, &self.object);
        match session.call(lease, method, "", Effect::None, monitor, manifest) {
            Err(error) if error.kind == ErrorKind::Unsupported => Ok(Vec::new()),
            read => read,
        }
    }

    /// Does `work` while the lease is kept alive by what `work` adds to `progress`, in bytes of
    /// `total`. A lease that is lost cancels the work, and is the error then.
    pub fn keep<T>(
        &self,
        progress: &AtomicU64,
        total: u64,
        lost: &Lost,
        monitor: &dyn Monitor,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let ended = AtomicBool::new(false);
        let done = std::thread::scope(|scope| {
            scope.spawn(|| self.beat(progress, total, lost, &ended, monitor));
            let _ending = Ending(&ended);
            work()
        });
        match lost.take() {
            Some(error) if done.is_err() => Err(error),
            _ => done,
        }
    }

    fn beat(
        &self,
        progress: &AtomicU64,
        total: u64,
        lost: &Lost,
        ended: &AtomicBool,
        monitor: &dyn Monitor,
    ) {
        let timeout = Duration::from_secs(self.info.timeout_seconds);
        let pause = (timeout / 4).clamp(SHORTEST_BEAT, LONGEST_BEAT);
        let method = "HttpNfcLeaseProgress";
        loop {
            let done = progress.load(Ordering::Relaxed);
            let percent = (u128::from(done) * 100 / u128::from(total.max(1))).min(99);
            let arguments = element("percent", &percent.to_string());
            let (session, lease) = (self.session, &self.object);
            let told = session.call(lease, method, &arguments, Effect::None, monitor, |_| Ok(()));
            if let Err(error) = told
                && !ended.load(Ordering::Relaxed)
                && soap::fault(&error).is_some()
            {
                lost.set(error);
                return;
            }
            let next = Instant::now() + pause;
            while Instant::now() < next {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::sleep(TICK);
            }
        }
    }
}

/// Why a lease ended before its time.
#[derive(Debug, Default)]
pub struct Lost {
    is_lost: AtomicBool,
    cause: Mutex<Option<Error>>,
}

impl Lost {
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }

    fn set(&self, error: Error) {
        let outer = Error::new(ErrorKind::Io, "the server ended the export's lease")
            .with_remedy("try again; if it happens again, look for a slow datastore or network")
            .with_source(error.to_line());
        *self.cause.lock().unwrap_or_else(PoisonError::into_inner) = Some(outer);
        self.is_lost.store(true, Ordering::Relaxed);
    }

    fn take(&self) -> Option<Error> {
        self.cause
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

/// Ends the lease of a debt; one that is gone already is none.
pub fn settle(
    session: &Session,
    ledger: &dyn Ledger,
    debt: &Debt,
    steady: &dyn Monitor,
) -> Result<()> {
    abort(session, &Moref::new("HttpNfcLease", &debt.name), steady);
    ledger.settle(debt)
}

fn abort(session: &Session, lease: &Moref, steady: &dyn Monitor) {
    let method = "HttpNfcLeaseAbort";
    let _ = session.call(lease, method, "", Effect::None, steady, |_| Ok(()));
}

fn wait_until_ready(session: &Session, lease: &Moref, monitor: &dyn Monitor) -> Result<Info> {
    let doing = "prepare the export";
    let paths = ["state", "error", "info"];
    task::until(doing, READY, monitor, || {
        session.look(lease, &paths, monitor, |found| match found.text("state") {
            Some("ready") => Ok(Some(info(found.get("info")))),
            Some("initializing") => Ok(None),
            state => {
                let fault = found.get("error").map(Fault::localized);
                let error = fault.map(|fault| fault.into_error(doing));
                let state = state.unwrap_or("gone");
                let unknown = || {
                    Error::new(ErrorKind::Io, doing).with_source(format!("the lease is {state}"))
                };
                Err(error.unwrap_or_else(unknown))
            }
        })
    })
}

fn info(node: Option<Node<'_, '_>>) -> Info {
    let Some(node) = node else {
        return Info::default();
    };
    let device = |device: Node<'_, '_>| Device {
        key: soap::text(device, "key").unwrap_or_default().to_owned(),
        url: soap::text(device, "url").unwrap_or_default().to_owned(),
        is_disk: soap::flag(device, "disk") == Some(true),
        thumbprint: soap::text(device, "sslThumbprint")
            .filter(|text| !text.is_empty())
            .map(str::to_owned),
    };
    Info {
        timeout_seconds: soap::number(node, "leaseTimeout").unwrap_or(0),
        devices: soap::children(node, "deviceUrl").map(device).collect(),
    }
}

fn manifest(node: Node<'_, '_>) -> Result<Vec<Entry>> {
    let entry = |entry: Node<'_, '_>| {
        let typed = soap::text(entry, "checksumType").zip(soap::text(entry, "checksum"));
        let sha1 = soap::text(entry, "sha1").map(|sum| ("sha1", sum));
        let usual = |(kind, sum): (&str, &str)| {
            (!sum.is_empty()).then(|| format!("{kind}:{sum}").to_ascii_lowercase())
        };
        Entry {
            key: soap::text(entry, "key").unwrap_or_default().to_owned(),
            size_bytes: soap::number(entry, "size"),
            checksum: typed.and_then(usual).or(sha1.and_then(usual)),
        }
    };
    Ok(soap::children(node, "returnval").map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_lease_tells() {
        // As vCenter 7 answers for an ESXi host of its own.
        let xml = "<val><lease type=\"HttpNfcLease\">session[1]2</lease><entity \
            type=\"VirtualMachine\">vm-1</entity><deviceUrl><key>/vm-1/VirtualLsiLogicController0:0\
            </key><importKey>/web/VirtualLsiLogicController0:0</importKey><url>\
            https://esx1.example.com/nfc/52e1/disk-0.vmdk</url><sslThumbprint>AA:BB\
            </sslThumbprint><disk>true</disk><targetId>disk-0.vmdk</targetId></deviceUrl>\
            <deviceUrl><key>/vm-1/nvram</key><url>https://*/nfc/52e1/web.nvram</url>\
            <sslThumbprint></sslThumbprint><disk>false</disk><fileSize>8684</fileSize></deviceUrl>\
            <totalDiskCapacityInKB>1048576</totalDiskCapacityInKB><leaseTimeout>300</leaseTimeout>\
            </val>";
        let document = roxmltree::Document::parse(xml).unwrap();
        let info = info(Some(document.root_element()));
        assert_eq!(info.timeout_seconds, 300);
        assert_eq!(info.devices.len(), 2);
        assert!(info.devices[0].is_disk && !info.devices[1].is_disk);
        assert_eq!(info.devices[0].thumbprint.as_deref(), Some("AA:BB"));
        assert_eq!(info.devices[1].thumbprint, None);
    }

    #[test]
    fn what_a_manifest_tells() {
        let xml = "<r><returnval><key>/vm-1/a:0</key><sha1>DA39</sha1><size>7</size>\
            <disk>true</disk></returnval><returnval><key>/vm-1/a:1</key><sha1></sha1><checksum>ab\
            </checksum><checksumType>sha256</checksumType><size>8</size></returnval>\
            <returnval><key>/vm-1/a:2</key></returnval></r>";
        let document = roxmltree::Document::parse(xml).unwrap();
        let entries = manifest(document.root_element()).unwrap();
        let sums: Vec<Option<&str>> = entries
            .iter()
            .map(|entry| entry.checksum.as_deref())
            .collect();
        assert_eq!(sums, [Some("sha1:da39"), Some("sha256:ab"), None]);
        assert_eq!(entries[0].size_bytes, Some(7));
        assert_eq!(entries[2].size_bytes, None);
    }
}
