//! One export's turn: from the held request to the drop in its instance's queue, or to its failure.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use queue::durable::{HostVolume, Volume};
use queue::instance::Instance;
use queue::instance::exports::Server;
use queue::job::manifest::{Manifest, Options};
use queue::job::{self, DiskRecord, ExportRequest, Phase};
use queue::service::turn::{end_badly, note_time, supersede};
use queue::service::{Activity, Outcome, Reporter, log};
use queue::spool::recover::Waiting;
use queue::spool::{Begun, DropKind, Job, Target};

use super::stream::Streaming;
use super::watch::Watch;
use super::{Exports, connect, debts};
use crate::error::{Error, Result};
use crate::export::{self, Export};
use crate::machine::{Delivered, Exported, Stream};
use crate::transfer::Algorithm;
use crate::worker::ledger::FileLedger;

/// Logging in, finding the VM, and cleaning up after an export that died.
const DESCRIBE_PATIENCE: Duration = Duration::from_secs(600);
/// Between two signs of life of a provider.
const EXPORT_PATIENCE: Duration = Duration::from_secs(600);
/// Making large disks durable is one system call each.
const PUBLISH_PATIENCE: Duration = Duration::from_secs(3600);

/// Works on a held request until it is delivered, failed or put back.
pub fn turn(mut job: Box<Job>, exports: &Exports, activity: &Activity) -> Outcome {
    activity.enter(
        job.memory.vm_name.as_str(),
        Phase::Describe,
        DESCRIBE_PATIENCE,
    );
    let begun = read(&job).and_then(|request| {
        let begun = job.begin_into(target(&request)?)?;
        Ok((request, begun))
    });
    let request = match begun {
        Ok((request, Begun::Yes)) => request,
        Ok((_, Begun::NameTaken)) => return Outcome::NameTaken(Waiting::from(&*job)),
        Ok((_, Begun::Superseded(later))) => return supersede(job, later),
        Err(error) => return end_badly(job, error, activity),
    };
    let started = Instant::now();
    let disks = match fetch(&mut job, &request, exports, activity) {
        Ok(Fetched::All(disks)) => disks,
        Ok(Fetched::NameTaken) => {
            let waiting = Waiting::from(&*job);
            return match job.release() {
                Ok(()) => Outcome::NameTaken(waiting),
                Err(error) => Outcome::Trouble(error),
            };
        }
        Err(error) => return end_badly(job, error, activity),
    };
    let bytes = disks.iter().map(|disk| disk.size_bytes).sum();
    let name = job.memory.vm_name.to_string();
    activity.enter(&name, Phase::Publish, PUBLISH_PATIENCE);
    let (seconds, instance) = (started.elapsed().as_secs_f64(), &request.instance);
    log::say(
        &mut job,
        &format!("exported in {seconds:.1} s; handing it to instance {instance}"),
    );
    let job_id = job.id();
    match job.deliver() {
        Ok(()) => {
            tracing::info!(%job_id, vm_name = name, phase = "publish", "{name}: delivered");
            Outcome::Published {
                bytes_in: bytes,
                bytes_out: bytes,
            }
        }
        Err((job, error)) => end_badly(job, error, activity),
    }
}

/// The request that was dropped.
fn read(job: &Job) -> Result<ExportRequest> {
    let path = job.owner_path();
    if job.memory.kind != DropKind::Request {
        return Err(
            Error::invalid(format!("{} is no export request", job.memory.drop))
                .with_remedy("disks go into an instance's queue"),
        );
    }
    let bytes = HostVolume
        .read(&path, job::export::MAX_BYTES)?
        .unwrap_or_default();
    ExportRequest::parse(&bytes)
}

fn target(request: &ExportRequest) -> Result<Target> {
    let instance = Instance::load(&request.instance)?;
    Ok(Target {
        instance: instance.name,
        queue: instance.directories.queue,
    })
}

enum Fetched {
    All(Vec<Delivered>),
    /// The name that the provider gives the VM is taken by another running export.
    NameTaken,
}

/// Fills the staging directory.
fn fetch(
    job: &mut Job,
    request: &ExportRequest,
    exports: &Exports,
    activity: &Activity,
) -> Result<Fetched> {
    let started = Instant::now();
    job.record.phase = Phase::Describe;
    job.record.log.clear();
    job.record.notes = request.notes();
    job.save_record(false)?;
    let server = server(exports, request)?;
    let provider = connect(&request.server, server)?;
    debts::settle(&exports.debts, &*provider)?;
    let ledger = Arc::new(FileLedger::new(&exports.debts));
    let export = Export::describe(provider, &request.vm, request.name.as_deref(), ledger)?;
    if export.name != job.memory.vm_name && job.rename_vm(export.name.clone())? != Begun::Yes {
        return Ok(Fetched::NameTaken);
    }
    note_time(job, Phase::Describe, started);

    let started = Instant::now();
    job.record.phase = Phase::Export;
    job.record.disks = export.vm.disks.iter().map(expected).collect();
    activity.enter(export.name.as_str(), Phase::Export, EXPORT_PATIENCE);
    let has_failed = AtomicBool::new(false);
    let stream = (request.options.stream != Some(false)).then_some(&has_failed);
    let exported = match bring(job, &export, request, exports, activity, stream) {
        Err(error) if has_failed.load(Ordering::Relaxed) => {
            let why = error.to_line();
            log::say(job, &format!("{why}; exporting without streaming"));
            job.abort_stream(&why)?;
            job.start_over()?;
            bring(job, &export, request, exports, activity, None)?
        }
        brought => brought?,
    };
    if request.options.stream == Some(true) && !exported.is_streamed {
        let note = "options.stream has no effect: the conversion begins when all disks are there";
        job.record.notes.push(note.to_owned());
    }
    for (disk, told) in exported.disks.iter().zip(&mut job.record.disks) {
        told.name.clone_from(&disk.file);
        told.output_bytes = disk.size_bytes;
        told.digest = Some(disk.checksum.clone());
    }
    note_time(job, Phase::Export, started);
    Ok(Fetched::All(exported.disks))
}

/// Brings the disks into the staging directory; or, if `stream` is given and the provider can, into
/// the target's queue while they arrive. What is given is set if only that was what failed.
fn bring(
    job: &mut Job,
    export: &Export,
    request: &ExportRequest,
    exports: &Exports,
    activity: &Activity,
    stream: Option<&AtomicBool>,
) -> Result<Exported> {
    let (id, staging) = (job.id(), job.staging_dir());
    let disks = &export.vm.disks;
    let total_bytes = disks.iter().map(|disk| disk.size_bytes).sum();
    let reservation = exports.space.reserve(&staging, total_bytes)?;
    let files: Vec<String> = disks.iter().map(|disk| disk.file.clone()).collect();
    let reporter = Reporter::new(activity, job, total_bytes, files.len());
    let watch = Watch::new(&reporter, &reservation, &files);
    let streaming =
        stream.map(|has_failed| Streaming::new(export, request, &staging, &reporter, has_failed));
    let stream = streaming.as_ref().map(|streaming| streaming as &dyn Stream);
    let exported = export.fetch(&staging, Algorithm::Blake3, stream, &watch)?;
    if !exported.is_streamed {
        let mut manifest = export.manifest(&exported, id, false);
        wish(&mut manifest, request);
        export::write(&staging, &manifest)?;
    }
    Ok(exported)
}

fn expected(disk: &crate::machine::Disk) -> DiskRecord {
    DiskRecord {
        name: disk.file.clone(),
        source_format: disk.format.clone(),
        virtual_size_bytes: disk.capacity_bytes.unwrap_or_default(),
        source_bytes: disk.size_bytes,
        ..DiskRecord::default()
    }
}

fn server<'a>(exports: &'a Exports, request: &ExportRequest) -> Result<&'a Server> {
    let name = &request.server;
    let Some(server) = exports.servers.get(name) else {
        let known: Vec<&str> = exports.servers.keys().map(String::as_str).collect();
        return Err(Error::invalid(format!(
            "server {name:?} is not configured; known are: {}",
            known.join(", ")
        ))
        .with_remedy("add [server.\"…\"] to hypervisord.toml, reload, then `hyperctl retry`"));
    };
    match &request.provider {
        Some(asked) if *asked != server.provider => Err(Error::invalid(format!(
            "the request asks for provider {asked:?}, but server {name:?} is a {}",
            server.provider
        ))
        .with_remedy("leave provider out of the request")),
        _ => Ok(server),
    }
}

/// What the request wishes of the conversion stands in the manifest.
pub(super) fn wish(manifest: &mut Manifest, request: &ExportRequest) {
    manifest.output.clone_from(&request.output);
    manifest.options = Some(Options {
        priority: Some(request.options.priority),
        ..Options::default()
    });
}
