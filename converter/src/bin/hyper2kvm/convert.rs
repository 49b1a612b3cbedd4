//! `hyper2kvm convert`: one conversion in the foreground, whole or not at all.
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use converter::convert::care;
use converter::convert::examine::{self, Care};
use converter::convert::vm::{self, Converted, Order};
use converter::convert::wishes::Wishes;
use converter::error::{Error, ErrorKind, Result};
use converter::libvirt;
use converter::source::{self, Appliance, Unpacker};
use queue::arrival::candidate::{self, Class};
use queue::instance::Config;
use queue::instance::config::{BootCheck, Compress, Digest, GuestFix, Libvirt, OutFormat};
use queue::job::{DiskRecord, JobId, Phase, VmName};
use queue::roots::Roots;
use serde::Serialize;

use crate::args::{ConvertArgs, Format};
use crate::output;
use crate::progress::{Interrupt, Progress};
use crate::publish::{Place, Staging};

/// What was made of one source.
#[derive(Serialize)]
struct Outcome {
    source: PathBuf,
    vm_name: String,
    /// The first disk's image.
    output: PathBuf,
    disks: Vec<DiskRecord>,
    notes: Vec<String>,
}

pub fn run(args: &ConvertArgs) -> ExitCode {
    if args.name.is_some() && args.sources.len() > 1 {
        let error = Error::invalid("--name needs a single SOURCE");
        return output::trouble(&error, args.json, output::WRONG_USAGE);
    }
    let ready = Interrupt::listen().and_then(|interrupt| Ok((interrupt, place(args)?)));
    let (interrupt, place) = match ready {
        Ok(ready) => ready,
        Err(error) => return output::trouble(&error, args.json, output::WRONG_USAGE),
    };
    let mut outcomes = Vec::with_capacity(args.sources.len());
    for path in &args.sources {
        match convert(args, path, &place, &interrupt) {
            Ok(outcome) => {
                if !args.json {
                    show(&outcome);
                }
                outcomes.push(outcome);
            }
            Err(mut error) => {
                if error.kind == ErrorKind::Cancelled {
                    error = error.with_remedy("nothing is left of it");
                }
                if args.json && !outcomes.is_empty() {
                    output::json(&outcomes);
                }
                return output::trouble(&error, args.json, output::FAILED);
            }
        }
    }
    if args.json {
        output::json(&outcomes);
    }
    ExitCode::SUCCESS
}

fn place(args: &ConvertArgs) -> Result<Place> {
    let place = Place::of(&args.output)?;
    let Place::File(path) = &place else {
        return Ok(place);
    };
    if args.sources.len() > 1 {
        return Err(
            Error::invalid("several sources need a directory as --output")
                .with_remedy(format!("say --output {}/", args.output.display())),
        );
    }
    if args.libvirt.is_some() {
        return Err(Error::invalid(
            "--libvirt needs a directory as --output: libvirt is told of the domain.xml in it",
        ));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if Format::of_file(path).is_none() && candidate::classify(&name) == Some(Class::Disk) {
        let image = format!("{}.qcow2", candidate::stem(&name));
        return Err(Error::invalid(format!(
            "{name} is the name of a format that is read, not written: qcow2 and raw are"
        ))
        .with_remedy(format!("name it {image}, or end it in / for a directory")));
    }
    Ok(place)
}

/// A source on the command line: its owner, and where the files that it names may lie.
pub fn locate(path: &Path, source_roots: &[PathBuf]) -> Result<(Roots, PathBuf)> {
    let find = |error| Error::io("find", path, error);
    let mut owner = path.canonicalize().map_err(find)?;
    if owner.is_dir() {
        owner = owner_in(&owner).ok_or_else(|| {
            let path = path.display();
            Error::invalid(format!("{path} holds neither a manifest.json nor one OVF"))
                .with_remedy("name the disk, the OVF or the manifest in it")
        })?;
    }
    let parent = owner.parent().unwrap_or(Path::new("/")).to_path_buf();
    let mut sources = vec![parent.clone()];
    for root in source_roots {
        sources.push(
            root.canonicalize()
                .map_err(|error| Error::io("find", root, error))?,
        );
    }
    Ok((Roots::open(&parent, &sources)?, owner))
}

/// The file in a directory that names its disks: a manifest, else a lone OVF.
fn owner_in(directory: &Path) -> Option<PathBuf> {
    let names = queue::job::manifest::FIXED_NAMES.map(|name| directory.join(name));
    if let Some(manifest) = names.into_iter().find(|path| path.is_file()) {
        return Some(manifest);
    }
    let entries = directory.read_dir().ok()?.flatten();
    let is_ovf = |path: &PathBuf| {
        path.extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("ovf"))
    };
    let mut descriptors = entries.map(|entry| entry.path()).filter(is_ovf);
    let descriptor = descriptors.next()?;
    descriptors.next().is_none().then_some(descriptor)
}

fn convert(
    args: &ConvertArgs,
    path: &Path,
    place: &Place,
    interrupt: &Interrupt,
) -> Result<Outcome> {
    let (roots, owner) = locate(path, &args.source_roots)?;
    let mut wishes = wishes(args, &roots, &owner, place)?;
    wishes.origin.drop = path.display().to_string();
    let progress = Progress::new(0, args.json, interrupt);
    progress.say("opening".to_owned());
    let unpacker = Unpacker {
        directory: place.parent(),
        observer: &progress,
        patience: Duration::from_secs(Config::default().incomplete_timeout),
    };
    let mut appliance = source::open(&roots, &owner, !args.no_checksum, &unpacker)?;
    drop(progress);
    let name = vm_name(args, &appliance, &owner)?;
    let count = appliance.disks.len();
    check_place(path, place, count)?;
    let mut caring = wishes.care(&Care::of(&wishes.guest, &examine::cache_dir()));
    caring.foresee(&appliance)?;
    let format = wishes.plan.format.as_str();
    let staging = Staging::create(place, &name, format, args.overwrite)?;
    vm::check_space(&appliance, &wishes.plan, staging.directory())?;
    let host = nix::unistd::gethostname().unwrap_or_default();
    let host = host.to_string_lossy();
    let libvirt = Libvirt {
        emit_domain_xml: matches!(place, Place::Directory(_)),
        ..Libvirt::default()
    };
    let order = Order {
        name: &name,
        first_file: wishes.first_file.as_deref(),
        plan: &wishes.plan,
        libvirt: &libvirt,
        directory: staging.directory(),
        result: staging.result_dir(),
        origin: wishes.origin.clone(),
        host: &host,
        // What is left of an interrupted one is nothing: it is written aside and removed.
        resume: None,
    };
    let progress = Progress::new(vm::work_bytes(&appliance), args.json, interrupt);
    let mut converted = vm::vm(&mut appliance, &order, &progress, &mut |number, disk| {
        progress.say(format!("{} ({number}/{count})", disk.name));
    })?;
    care_for(&mut caring, &appliance, &order, &mut converted, &progress)?;
    drop(progress);
    converted
        .metadata
        .notes
        .extend(wishes.notes.iter().cloned());
    if matches!(place, Place::Directory(_)) {
        write_metadata(&mut converted, staging.directory())?;
    }
    let output = staging.publish(&converted.file)?;
    if let Some(uri) = &args.libvirt {
        let domain = output.with_file_name("domain.xml");
        libvirt::define(uri, &domain).check(name.as_str())?;
    }
    Ok(Outcome {
        source: owner,
        vm_name: name.to_string(),
        output,
        disks: converted.disks,
        notes: converted.metadata.notes,
    })
}

fn check_place(path: &Path, place: &Place, disks: usize) -> Result<()> {
    if matches!(place, Place::File(_)) && disks > 1 {
        return Err(
            Error::invalid(format!("{} has {disks} disks", path.display()))
                .with_remedy("give a directory as --output"),
        );
    }
    Ok(())
}

/// Repairs the guest; says why one was left as it is, unless that was asked for.
fn care_for(
    caring: &mut Care,
    appliance: &Appliance,
    order: &Order<'_>,
    converted: &mut Converted,
    progress: &Progress,
) -> Result<()> {
    let name = order.name;
    let mut on_phase = |phase: Phase| progress.say(format!("{name}: {}", phase.as_str()));
    care::care(appliance, order, caring, converted, progress, &mut on_phase)?;
    let guest = &converted.metadata.guest;
    let found = guest.findings.iter();
    let found = found.filter(|it| guest.reason.as_ref() != Some(&it.text));
    let found: Vec<String> = found.map(|it| it.text.clone()).collect();
    converted.metadata.notes.extend(found);
    let guest = &converted.metadata.guest;
    let is_asked = guest.code.as_deref() == Some("off");
    if let Some(reason) = guest.reason.as_ref().filter(|_| !is_asked) {
        let note = format!("the guest stays as it is: {reason}");
        converted.metadata.notes.push(note);
    }
    Ok(())
}

/// What the manifest asks for, if the source is one, and over it what the command line says.
fn wishes(args: &ConvertArgs, roots: &Roots, owner: &Path, place: &Place) -> Result<Wishes> {
    let mut wishes = Wishes::of_config(&Config::default());
    if let Some(mut manifest) = source::read_manifest(roots, owner)? {
        // --output says where the result goes.
        if let Some(output) = manifest.output.as_mut() {
            output.directory = None;
        }
        wishes = wishes.heed(&manifest, Path::new("/"))?;
    }
    let guest = &mut wishes.guest;
    guest.accel = args.accel.into();
    if args.no_fix {
        guest.fix = GuestFix::Off;
    }
    if args.boot_check {
        guest.boot_check = BootCheck::Try;
    }
    let plan = &mut wishes.plan;
    plan.threads = args.threads;
    plan.strict_window = args.strict_window;
    if args.digest {
        plan.digest = Digest::Always;
    }
    if let Some(format) = args.format {
        plan.format = format.into();
        wishes.first_file = None;
    }
    if let Place::File(path) = place {
        if let Some(format) = Format::of_file(path).filter(|_| args.format.is_none()) {
            plan.format = format.into();
        }
        let name = path.file_name().unwrap_or_default();
        wishes.first_file = Some(name.to_string_lossy().into_owned());
    }
    if let Some(compression) = args.compress {
        plan.compress = compression.into();
    }
    if plan.format == OutFormat::Raw && plan.compress != Compress::None {
        return Err(Error::invalid("a raw image cannot be compressed")
            .with_remedy("say --compress none, or --format qcow2"));
    }
    Ok(wishes)
}

fn vm_name(args: &ConvertArgs, appliance: &Appliance, owner: &Path) -> Result<VmName> {
    if let Some(name) = &args.name {
        return VmName::new(name);
    }
    let file = owner.file_name().unwrap_or_default().to_string_lossy();
    let stem = candidate::stem(&file);
    let named = appliance.machine.name.as_deref();
    Ok(named
        .and_then(|name| VmName::new(name).ok())
        .unwrap_or_else(|| VmName::of_file(stem)))
}

/// As a job of its own: a daemon takes the result for an earlier one of the VM.
fn write_metadata(converted: &mut Converted, directory: &Path) -> Result<()> {
    converted.metadata.job_id = Some(JobId::new());
    let path = directory.join("metadata.json");
    std::fs::write(&path, converted.metadata.to_json()?)
        .map_err(|error| Error::io("write", &path, error))
}

fn show(outcome: &Outcome) {
    output::line(&outcome.output.display().to_string());
    for disk in &outcome.disks {
        output::line(&format!(
            "  {}: {}, {} of {} written, {}",
            output::plain(&disk.name),
            output::plain(&disk.source_format),
            indicatif::BinaryBytes(disk.output_bytes),
            indicatif::BinaryBytes(disk.virtual_size_bytes),
            disk.digest.as_deref().unwrap_or("without a digest"),
        ));
    }
    for note in &outcome.notes {
        output::line(&format!("  note: {}", output::plain(note)));
    }
}
