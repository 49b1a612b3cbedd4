//! The repair of an inspected and mounted Linux guest: asks for a plan and carries it out.
//!
//! Files first, then the guest's own tools. An initramfs that came out wrong is put back.
use queue::instance::config::Guest as Settings;

use super::appliance::guest as failure;
use super::bench::Bench;
use super::drivers::{has_virtio, of_interest};
use super::linux::plan::{Action, plan};
use super::model::{Entry, Family, Guest};
use crate::error::Result;

/// What an initramfs and its tool may need while it is made anew.
const FREE_BYTES: u64 = 48 << 20;

/// Repairs the guest; whether the kernel that it boots has virtio drivers afterwards.
pub fn repair(bench: &mut Bench<'_, '_>, guest: &mut Guest, settings: &Settings) -> Result<bool> {
    check_space(bench)?;
    for action in plan(guest, settings, bench)? {
        carry_out(bench, guest, action)?;
    }
    match guest.kernels.last() {
        Some(kernel) => has_virtio(bench, kernel),
        None => Ok(false),
    }
}

/// Whether there is a recipe for this system.
pub fn is_known(guest: &Guest) -> bool {
    !matches!(guest.os.family, Family::Windows | Family::Other)
}

fn check_space(bench: &mut Bench<'_, '_>) -> Result<()> {
    for path in ["/", "/boot"] {
        let free_bytes = bench.appliance.free_bytes(path)?;
        if free_bytes < FREE_BYTES {
            let free_mib = free_bytes >> 20;
            let context = format!("{path} of the guest has only {free_mib} MiB free");
            return Err(failure(context).with_remedy("free 48 MiB there before the export"));
        }
    }
    Ok(())
}

fn carry_out(bench: &mut Bench<'_, '_>, guest: &mut Guest, action: Action) -> Result<()> {
    match action {
        Action::Write {
            path,
            contents,
            changes,
        } => {
            let mut reasons: Vec<String> =
                changes.into_iter().map(|change| change.reason).collect();
            reasons.dedup();
            bench.put(&path, Entry::File(contents), &reasons.join("; "))
        }
        Action::Remove { path, reason } => bench.put(&path, Entry::Nothing, &reason),
        Action::Link {
            path,
            target,
            reason,
        } => bench.put(&path, Entry::Link(target), &reason),
        Action::Copy { from, to, reason } => {
            let bytes = bench.appliance.read(&from)?;
            bench.put(&to, Entry::File(bytes), &reason)
        }
        Action::Run {
            arguments,
            touches,
            reason,
        } => {
            if let Err(error) = bench.run(&arguments, &touches, &reason) {
                bench.skipped.push(error.to_line());
            }
            Ok(())
        }
        Action::Warn { code, text } => {
            bench.skipped.push(format!("{code}: {text}"));
            Ok(())
        }
        Action::Rebuild {
            image,
            build,
            list,
            drivers,
            touches,
            reason,
        } => {
            let made = Made {
                image,
                build,
                list,
                drivers,
                touches,
                reason,
            };
            made.rebuild(bench, guest)
        }
    }
}

/// An initramfs that is made anew.
struct Made {
    image: String,
    build: Vec<String>,
    list: Vec<String>,
    drivers: Vec<String>,
    touches: Vec<String>,
    reason: String,
}

impl Made {
    /// Keeps the old one until the new one is known to hold the drivers.
    fn rebuild(&self, bench: &mut Bench<'_, '_>, guest: &mut Guest) -> Result<()> {
        let mut before = Vec::with_capacity(self.touches.len());
        for path in &self.touches {
            before.push(bench.entry(path)?);
        }
        let built = bench.run(&self.build, &self.touches, &self.reason);
        let list: Vec<&str> = self.list.iter().map(String::as_str).collect();
        let listed = built.and_then(|_| bench.appliance.run(&list));
        let trouble = match listed {
            Ok(listing) => {
                let held = of_interest(&listing);
                let lacks = |driver: &&String| !held.contains(driver);
                let missing: Vec<&str> = self
                    .drivers
                    .iter()
                    .filter(lacks)
                    .map(String::as_str)
                    .collect();
                if missing.is_empty() {
                    let of = |kernel: &&mut super::model::Kernel| {
                        kernel.initramfs.as_ref() == Some(&self.image)
                    };
                    if let Some(kernel) = guest.kernels.iter_mut().find(of) {
                        kernel.drivers = held;
                    }
                    return Ok(());
                }
                format!("{} was made without {}", self.image, missing.join(", "))
            }
            Err(error) => error.to_line(),
        };
        for (path, before) in self.touches.iter().zip(before) {
            bench.put(path, before, "put back")?;
        }
        bench.skipped.push(trouble);
        Ok(())
    }
}
