//! The guest in a converted disk: what it is, what keeps it from booting under KVM, and the repair.
//!
//! One appliance per guest, on overlays of the staged images that are committed only when every
//! required step succeeded. Knows neither sources nor the queue.
pub mod accel;
pub mod appliance;
mod bench;
pub mod berths;
pub mod boot;
mod drivers;
mod inspect;
mod kernels;
pub mod linux;
pub mod look;
pub mod model;
mod names;
pub mod overlay;
mod repair;
pub mod report;
mod trim;
pub mod undo;

use std::path::Path;
use std::time::{Duration, Instant};

use queue::instance::config::Guest as Settings;
use queue::job::{Finding, GuestCode};

use crate::disk::Observer;
use crate::error::{Error, ErrorKind, Result};
use appliance::{Drive, Site};
use bench::Bench;
use inspect::Found;
use model::{Firmware, Guest};
use overlay::{Image, Overlays};
use report::ChangeReport;

/// A guest whose disks are to be looked at or repaired.
pub struct Case<'a> {
    pub site: &'a Site,
    pub settings: &'a Settings,
    /// Contents of key files, tried on every encrypted device.
    pub keys: &'a [Vec<u8>],
    /// What the source says of it, if it does.
    pub firmware: Option<Firmware>,
    /// The network cards' addresses, as the source says.
    pub macs: &'a [String],
}

/// What came of a guest's repair.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    pub report: ChangeReport,
    /// Whether it has virtio drivers for its disks and network.
    pub virtio: bool,
    /// Seconds for launching, inspecting, repairing, trimming and committing.
    pub timings: Vec<(&'static str, f64)>,
}

impl Outcome {
    /// A guest that stays as it is.
    pub fn left(code: GuestCode, reason: impl Into<String>) -> Self {
        Self {
            report: ChangeReport {
                code: Some(code.as_str().to_owned()),
                reason: Some(reason.into()),
                ..ChangeReport::default()
            },
            ..Self::default()
        }
    }

    pub fn refused(finding: Finding) -> Self {
        Self::left(finding.code, finding.text)
    }
}

/// Looks at the guest on these disks, which are only read.
pub fn examine(
    case: &Case<'_>,
    drives: &[Drive],
    observer: &dyn Observer,
) -> Result<std::result::Result<Guest, Finding>> {
    let (mut session, _) = accel::launch(case.site, case.settings.accel, drives, observer)?;
    match inspect::inspect(&mut session, case, true)? {
        Found::Nothing(refusal) => Ok(Err(refusal)),
        Found::System(mut guest) => {
            survey(&mut Bench::new(&mut session), &mut guest)?;
            Ok(Ok(*guest))
        }
    }
}

/// What the mounted guest's own files tell of it.
fn survey(bench: &mut Bench<'_, '_>, guest: &mut Guest) -> Result<()> {
    drivers::list(bench, guest)?;
    linux::plan::cards::survey(bench, guest)
}

/// Repairs the guest on the staged images of `directory`: all of it or nothing. A guest without a
/// recipe is no error; one whose repair failed is, and its images are as they were unless
/// `before_commit` was called: then they are to be converted again.
pub fn repair(
    case: &Case<'_>,
    directory: &Path,
    images: &[Image],
    before_commit: &dyn Fn() -> Result<()>,
    observer: &dyn Observer,
) -> Result<Outcome> {
    let mut clock = Clock::default();
    let overlays = Overlays::create(directory, images)?;
    let drives = overlays.drives()?;
    let (mut session, accel) = accel::launch(case.site, case.settings.accel, &drives, observer)?;
    tracing::debug!("the appliance runs under {}", accel.as_str());
    clock.lap("launch");
    let mut guest = match inspect::inspect(&mut session, case, false)? {
        Found::System(guest) => *guest,
        Found::Nothing(refusal) => {
            clock.lap("inspect");
            observer.find(&refusal);
            let mut outcome = Outcome::refused(refusal);
            outcome.timings = clock.laps;
            return Ok(outcome);
        }
    };
    guest.findings().iter().for_each(|it| observer.find(it));
    let mut bench = Bench::new(&mut session);
    survey(&mut bench, &mut guest)?;
    clock.lap("inspect");
    if !repair::is_known(&guest) {
        let reason = format!("there is no recipe for {:?}", guest.os.name);
        let mut outcome = Outcome::left(GuestCode::UnsupportedGuest, reason);
        outcome.report.found = Some(guest);
        outcome.timings = clock.laps;
        return Ok(outcome);
    }
    let found = guest.clone();
    let virtio = repair::repair(&mut bench, &mut guest, case.settings)?;
    clock.lap("repair");
    let before_bytes = trim::allocated_bytes(images);
    trim::trim(&mut bench, &guest, images);
    let Bench {
        changes,
        skipped,
        ran,
        ..
    } = bench;
    session.shutdown()?;
    clock.lap("trim");
    let changes = report::archive(directory, &changes)?;
    before_commit()?;
    overlays.commit().map_err(half_done)?;
    clock.lap("commit");
    Ok(Outcome {
        report: ChangeReport {
            repaired: true,
            found: Some(found),
            changes,
            skipped,
            ran,
            freed_bytes: before_bytes.saturating_sub(trim::allocated_bytes(images)),
            ..ChangeReport::default()
        },
        virtio,
        timings: clock.laps,
    })
}

/// Seconds between one lap and the next.
struct Clock {
    last: Instant,
    laps: Vec<(&'static str, f64)>,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            last: Instant::now(),
            laps: Vec::new(),
        }
    }
}

impl Clock {
    fn lap(&mut self, name: &'static str) {
        let seconds = self.last.elapsed().as_secs_f64();
        self.laps.push((name, (seconds * 1000.0).round() / 1000.0));
        self.last = Instant::now();
    }
}

/// A commit that stopped in the middle: nobody may take these images for what was converted.
fn half_done(error: Error) -> Error {
    let kind = match error.kind {
        ErrorKind::Guest => ErrorKind::Io,
        other => other,
    };
    Error::new(kind, "write the repair into the images").with_source(error)
}

/// Whether an error of a repair ends the job whatever the settings say: all but those of the guest
/// and its appliance, which leave the images as they were.
pub fn is_final(error: &Error) -> bool {
    error.kind != ErrorKind::Guest
}

/// Where sessions work, and their limits.
pub fn site(settings: &Settings, work: &Path) -> Site {
    Site {
        work: work.to_path_buf(),
        kvm_limit: Duration::from_secs(60),
        launch_limit: Duration::from_secs(settings.repair_timeout.clamp(60, 180)),
        session_limit: Duration::from_secs(settings.repair_timeout),
    }
}
