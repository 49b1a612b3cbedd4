//! Has an instance's daemon define a converted VM in libvirt, by the request of `hyperctl import`.
use std::time::{Duration, Instant};

use queue::durable::{HostVolume, Volume};
use queue::instance::Directories;
use queue::job::{JobId, Request, VmName};
use queue::spool::request;

use super::follow;
use crate::error::{Error, ErrorKind, Result};
use crate::transfer::Monitor;

const TICK: Duration = Duration::from_millis(100);
const REMEDY: &str = "`hyperctl import --job` does it again, and tells";

/// Asks, and waits for libvirt's answer; an error says why the VM is not defined.
pub fn import(
    directories: &Directories,
    job_id: JobId,
    vm: &VmName,
    timeout: Duration,
    monitor: &dyn Monitor,
) -> Result<()> {
    let unknown = |kind: ErrorKind, why: &str| {
        let text = format!("{vm} is converted, and it is not known whether it is defined: {why}");
        Error::new(kind, text).with_remedy(REMEDY)
    };
    monitor.begin("waiting for libvirt", 0);
    let asked = request::submit(directories, &Request::Import { job_id })?;
    let end = Instant::now() + timeout;
    while HostVolume.stat(&asked)?.is_some() {
        if monitor.is_cancelled() {
            return Err(unknown(ErrorKind::Cancelled, "interrupted"));
        }
        if Instant::now() >= end {
            return Err(unknown(ErrorKind::Timeout, "the daemon does not answer"));
        }
        std::thread::sleep(TICK);
    }
    if let Some(refused) = request::refusal(&asked)? {
        let error = unknown(ErrorKind::Invalid, &refused.message);
        return Err(match refused.remedy {
            Some(remedy) => error.with_remedy(remedy),
            None => error,
        });
    }
    let record = follow::read(&directories.record(job_id))?;
    match record.and_then(|record| record.libvirt) {
        Some(told) => told.check(vm.as_str()),
        None => Err(unknown(ErrorKind::Io, "the daemon does not say")),
    }
}
