//! What a converted VM's guest gets before it is published: a repair, its domain.xml by what it
//! has drivers for, and a boot as proof. Without a whole repair the images are as converted.
use std::fs::File;
use std::path::Path;
use std::time::Duration;

use queue::instance::config::{BootCheck, GuestFix, OutFormat};
use queue::job::{self, Finding, GuestCode, Machine, Phase};

use super::examine::{Care, case, macs, required};
use super::vm::{Converted, DOMAIN, Order, write_domain};
use super::{Resume, digest, reopen};
use crate::disk::{Observer, Window};
use crate::error::{Error, ErrorKind, Result};
use crate::guest::accel;
use crate::guest::appliance::drive;
use crate::guest::berths::Berth;
use crate::guest::boot::{self, Bus, Verdict};
use crate::guest::model::{Firmware, Guest};
use crate::guest::overlay::Image;
use crate::guest::report::ARCHIVE;
use crate::guest::{self, Outcome};
use crate::libvirt::{Devices, Hardware, resolve};
use crate::source::{self, Appliance};

/// Repairs and proves what `converted` made of `appliance`; `on_phase` is told what begins. What
/// no repair changed is read again, if that is asked for.
pub fn care(
    appliance: &Appliance,
    order: &Order<'_>,
    care: &mut Care,
    converted: &mut Converted,
    observer: &dyn Observer,
    on_phase: &mut dyn FnMut(Phase),
) -> Result<()> {
    if care.preflight.is_none() {
        // Of what arrived meanwhile: an appliance that finds nothing takes as long as another.
        care.foresee(appliance)?;
        care.findings().iter().for_each(|it| observer.find(it));
    }
    let mut findings = care.findings().to_vec();
    tend(appliance, order, care, converted, observer, on_phase)?;
    let guest = &mut converted.metadata.guest;
    let found = guest.inspection.iter().flat_map(Guest::findings);
    findings.extend(found.collect::<Vec<_>>());
    guest.findings = findings;
    if care.validate && !guest.repaired {
        validate(order, converted, observer)?;
    }
    Ok(())
}

fn tend(
    appliance: &Appliance,
    order: &Order<'_>,
    care: &Care,
    converted: &mut Converted,
    observer: &dyn Observer,
    on_phase: &mut dyn FnMut(Phase),
) -> Result<()> {
    let wants_proof = care.settings.boot_check != BootCheck::Off;
    if !care.is_wanted() {
        let outcome = Outcome::left(GuestCode::Off, "guest.fix is off");
        return tell(converted, outcome, order.directory);
    }
    if let Some(refusal) = care.refusal().filter(|it| it.code == GuestCode::NoSystem) {
        return tell(
            converted,
            Outcome::refused(refusal.clone()),
            order.directory,
        );
    }
    on_phase(Phase::Repair);
    let berth = Berth::take(observer)?;
    let images = images(order, converted);
    let outcome = repair(&appliance.machine, order, care, &images, observer)?;
    if outcome.report.repaired {
        measure(order, converted, observer)?;
    }
    let devices = match outcome.virtio {
        true => Devices::Virtio,
        false => Devices::Compatible,
    };
    let hardware = completed(&appliance.machine, &outcome, converted);
    if order.libvirt.emit_domain_xml {
        if outcome.report.repaired {
            keep_domain(order.directory)?;
        }
        let files: Vec<String> = converted
            .disks
            .iter()
            .map(|disk| disk.name.clone())
            .collect();
        write_domain(&hardware, &appliance.disks, order, &files, devices)?;
    }
    tell(converted, outcome, order.directory)?;
    if wants_proof {
        on_phase(Phase::Prove);
        let machine = machine(
            &hardware,
            &resolve(&hardware, order.libvirt),
            images,
            devices,
        );
        prove(care, order.directory, &machine, converted, observer)?;
    }
    drop(berth);
    Ok(())
}

/// The repair by the settings: an error only if it is required, or if the job is to end.
fn repair(
    machine: &Machine,
    order: &Order<'_>,
    care: &Care,
    images: &[Image],
    observer: &dyn Observer,
) -> Result<Outcome> {
    if care.settings.fix == GuestFix::Off {
        return Ok(Outcome::left(GuestCode::Off, "guest.fix is off"));
    }
    if let Some(refusal) = care.refusal() {
        return Ok(Outcome::refused(refusal.clone()));
    }
    let macs = macs(machine);
    let case = case(care, machine, &macs);
    let is_required = care.settings.fix == GuestFix::Require;
    // From the first byte of a commit on, the images are not what was converted.
    let before_commit = || order.resume.map_or(Ok(()), Resume::forget);
    match guest::repair(&case, order.directory, images, &before_commit, observer) {
        Ok(outcome) if is_required && !outcome.report.repaired => Err(required(
            outcome.report.reason.as_deref().unwrap_or_default(),
        )),
        Ok(outcome) => Ok(outcome),
        Err(error) if guest::is_final(&error) || is_required => Err(error),
        Err(error) => Ok(Outcome::left(GuestCode::RepairFailed, error.to_line())),
    }
}

fn images(order: &Order<'_>, converted: &Converted) -> Vec<Image> {
    let format = order.plan.format.as_str();
    let image = |name: &String| Image {
        path: order.directory.join(name),
        format,
    };
    converted
        .disks
        .iter()
        .map(|disk| image(&disk.name))
        .collect()
}

/// The digests and sizes of images that a repair changed.
fn measure(order: &Order<'_>, converted: &mut Converted, observer: &dyn Observer) -> Result<()> {
    let told = converted
        .metadata
        .disks
        .iter_mut()
        .zip(&mut converted.disks);
    for (described, record) in told {
        let path = order.directory.join(&described.file);
        let is_raw = order.plan.format == OutFormat::Raw;
        // A digest that was left out is left out here, too.
        if described.digest.is_some()
            && let digest = digest_of(&path, is_raw, observer)?
            && described.digest.as_ref() != Some(&digest)
        {
            described.source_digest = described.digest.replace(digest.clone());
            record.digest = Some(digest);
        }
        let length = path
            .metadata()
            .map_err(|error| Error::io("measure", &path, error))?
            .len();
        described.output_bytes = length;
        record.output_bytes = length;
    }
    Ok(())
}

/// Reads the images again: each has to be what was copied.
fn validate(order: &Order<'_>, converted: &mut Converted, observer: &dyn Observer) -> Result<()> {
    let mut notes = Vec::new();
    for disk in &converted.metadata.disks {
        let Some(expected) = &disk.digest else {
            notes.push(format!(
                "{}: not validated, for it has no digest",
                disk.file
            ));
            continue;
        };
        let path = order.directory.join(&disk.file);
        let is_raw = order.plan.format == OutFormat::Raw;
        if digest_of(&path, is_raw, observer)? != *expected {
            let context = format!("{} is not what was written there", path.display());
            return Err(Error::new(ErrorKind::Corrupt, context)
                .with_remedy("check the output's disk and memory, then `hyperctl retry`"));
        }
    }
    if notes.is_empty() {
        observer.tell("validated: each image holds what was read from the source");
    }
    notes.iter().for_each(|note| observer.tell(note));
    converted.metadata.notes.extend(notes);
    Ok(())
}

/// The content digest of one of our images, read again.
pub(super) fn digest_of(path: &Path, is_raw: bool, observer: &dyn Observer) -> Result<String> {
    let disk = if is_raw {
        let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
        source::open_raw(Window::whole(file, path)?)?
    } else {
        reopen(path)?
    };
    digest(&disk, 0, &Silent(observer))
}

/// The domain of the guest as it came goes with its original files: `undo` puts all of them back.
fn keep_domain(directory: &Path) -> Result<()> {
    let (from, archive) = (directory.join(DOMAIN), directory.join(ARCHIVE));
    std::fs::create_dir_all(&archive).map_err(|error| Error::io("create", &archive, error))?;
    let to = archive.join(DOMAIN);
    std::fs::copy(&from, &to).map_err(|error| Error::io("write", &to, error))?;
    Ok(())
}

/// The machine with the firmware that the guest was found to boot by, if the source is silent.
fn completed(machine: &Machine, outcome: &Outcome, converted: &mut Converted) -> Machine {
    let mut machine = machine.clone();
    if let Some(found) = &outcome.report.found
        && machine.firmware == job::Firmware::Unknown
    {
        let (firmware, name) = match found.firmware {
            Firmware::Bios => (job::Firmware::Bios, "BIOS"),
            Firmware::Uefi => (job::Firmware::Uefi, "UEFI"),
        };
        machine.firmware = firmware;
        let notes = &mut converted.metadata.notes;
        notes.retain(|note| !note.starts_with("the source names no firmware"));
        notes.push(format!(
            "the source names no firmware; the guest boots by {name}"
        ));
    }
    machine
}

/// Gives signs of life and counts nothing: the copying was counted already.
struct Silent<'a>(&'a dyn Observer);

impl Observer for Silent<'_> {
    fn advance(&self, _bytes: u64) {
        self.0.advance(0);
    }

    fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }

    fn is_paused(&self) -> bool {
        self.0.is_paused()
    }

    fn tell(&self, line: &str) {
        self.0.tell(line);
    }

    fn find(&self, finding: &Finding) {
        self.0.find(finding);
    }
}

/// Puts what came of the repair into the metadata and beside the images.
fn tell(converted: &mut Converted, outcome: Outcome, directory: &Path) -> Result<()> {
    outcome.report.write(directory)?;
    let report = outcome.report;
    let told = &mut converted.metadata.guest;
    told.repaired = report.repaired;
    told.code = report.code;
    told.reason = report.reason;
    told.virtio = outcome.virtio;
    told.os = report.found.as_ref().map(|found| found.os.clone());
    told.inspection = report.found;
    let laps = outcome.timings.into_iter();
    told.timings = laps
        .map(|(name, seconds)| (name.to_owned(), seconds))
        .collect();
    Ok(())
}

/// The machine of domain.xml, as the boot proof starts it.
fn machine(
    machine: &Machine,
    hardware: &Hardware,
    disks: Vec<Image>,
    devices: Devices,
) -> boot::Machine {
    boot::Machine {
        disks,
        bus: match devices {
            Devices::Virtio => Bus::VirtioBlk,
            Devices::Compatible => Bus::Sata,
        },
        uefi: hardware.uefi,
        memory_mib: hardware.memory_kib / 1024,
        cpus: hardware.cpus,
        macs: macs(machine),
    }
}

fn prove(
    care: &Care,
    directory: &Path,
    machine: &boot::Machine,
    converted: &mut Converted,
    observer: &dyn Observer,
) -> Result<()> {
    let is_required = care.settings.boot_check == BootCheck::Require;
    let drives = machine.disks.iter();
    let drives = drives.map(|disk| drive(&disk.path, disk.format, true));
    let drives = drives.collect::<Result<Vec<_>>>()?;
    let accel = accel::settle(&care.site, care.settings.accel, &drives, observer)?;
    let limit = Duration::from_secs(care.settings.boot_timeout);
    let proof = match boot::prove(directory, machine, accel, limit, observer) {
        Ok(proof) => proof,
        Err(error) if guest::is_final(&error) || is_required => return Err(error),
        Err(error) => boot::Proof {
            verdict: Verdict::NotProven,
            evidence: error.to_line(),
            accel,
            seconds: 0.0,
        },
    };
    if is_required && proof.verdict != Verdict::Booted {
        let context = format!("the result does not boot: {}", proof.evidence);
        return Err(Error::new(ErrorKind::Guest, context)
            .with_remedy("set guest.boot_check = \"try\" to publish it all the same"));
    }
    let guest = &mut converted.metadata.guest;
    guest.timings.insert("prove".to_owned(), proof.seconds);
    guest.boot = Some(proof);
    Ok(())
}

#[cfg(test)]
mod tests {
    use queue::job::VmName;

    use super::*;
    use crate::convert::{Plan, vm};
    use crate::disk::Unobserved;

    #[test]
    fn a_result_that_is_not_what_was_written_is_corrupt() {
        let top = tempfile::tempdir().unwrap();
        let source = top.path().join("a.raw");
        std::fs::write(&source, vec![7; 1 << 20]).unwrap();
        let window = Window::whole(File::open(&source).unwrap(), &source).unwrap();
        let mut appliance = Appliance {
            machine: Machine::default(),
            disks: vec![source::open_raw(window).unwrap()],
            package: None,
            notes: Vec::new(),
        };
        let staging = top.path().join("staging");
        std::fs::create_dir(&staging).unwrap();
        let (name, plan) = (VmName::new("a").unwrap(), Plan::default());
        let order = Order {
            name: &name,
            first_file: None,
            plan: &plan,
            libvirt: &queue::instance::config::Libvirt::default(),
            directory: &staging,
            result: &staging,
            origin: crate::convert::metadata::Origin::default(),
            host: "",
            resume: None,
        };
        let mut converted = vm::vm(&mut appliance, &order, &Unobserved, &mut |_, _| {}).unwrap();
        validate(&order, &mut converted, &Unobserved).unwrap();
        let path = staging.join(&converted.file);
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.iter_mut().rfind(|byte| **byte == 7).unwrap() = 8;
        std::fs::write(&path, bytes).unwrap();
        let error = validate(&order, &mut converted, &Unobserved).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupt);
        converted.metadata.disks[0].digest = None;
        validate(&order, &mut converted, &Unobserved).unwrap();
        assert!(
            converted
                .metadata
                .notes
                .iter()
                .any(|note| note.contains("not validated"))
        );
    }
}
