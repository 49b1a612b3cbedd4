//! One export's turn: from the held request to the drop in its instance's queue, or to its failure.
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use queue::durable::{HostVolume, Volume};
use queue::instance::exports::Server;
use queue::instance::{Directories, Instance};
use queue::job::manifest::{Manifest, Options};
use queue::job::{self, DiskRecord, ExportRequest, Failure, JobId, Phase, Record};
use queue::service::turn::{end_badly, note_time, supersede};
use queue::service::{Activity, Outcome, Reporter, log};
use queue::spool::growing::Growing;
use queue::spool::recover::Waiting;
use queue::spool::{Begun, DropKind, Job, Target};

use super::watch::Watch;
use super::{Exports, connect, debts};
use crate::error::{Error, ErrorKind, Result};
use crate::export::{self, Export};
use crate::machine::{Delivered, Exported, Stream};
use crate::transfer::Algorithm;
use crate::worker::ledger::FileLedger;
use crate::worker::stream::{Brought, Outlet, Streaming};

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
        let instance = Instance::load(&request.instance)?;
        let begun = job.begin_into(target(&instance))?;
        Ok((request, instance, begun))
    });
    let (request, instance) = match begun {
        Ok((request, instance, Begun::Yes)) => (request, instance),
        Ok((_, _, Begun::NameTaken)) => return Outcome::NameTaken(Waiting::from(&*job)),
        Ok((_, _, Begun::Superseded(later))) => return supersede(job, later),
        Err(error) => return end_badly(job, error, activity),
    };
    let started = Instant::now();
    let disks = match fetch(&mut job, &request, &instance.directories, exports, activity) {
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

fn target(instance: &Instance) -> Target {
    Target {
        instance: instance.name.clone(),
        queue: instance.directories.queue.clone(),
    }
}

enum Fetched {
    All(Vec<Delivered>),
    /// The name that the provider gives the VM is taken by another running export.
    NameTaken,
}

/// Fills the staging directory, or streams to the instance with these directories.
fn fetch(
    job: &mut Job,
    request: &ExportRequest,
    directories: &Directories,
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
    let mut stream = (request.options.stream != Some(false)).then_some(directories);
    let exported = loop {
        match bring(job, &export, request, exports, activity, stream)? {
            Brought::All(exported) => break exported,
            Brought::Over(conversion) => return Err(is_over(&conversion)),
            Brought::Anew(error) => {
                let why = error.to_line();
                log::say(job, &format!("{why}; exporting without streaming"));
                job.abort_stream(&why)?;
                job.start_over()?;
                stream = None;
            }
        }
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
/// the queue of the instance with those directories while they arrive.
fn bring(
    job: &mut Job,
    export: &Export,
    request: &ExportRequest,
    exports: &Exports,
    activity: &Activity,
    stream: Option<&Directories>,
) -> Result<Brought> {
    let (id, staging) = (job.id(), job.staging_dir());
    let disks = &export.vm.disks;
    let total_bytes = disks.iter().map(|disk| disk.size_bytes).sum();
    let reservation = exports.space.reserve(&staging, total_bytes)?;
    let files: Vec<String> = disks.iter().map(|disk| disk.file.clone()).collect();
    let reporter = Reporter::new(activity, job, total_bytes, files.len());
    let watch = Watch::new(&reporter, &reservation, &files);
    let outlet = Told {
        export,
        request,
        staging: &staging,
        reporter: &reporter,
    };
    let streaming = stream.map(|directories| Streaming::new(&outlet, directories));
    let stream = streaming.as_ref().map(|streaming| streaming as &dyn Stream);
    let fetched = export.fetch(&staging, Algorithm::Blake3, stream, &watch);
    let brought = match streaming {
        Some(streaming) => streaming.judge(fetched)?,
        None => Brought::All(fetched?),
    };
    if let Brought::All(exported) = &brought
        && !exported.is_streamed
    {
        let mut manifest = export.manifest(exported, id, false);
        wish(&mut manifest, request);
        export::write(&staging, &manifest)?;
    }
    Ok(brought)
}

/// The job remembers what is streamed, and its record tells.
struct Told<'a, 'job> {
    export: &'a Export,
    request: &'a ExportRequest,
    staging: &'a Path,
    reporter: &'a Reporter<'job>,
}

impl Outlet for Told<'_, '_> {
    fn open(&self, expected: &Exported, files: &[String]) -> Result<(JobId, Vec<Growing>)> {
        let opened = self.reporter.with_job(|job| {
            let mut manifest = self.export.manifest(expected, job.id(), true);
            wish(&mut manifest, self.request);
            export::write(self.staging, &manifest)?;
            job.stream(files)
        })?;
        self.reporter.tell("converted while it arrives");
        Ok(opened)
    }

    fn close(&self, disks: &[Delivered]) -> Result<()> {
        let checksums = disks.iter().map(|disk| disk.checksum.clone());
        self.reporter.with_job(|job| job.end_stream(checksums))
    }
}

/// The error of an export whose conversion ended first. Its kind is the conversion's: what time
/// heals there is worth another export.
fn is_over(conversion: &Record) -> Error {
    let (job_id, failure) = (conversion.job_id, conversion.error.as_ref());
    let kind = failure.map_or(ErrorKind::Cancelled, |failure| failure.kind);
    let what = format!("its conversion {job_id} ended while the disks arrived");
    let error = Error::new(kind, what);
    let error = match failure.map(Failure::line) {
        Some(line) => error.with_source(line),
        None => error,
    };
    match failure.and_then(|failure| failure.remedy.clone()) {
        Some(remedy) => error.with_remedy(remedy),
        None => error,
    }
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
fn wish(manifest: &mut Manifest, request: &ExportRequest) {
    manifest.output.clone_from(&request.output);
    manifest.options = Some(Options {
        priority: Some(request.options.priority),
        ..Options::default()
    });
}
