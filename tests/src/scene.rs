//! A scene: what lies in a queue on the model disk, and a converter in miniature that works it off.
//!
//! The converter makes the same calls of the spool as the daemon's worker, with texts for disks:
//! the result of `x` is `qcow2 of x`, a source that says `bad` or `busy` fails, and one that says
//! `long` has a journal. It never looks at anything but the queue's own files.
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use queue::durable::Volume;
use queue::error::{Error, ErrorKind, Result};
use queue::instance::config::Retry;
use queue::instance::{Archive, Directories, OnConflict};
use queue::job::{JobId, JobState, Priority, Request, VmName};
use queue::spool::recover;
use queue::spool::{Begun, Drop, DropKind, Hold, Job, Policy, Product, Spool, Target};
use serde_json::json;

use crate::model::{Disk, Process};

/// Rounds after which a queue that still has work is stuck.
const ROUNDS: u32 = 16;

/// One drop: the files that make it up, relative to the queue, with unique texts.
#[derive(Debug, Clone)]
pub struct Dropped {
    pub drop: Drop,
    pub files: Vec<(String, String)>,
    /// Files that a manifest names and that arrive when everything else is done.
    pub later: Vec<(String, String)>,
    /// How it may end.
    pub ends: Vec<JobState>,
    /// The act itself makes it, under a name of its own: until told, it need not be there.
    pub is_submitted: bool,
}

/// What a process does while faults strike; the scene is driven to its end afterwards.
pub type Act = fn(&Scene, &Process) -> Result<()>;

#[derive(Clone)]
pub struct Scene {
    pub policy: Policy,
    pub drops: Vec<Dropped>,
    pub can_exchange: bool,
    /// What was there before, on top of empty directories.
    pub before: fn(&Scene, &Process),
    pub act: Act,
    /// What must be there all the time.
    pub keeps: Option<&'static str>,
    /// What must be there no more at the end.
    pub gone: &'static [&'static str],
}

pub fn directories() -> Directories {
    Directories {
        queue: "/q".into(),
        output: "/o".into(),
        work: "/w".into(),
    }
}

impl Scene {
    pub fn new(drops: Vec<Dropped>) -> Self {
        Self {
            policy: Policy {
                instance: "default".to_owned(),
                on_conflict: OnConflict::Replace,
                archive: Archive::Keep,
                max_attempts: 3,
                retry: Retry {
                    max_retries: 3,
                    retry_delay: 0,
                    backoff_multiplier: 1.0,
                },
            },
            drops,
            can_exchange: true,
            before: |_, _| {},
            act: |scene, process| scene.drive(process),
            keeps: None,
            gone: &[],
        }
    }

    /// The disk before the act: everything on it is durable.
    pub fn prepare(&self) -> Disk {
        let disk = Disk::default();
        let process = self.start(&disk);
        self.open(&process).expect("an empty disk");
        (self.before)(self, &process);
        for dropped in &self.drops {
            let there = |text: &String| disk.tree().values().any(|held| held == text);
            if !dropped.is_submitted && !dropped.files.iter().any(|(_, text)| there(text)) {
                self.deliver(&process, dropped);
            }
        }
        disk.settle();
        disk
    }

    /// Puts the drop's files into the queue.
    pub fn deliver(&self, process: &Process, dropped: &Dropped) {
        for (name, text) in &dropped.files {
            let path = directories().queue.join(name);
            if process.stat(&path).unwrap().is_some() {
                continue;
            }
            for above in path
                .parent()
                .unwrap()
                .ancestors()
                .collect::<Vec<_>>()
                .iter()
                .rev()
            {
                if process.stat(above).unwrap().is_none() {
                    process.create_dir(above, 0o755).unwrap();
                }
            }
            process.write(&path, text.as_bytes()).unwrap();
        }
    }

    pub fn start(&self, disk: &Disk) -> Process {
        let process = Process::start(disk);
        if !self.can_exchange {
            process.forbid_exchange();
        }
        process
    }

    pub fn open(&self, process: &Process) -> Result<Spool> {
        let volume = Arc::new(process.clone());
        Spool::open(volume, directories(), self.policy.clone(), "host")
    }

    /// Works until nothing is left to do; errors on the way are met by trying again, as the daemon
    /// does at its next sweep.
    pub fn drive(&self, process: &Process) -> Result<()> {
        for _ in 0..ROUNDS {
            let outcome = self
                .open(process)
                .and_then(|spool| self.round(process, &spool));
            if process.is_dead() {
                return outcome.map(|_| ());
            }
            match outcome {
                Ok(true) if !self.deliver_later(process) => return Ok(()),
                Ok(_) => {}
                Err(error) => process.remark(&tell(&error)),
            }
        }
        Err(Error::new(
            ErrorKind::Internal,
            "the queue never comes to rest",
        ))
    }

    /// One look at everything; `true` if nothing is left to do.
    fn round(&self, process: &Process, spool: &Spool) -> Result<bool> {
        let mut served = true;
        for (path, request) in spool.requests()? {
            served &= note(process, self.serve(spool, &path, request)).is_some();
        }
        for drop in self.visible(process)? {
            if let Err(error) = spool.claim(&drop) {
                process.remark(&tell(&error));
                note(process, spool.complain(&drop, &error));
            }
        }
        let swept = recover::sweep(spool, &|_| false)?;
        for (_, error) in &swept.errors {
            process.remark(&tell(error));
        }
        let mut idle = served && swept.errors.is_empty();
        for waiting in swept.waiting {
            match spool.hold(waiting.job_id) {
                Ok(Hold::Job(job)) => {
                    idle &= note(process, work(process, spool, *job)) == Some(false)
                }
                Ok(_) => {}
                Err(error) => {
                    idle = false;
                    process.remark(&tell(&error));
                }
            }
        }
        Ok(idle && self.visible(process)?.is_empty())
    }

    /// The drops that lie in the queue directory.
    fn visible(&self, process: &Process) -> Result<Vec<Drop>> {
        let mut visible = Vec::new();
        for dropped in &self.drops {
            let mut drop = dropped.drop.clone();
            if dropped.is_submitted {
                for entry in process.read_dir(&directories().queue)? {
                    let name = entry.name.to_string_lossy().into_owned();
                    if name.starts_with("job-") {
                        drop.owner = format!("{name}/manifest.json");
                        drop.name = name;
                    }
                }
            }
            if process
                .stat(&directories().queue.join(&drop.owner))?
                .is_some()
            {
                visible.push(drop);
            }
        }
        Ok(visible)
    }

    fn serve(&self, spool: &Spool, path: &Path, request: Result<Request>) -> Result<()> {
        let done = match &request {
            Ok(Request::Retry { job_id }) => spool.retry(*job_id),
            Ok(Request::Cancel { job_id }) => match spool.hold(*job_id)? {
                Hold::Job(job) => job.cancel().map(|_| ()),
                Hold::Busy | Hold::Over => Err(Error::invalid("it is over")),
            },
            Ok(Request::SetPriority { job_id, priority }) => match spool.hold(*job_id)? {
                Hold::Job(mut job) => job.set_priority(*priority),
                Hold::Busy | Hold::Over => Err(Error::invalid("it is over")),
            },
            Ok(_) => Ok(()),
            Err(error) => Err(Error::invalid(error.to_string())),
        };
        match done {
            Ok(()) => spool.answer(path),
            Err(error) if error.kind == ErrorKind::Invalid => {
                spool.refuse(path, request.as_ref().ok(), &(&error).into())
            }
            Err(error) => Err(error),
        }
    }

    /// Whether something arrived that was announced for later.
    fn deliver_later(&self, process: &Process) -> bool {
        let tree = process.disk().tree();
        let mut delivered = false;
        for (name, text) in self.drops.iter().flat_map(|dropped| &dropped.later) {
            if !tree.values().any(|held| held == text) {
                process.disk().plant(&directories().queue.join(name), text);
                delivered = true;
            }
        }
        delivered
    }

    /// Claims the first drop and begins it, for acts that go on from there.
    pub fn begin_first(&self, process: &Process) -> Result<(Spool, Job)> {
        let spool = self.open(process)?;
        let lost = || Error::new(ErrorKind::Internal, "nothing to begin");
        let id = spool.claim(&self.drops[0].drop)?.ok_or_else(lost)?;
        let Hold::Job(mut job) = spool.hold(id)? else {
            return Err(lost());
        };
        let begun = match job.memory.kind {
            DropKind::Request => job.begin_into(Target {
                instance: "default".to_owned(),
                queue: TARGET.into(),
            })?,
            _ => job.begin()?,
        };
        if begun != Begun::Yes {
            return Err(lost());
        }
        Ok((spool, *job))
    }

    /// The job of the only record there is.
    pub fn only_record(&self, process: &Process) -> Result<JobId> {
        let names = process
            .read_dir(&directories().records())?
            .into_iter()
            .map(|entry| entry.name);
        let mut ids = names.filter_map(|name| name.to_str()?.strip_suffix(".json")?.parse().ok());
        match (ids.next(), ids.next()) {
            (Some(id), None) => Ok(id),
            _ => Err(Error::new(ErrorKind::Internal, "not exactly one record")),
        }
    }
}

pub fn tell(error: &Error) -> String {
    format!("{error}: {}", error.chain().join(": "))
}

fn note<T>(process: &Process, result: Result<T>) -> Option<T> {
    result.map_err(|error| process.remark(&tell(&error))).ok()
}

/// The worker: `true` if it got anywhere, `false` if the job has to wait for a file.
pub fn work(process: &Process, spool: &Spool, mut job: Job) -> Result<bool> {
    if job.memory.kind == DropKind::Request {
        return export(process, job).map(|()| true);
    }
    let owner = text_of(process, &job.owner_path())?;
    for wanted in owner
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("disk="))
    {
        if !job.take(wanted)? && !adopt(process, spool, &mut job, wanted)? {
            return Ok(false);
        }
    }
    match job.begin()? {
        Begun::Yes => {}
        Begun::NameTaken => return Ok(true),
        Begun::Superseded(later) => return job.supersede(later).map(|_| true),
    }
    let names = owner
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("name="));
    for name in names.map(VmName::new) {
        let name = name?;
        if name == job.memory.vm_name {
            continue;
        }
        match job.rename_vm(name)? {
            Begun::Yes => {}
            Begun::NameTaken => return job.release().map(|()| true),
            Begun::Superseded(later) => return job.supersede(later).map(|_| true),
        }
    }
    let result = convert(process, &job, &owner);
    match result {
        Ok(product) => match job.publish(product) {
            Ok(()) => {}
            Err((job, error)) => {
                process.remark(&tell(&error));
                job.fail(&error)?;
            }
        },
        Err(error) => {
            job.fail(&error)?;
        }
    }
    Ok(true)
}

/// Where exports go: another instance's queue.
pub const TARGET: &str = "/t";

/// The export service in miniature: the VM of the request `x` is a manifest and a disk.
fn export(process: &Process, mut job: Job) -> Result<()> {
    let target = Target {
        instance: "default".to_owned(),
        queue: TARGET.into(),
    };
    match job.begin_into(target)? {
        Begun::Yes => {}
        Begun::NameTaken => return Ok(()),
        Begun::Superseded(later) => return job.supersede(later).map(|_| ()),
    }
    let asked = text_of(process, &job.owner_path())?;
    let outcome = fetch(process, &job, &asked);
    let ended = match outcome {
        Ok(()) => Box::new(job).deliver(),
        Err(error) => Err((Box::new(job), error)),
    };
    if let Err((job, error)) = ended {
        process.remark(&tell(&error));
        job.fail(&error)?;
    }
    Ok(())
}

/// What an export's staging directory holds when it is whole.
pub fn exported(asked: &str) -> [(&'static str, String); 2] {
    [
        ("a.vmdk", format!("disk of {asked}")),
        ("manifest.json", format!("manifest of {asked}")),
    ]
}

pub fn fetch(process: &Process, job: &Job, asked: &str) -> Result<()> {
    let says = |word: &str| asked.split_whitespace().any(|said| said == word);
    for (name, text) in exported(asked) {
        if says("bad") && name == "manifest.json" {
            return Err(Error::new(ErrorKind::Corrupt, "the server lies"));
        }
        if says("busy-once") && name == "manifest.json" && job.memory.retries == 0 {
            return Err(Error::io("write", &job.staging_dir(), Errno::ENOSPC.into()));
        }
        process.write(&job.staging_dir().join(name), text.as_bytes())?;
    }
    Ok(())
}

/// A disk that came before its owner: out of its own job, waiting or done.
fn adopt(process: &Process, spool: &Spool, job: &mut Job, name: &str) -> Result<bool> {
    for id in spool.jobs()? {
        if id != job.id()
            && let Hold::Job(other) = spool.hold(id)?
            && other.is_bare_disk()
            && other.memory.drop == name
        {
            return job.take_over(*other, name);
        }
    }
    let records = process.read_dir(&directories().records())?;
    for entry in records {
        let stem = entry
            .name
            .to_str()
            .and_then(|name| name.strip_suffix(".json"));
        if let Some(id) = stem.and_then(|stem| stem.parse().ok())
            && let Some(record) = spool.record(id)?
            && (record.drop == name && record.state == JobState::Completed)
        {
            return job.take_archived(name, id);
        }
    }
    Ok(false)
}

pub fn convert(process: &Process, job: &Job, owner: &str) -> Result<Product> {
    let says = |word: &str| owner.split_whitespace().any(|said| said == word);
    if says("bad") || (says("bad-once") && job.memory.attempts == 1) {
        return Err(Error::new(ErrorKind::Corrupt, "the source is bad"));
    }
    if says("busy") || (says("busy-once") && job.memory.retries == 0) {
        return Err(Error::io("write", &job.staging_dir(), Errno::ENOSPC.into()));
    }
    job.check_conflict("qcow2")?;
    if says("long") {
        go_half_way(process, job, owner)?;
    }
    if says("flaky-once") && job.memory.retries == 0 {
        return Err(Error::io("read", &job.source_dir(), Errno::EIO.into()));
    }
    let vm = &job.memory.vm_name;
    let file = format!("{vm}.qcow2");
    let staging = job.staging_dir();
    // What an earlier attempt left, if it had a journal.
    for (name, text) in [(&*file, &*result_text(owner)), ("domain.xml", "<domain/>")] {
        let path = staging.join(name);
        if process.read(&path, 1 << 20)?.as_deref() != Some(text.as_bytes()) {
            process.remove_file(&path)?;
            process.write(&path, text.as_bytes())?;
        }
    }
    let half = staging.join("half");
    if process.stat(&half)?.is_some() {
        process.sync(&staging.join(&file))?;
        process.sync(&staging)?;
        process.remove_file(&half)?;
    }
    let metadata = json!({"of": owner});
    Ok(Product {
        file,
        format: "qcow2".to_owned(),
        metadata,
    })
}

/// The first half of a long conversion, unless an earlier attempt did it: first what was made
/// durably, then the journal that speaks of it.
pub fn go_half_way(process: &Process, job: &Job, owner: &str) -> Result<()> {
    let (staging, journals) = (job.staging_dir(), job.journal_dir());
    let (half, journal) = (staging.join("half"), journals.join("half.journal"));
    let text = format!("half of {owner}");
    let above = staging.parent().expect("staging lies in the output");
    if process.read(&journal, 1 << 20)?.as_deref() == Some(text.as_bytes()) {
        let kept = process.read(&half, 1 << 20)?;
        let result = staging.join(format!("{}.qcow2", job.memory.vm_name));
        if kept.as_deref() == Some(text.as_bytes()) || process.stat(&result)?.is_some() {
            return Ok(());
        }
        let what = "the journal speaks of what is not there";
        return Err(Error::new(ErrorKind::Internal, what));
    }
    for stale in [&journal, &half] {
        process.remove_file(stale)?;
    }
    process.write(&half, text.as_bytes())?;
    process.sync(&half)?;
    process.sync(&staging)?;
    process.sync(above)?;
    if process.stat(&journals)?.is_none() {
        process.create_dir(&journals, 0o755)?;
    }
    process.write(&journal, text.as_bytes())?;
    process.sync(&journal)?;
    process.sync(&journals)?;
    process.sync(above)
}

/// What the converter makes of a source's text.
pub fn result_text(owner: &str) -> String {
    format!("qcow2 of {owner}")
}

fn text_of(process: &Process, path: &Path) -> Result<String> {
    let bytes = process.read(path, 1 << 20)?;
    let gone = || Error::io("read", path, Errno::ENOENT.into());
    Ok(String::from_utf8_lossy(&bytes.ok_or_else(gone)?).into_owned())
}

/// A drop of one file whose text is its name and `says`.
pub fn disk(name: &str, says: &str, ends: &[JobState]) -> Dropped {
    dropped(name, DropKind::Disk, name, &[], says, ends)
}

/// A request to export a VM, in a scene that has a queue for it.
pub fn asked(name: &str, says: &str, ends: &[JobState]) -> Dropped {
    let mut asked = dropped(name, DropKind::Request, name, &[], says, ends);
    asked.drop.place = "default".to_owned();
    asked
}

/// What makes that queue: for `Scene::before`.
pub fn make_target(_: &Scene, process: &Process) {
    for dir in [TARGET, "/t/.incoming"] {
        process.create_dir(Path::new(dir), 0o755).unwrap();
    }
}

/// A drop of several files; the owner's text is its name and `says`, each other's is its name.
pub fn dropped(
    name: &str,
    kind: DropKind,
    owner: &str,
    owned: &[&str],
    says: &str,
    ends: &[JobState],
) -> Dropped {
    let stem = Path::new(name).file_stem().unwrap().to_str().unwrap();
    let mut files = vec![(owner.to_owned(), format!("{owner} {says}"))];
    files.extend(
        owned
            .iter()
            .map(|name| (name.to_string(), format!("{name} owned"))),
    );
    // A job directory is taken whole.
    let owned = match kind {
        DropKind::Directory => Vec::new(),
        _ => owned.iter().map(|name| name.to_string()).collect(),
    };
    Dropped {
        drop: Drop {
            name: name.to_owned(),
            kind,
            owner: owner.to_owned(),
            owned,
            vm_name: VmName::new(stem).unwrap(),
            place: String::new(),
            lane: String::new(),
            priority: Priority::Normal,
        },
        files,
        later: Vec::new(),
        ends: ends.to_vec(),
        is_submitted: false,
    }
}

/// Beneath which top directory of the contract a path lies: `queue`, `.processed`, `output` …
pub fn area(path: &Path) -> &'static str {
    let directories = directories();
    let areas: [(PathBuf, &'static str); 8] = [
        (directories.processing(), ".processing"),
        (directories.processed(), ".processed"),
        (directories.errors(), ".errors"),
        (directories.incoming(), ".incoming"),
        (directories.control(), ".control"),
        (directories.queue, "queue"),
        (directories.output.join(".staging"), ".staging"),
        (directories.output, "output"),
    ];
    let found = areas
        .into_iter()
        .find(|(top, _)| path.starts_with(top) && path != top);
    found.map_or("", |(_, name)| name)
}
