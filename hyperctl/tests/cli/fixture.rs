//! A daemon's directories, written through the queue's own types, and a thread that plays it.
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use queue::durable::HostVolume;
use queue::error::{Error, ErrorKind};
use queue::instance::{CONFIG_DIR_VARIABLE, Directories, Instance};
use queue::job::record::timestamp;
use queue::job::{
    Delivery, DiskRecord, ExportRequest, Failure, JobId, JobState, Phase, Progress, Record,
    Request, Status,
};
use queue::spool::{Policy, Spool};
use serde_json::Value;
use tempfile::TempDir;

/// What a run of hyperctl left.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// One instance in a directory of its own.
pub struct Fixture {
    pub dir: TempDir,
    pub spool: Spool,
}

impl Fixture {
    pub fn new() -> Self {
        Self::named("default")
    }

    pub fn named(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let directories = Directories {
            queue: dir.path().join("queue"),
            output: dir.path().join("output"),
            work: dir.path().join("work"),
        };
        let policy = Policy::of(&Instance::with_config(name, Default::default()));
        let spool = Spool::open(Arc::new(HostVolume), directories, policy, "host").unwrap();
        Self { dir, spool }
    }

    /// With a heartbeat of this moment.
    pub fn running() -> Self {
        let fixture = Self::new();
        fixture.beat(|_| {});
        fixture
    }

    pub fn directories(&self) -> &Directories {
        &self.spool.directories
    }

    /// Of an instance with these directories, as TOML.
    pub fn configuration(&self) -> String {
        let of = self.directories();
        format!("watch_dir = {:?}\noutput_dir = {:?}\n", of.queue, of.output)
    }

    pub fn beat(&self, change: impl FnOnce(&mut Status)) {
        beat(&self.spool, change);
    }

    pub fn save(&self, record: &Record) -> JobId {
        save(&self.spool, record);
        record.job_id
    }

    /// A job of this VM in this state, with what belongs to the state.
    pub fn add(&self, vm: &str, state: JobState) -> JobId {
        self.save(&record(vm, state))
    }

    pub fn read(&self, id: JobId) -> Record {
        self.spool.record(id).unwrap().unwrap()
    }

    /// hyperctl with `args`, split at spaces, on these directories.
    pub fn command(&self, args: &str) -> Command {
        let mut command = program();
        command
            .args(args.split_whitespace())
            .arg("--watch-dir")
            .arg(&self.directories().queue)
            .arg("--output-dir")
            .arg(&self.directories().output);
        command
    }

    pub fn run(&self, args: &str) -> Ran {
        self.command(args).output().unwrap().into()
    }

    /// A thread that beats the heart and lets `handle` answer requests, until it is dropped.
    pub fn serve(
        &self,
        mut handle: impl FnMut(&Spool, &Request) -> Result<(), Failure> + Send + 'static,
    ) -> Served {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let spool = self.spool.clone();
        let thread = std::thread::spawn(move || {
            let mut taken = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                for (path, request) in spool.requests().unwrap() {
                    let request = request.unwrap();
                    match handle(&spool, &request) {
                        Ok(()) => spool.answer(&path).unwrap(),
                        Err(failure) => spool.refuse(&path, Some(&request), &failure).unwrap(),
                    }
                    taken.push(request);
                }
                std::thread::yield_now();
            }
            taken
        });
        Served {
            stop,
            thread: Some(thread),
        }
    }
}

/// An instance and the export service, found by their configuration files.
pub struct Both {
    config: TempDir,
    pub exports: Fixture,
    pub instance: Fixture,
}

impl Both {
    /// With the heartbeats of this moment.
    pub fn running() -> Self {
        let both = Self::new();
        both.exports.beat(|_| {});
        both.instance.beat(|_| {});
        both
    }

    pub fn new() -> Self {
        let config = tempfile::tempdir().unwrap();
        let (exports, instance) = (Fixture::named("hypervisord"), Fixture::new());
        let of = exports.directories();
        let text = format!(
            "requests_dir = {:?}\noutput_dir = {:?}\n\
             [server.\"vc.example.com\"]\nprovider = \"vsphere\"\nusername = \"u\"\n\
             [server.esx]\nprovider = \"vsphere\"\nusername = \"u\"\naddress = \"10.0.0.7\"\n\
             [server.disks]\nprovider = \"local\"\nroots = [\"/srv\"]\n",
            of.queue, of.output
        );
        std::fs::write(config.path().join("hypervisord.toml"), text).unwrap();
        let text = instance.configuration();
        std::fs::write(config.path().join("hyper2kvm.toml"), text).unwrap();
        Self {
            config,
            exports,
            instance,
        }
    }

    pub fn command(&self, args: &str) -> Command {
        let mut command = program();
        command.env(CONFIG_DIR_VARIABLE, self.config.path());
        command.args(args.split_whitespace());
        command
    }

    pub fn run(&self, args: &str) -> Ran {
        self.command(args).output().unwrap().into()
    }

    /// The record of an export; of a completed one, delivered to the instance.
    pub fn export(&self, vm: &str, state: JobState) -> Record {
        let mut export = record(vm, state);
        export.drop = format!("{vm}.json");
        export.phase = Phase::Export;
        export.outputs.clear();
        export.target = Some("default".into());
        if state == JobState::Completed {
            export.delivered = Some(Delivery {
                instance: "default".into(),
                queue: self.instance.directories().queue.clone(),
                drop: export.job_id.to_string(),
            });
        }
        export
    }

    /// An export that is completed, and the conversion of what it delivered.
    pub fn add(&self, vm: &str, state: JobState) -> (JobId, JobId) {
        let export = self.exports.save(&self.export(vm, JobState::Completed));
        let mut conversion = record(vm, state);
        conversion.drop = export.to_string();
        (export, self.instance.save(&conversion))
    }

    /// The requests that lie in the export service's spool.
    pub fn requests(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.exports.directories().queue).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths
            .filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with('.'))
            .collect()
    }

    /// Takes the one request that comes, as the export service does: its job, and what it asks.
    pub fn claim(&self) -> (Record, ExportRequest) {
        let path = until(|| self.requests().pop());
        let request = ExportRequest::parse(&std::fs::read(&path).unwrap()).unwrap();
        let mut export = self.export(request.vm_name().as_str(), JobState::Processing);
        export.drop = path.file_name().unwrap().to_str().unwrap().to_owned();
        std::fs::remove_file(path).unwrap();
        self.exports.save(&export);
        (export, request)
    }
}

/// The thread that plays the daemon.
pub struct Served {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<Vec<Request>>>,
}

impl Served {
    /// The requests that were taken.
    pub fn end(mut self) -> Vec<Request> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hyperctl"));
    command.env("LC_ALL", "C.UTF-8").env_remove("NO_COLOR");
    command
}

pub fn beat(spool: &Spool, change: impl FnOnce(&mut Status)) {
    let now = SystemTime::now();
    let mut status = Status {
        instance: spool.policy.instance.clone(),
        version: "0.1.0".into(),
        pid: std::process::id(),
        host: nix::unistd::gethostname().unwrap().into_string().unwrap(),
        started_at: timestamp(now - Duration::from_secs(11_520)),
        updated_at: timestamp(now),
        watch_dir: spool.directories.queue.clone(),
        output_dir: spool.directories.output.clone(),
        max_concurrent_jobs: 2,
        free_bytes: 412 << 30,
        ..Status::default()
    };
    change(&mut status);
    spool.save_status(&status).unwrap();
}

pub fn save(spool: &Spool, record: &Record) {
    replace(
        &spool.directories.record(record.job_id),
        &serde_json::to_string(record).unwrap(),
    );
}

/// Changes a record as the daemon does: at once, and newer than before.
pub fn change(spool: &Spool, id: JobId, change: impl FnOnce(&mut Record)) {
    let mut record = spool.record(id).unwrap().unwrap();
    change(&mut record);
    record.updated_at = timestamp(SystemTime::now());
    save(spool, &record);
}

pub fn replace(path: &Path, text: &str) {
    let aside = PathBuf::from(format!("{}.aside", path.display()));
    std::fs::write(&aside, text).unwrap();
    std::fs::rename(&aside, path).unwrap();
}

pub fn record(vm: &str, state: JobState) -> Record {
    let now = SystemTime::now();
    let mut record = Record::new(JobId::new(), vm, "default", &format!("{vm}.vmdk"));
    record.state = state;
    record.created_at = timestamp(now - Duration::from_secs(185));
    record.log = vec![format!("{vm}: claimed"), format!("{vm}: reading")];
    if state != JobState::Queued {
        record.attempts = 1;
        record.started_at = Some(timestamp(now - Duration::from_secs(180)));
    }
    if state.is_final() {
        record.finished_at = Some(timestamp(now - Duration::from_secs(60)));
        record.timings.insert("convert".into(), 118.5);
        record.timings.insert("publish".into(), 1.5);
    }
    match state {
        JobState::Processing => {
            record.phase = Phase::Convert;
            record.progress = Progress {
                bytes_done: 1_258_291_200,
                bytes_total: 2_684_354_560,
                percent: 46.9,
                rate_bytes_per_second: 325_058_560,
                eta_seconds: Some(4),
                resumed_bytes: 600 << 20,
                disk: 1,
                disks: 2,
            };
        }
        JobState::Completed => {
            record.disks.push(DiskRecord {
                name: format!("{vm}.qcow2"),
                source_format: "vmdk (streamOptimized)".into(),
                virtual_size_bytes: 20 << 30,
                source_bytes: 1 << 30,
                output_bytes: 3 << 30,
                digest: Some("blake3:00".into()),
                resumed_bytes: 0,
            });
            record.outputs.push(format!("/out/{vm}/{vm}.qcow2").into());
        }
        JobState::Failed => record.error = Some(failure()),
        _ => {}
    }
    record
}

pub fn failure() -> Failure {
    let error = Error::new(ErrorKind::Corrupt, "grain 7 of web.vmdk is damaged")
        .with_remedy("copy the disk again")
        .with_source(std::io::Error::other("inflate failed"));
    Failure::from(&error)
}

/// Calls `look` until it finds something; fails after a minute.
pub fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let end = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(std::time::Instant::now() < end, "waited for a minute");
        std::thread::yield_now();
    }
}
