//! The boot proof: the result is started once in QEMU, on throwaway overlays, with the devices of
//! its domain.xml and no network, and watched until it shows that it is up, that it never will be,
//! or until its time is over. `boot.log` and `boot.png` stay beside the image.
mod evidence;
mod machine;
mod qmp;

use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::accel::Accel;
use super::appliance::guest;
use super::overlay::Overlays;
use crate::disk::Observer;
use crate::error::{Error, ErrorKind, Result};
use evidence::{Sign, sign};
pub use machine::{Bus, Machine};
use qmp::Emulator;

pub const LOG: &str = "boot.log";
pub const SCREEN: &str = "boot.png";
/// How much longer a guest may take under emulation.
const EMULATION: u32 = 4;
const TICK: Duration = Duration::from_millis(500);
/// How often the text screen is read.
const SCREEN_INTERVAL: Duration = Duration::from_secs(5);
/// A log is read no further: a guest that writes more says nothing new.
const MAX_LOG_BYTES: u64 = 4 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Booted,
    NotProven,
    Failed,
}

/// What was seen of the guest's start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Proof {
    pub verdict: Verdict,
    /// The line that decided it, or why there was none.
    pub evidence: String,
    pub accel: Accel,
    pub seconds: f64,
}

/// Boots the images of `machine`, which are not changed; leaves `LOG` and `SCREEN` in `directory`.
/// Under KVM a guest has `limit` to show that it is up.
pub fn prove(
    directory: &Path,
    machine: &Machine,
    accel: Accel,
    limit: Duration,
    observer: &dyn Observer,
) -> Result<Proof> {
    let started = Instant::now();
    let overlays = Overlays::create(directory, &machine.disks)?;
    let log = directory.join(LOG);
    let screen = directory.join(SCREEN);
    let mut emulator = Emulator::start(machine, &overlays, accel, &log)?;
    let limit = match accel {
        Accel::Kvm => limit,
        Accel::Tcg => limit * EMULATION,
    };
    let seen = watch(&mut emulator, limit, &log, observer);
    // The evidence counts more than its picture.
    if let Err(error) = emulator.screenshot(&screen) {
        tracing::warn!("no screenshot: {}", error.to_line());
    }
    drop(emulator);
    let (verdict, evidence) = seen?;
    Ok(Proof {
        verdict,
        evidence,
        accel,
        seconds: (started.elapsed().as_secs_f64() * 10.0).round() / 10.0,
    })
}

fn watch(
    emulator: &mut Emulator,
    limit: Duration,
    log: &Path,
    observer: &dyn Observer,
) -> Result<(Verdict, String)> {
    let begun = Instant::now();
    let mut looked = begun;
    loop {
        std::thread::sleep(TICK);
        observer.advance(0);
        if observer.is_cancelled() {
            return Err(Error::new(ErrorKind::Cancelled, "boot the result"));
        }
        let mut text = read_log(log)?;
        if looked.elapsed() >= SCREEN_INTERVAL {
            looked = Instant::now();
            // Not every machine has a text screen.
            text.push_str(&emulator.text_screen().unwrap_or_default());
        }
        match sign(&text) {
            Some(Sign::Up(line)) => return Ok((Verdict::Booted, line)),
            Some(Sign::Stuck(line)) => return Ok((Verdict::Failed, line)),
            None => {}
        }
        if let Some(status) = emulator.ended() {
            return Ok((Verdict::Failed, format!("the machine ended: {status}")));
        }
        if begun.elapsed() >= limit {
            let seconds = limit.as_secs();
            let text = format!("no login prompt was seen within {seconds} s");
            return Ok((Verdict::NotProven, text));
        }
    }
}

fn read_log(path: &Path) -> Result<String> {
    use std::io::Read;
    let failed = |error| Error::io("read", path, error);
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_LOG_BYTES)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// An error about the emulator.
fn emulator(what: impl Into<String>) -> Error {
    guest(what)
}
