//! Decides whether an interrupted conversion can be gone on with, and brings the target's layout
//! and digest to where it was.
//!
//! Placing is the same function of the blocks in their order each time, so the journal's records
//! bring back every table; then the pipeline begins behind the checkpoint. Anything that is not as
//! it was (the source's files, the plan, the program) means that the disk starts over.
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::account::Account;
use super::journal::{self, Checkpoint, End, Last, Record, Survey, Writer};
use super::keeper::Keeper;
use super::target::{self, Target};
use super::{DiskReport, Plan};
use crate::disk::{BLOCK_BYTES, Observer};
use crate::error::{Error, ErrorKind, Result};
use crate::source::SourceDisk;

/// How a conversion that is interrupted goes on later.
pub struct Resume<'a> {
    /// Where the journals of the VM's disks lie, never among its targets. Made when needed.
    pub directory: PathBuf,
    /// After so much work there is a checkpoint, in guest bytes.
    pub every_bytes: u64,
    /// The VM has more disks than one: each that is finished is worth remembering.
    pub has_more: bool,
    /// Makes the file or directory at a path durable.
    pub sync: &'a (dyn Fn(&Path) -> Result<()> + Sync),
}

impl Resume<'_> {
    pub(super) fn journal_of(&self, image: &Path) -> PathBuf {
        let mut name = image.file_name().unwrap_or_default().to_owned();
        name.push(".journal");
        self.directory.join(name)
    }

    /// The targets are about to be changed: what is known of them holds no longer.
    pub(super) fn forget(&self) -> Result<()> {
        if !self.directory.is_dir() {
            return Ok(());
        }
        let failed = |error| Error::io("remove", &self.directory, error);
        fs::remove_dir_all(&self.directory).map_err(failed)?;
        let parent = self.directory.parent().unwrap_or(Path::new("/"));
        (self.sync)(parent)
    }
}

/// Where the work on a disk begins.
pub(super) enum Start<'a> {
    Done(DiskReport),
    At(Box<Begun<'a>>),
}

pub(super) struct Begun<'a> {
    pub target: Target,
    pub account: Account,
    pub from: Checkpoint,
    pub keeper: Keeper<'a>,
}

/// Opens the target at `image`: as an interrupted attempt left it, if that can be gone on with.
pub(super) fn start<'a>(
    disk: &SourceDisk,
    image: &Path,
    plan: &Plan,
    resume: &'a Resume<'a>,
    observer: &'a dyn Observer,
) -> Result<Start<'a>> {
    let source = source_identity(disk, plan)?;
    let path = resume.journal_of(image);
    match recall(disk, image, &source, &path, plan) {
        Ok(Recalled::Done(report)) => {
            observer.tell(&format!("{} was finished before", name(image)));
            observer.resume(disk.allocated_bytes);
            return Ok(Start::Done(report));
        }
        Ok(Recalled::At(found)) => {
            let (target, account, from, writer) = *found;
            observer.tell(&format!(
                "{} goes on behind {} MiB that were read before",
                name(image),
                from.read_bytes >> 20
            ));
            let identity = with_image(source, image)?;
            let earlier = Some((from, writer));
            return Ok(Start::At(Box::new(Begun {
                target,
                account,
                from,
                keeper: Keeper::new(resume, observer, image, identity, earlier),
            })));
        }
        Ok(Recalled::Nothing) => {}
        Err(error) => observer.tell(&format!("{} starts over: {error}", name(image))),
    }
    // The journal first: without it nobody takes the rest for more than it is.
    for stale in [&path, image] {
        match fs::remove_file(stale) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", stale, error));
            }
            _ => {}
        }
    }
    if resume.directory.is_dir() {
        (resume.sync)(&resume.directory)?;
    }
    let target = target::create(image, disk.capacity_bytes, plan)?;
    let identity = with_image(source, image)?;
    Ok(Start::At(Box::new(Begun {
        target,
        account: Account::new(disk.capacity_bytes),
        from: Checkpoint::default(),
        keeper: Keeper::new(resume, observer, image, identity, None),
    })))
}

enum Recalled {
    Nothing,
    Done(DiskReport),
    At(Box<(Target, Account, Checkpoint, Writer)>),
}

/// What the journal at `path` comes to; an error says why it is of no use.
fn recall(
    disk: &SourceDisk,
    image: &Path,
    source: &Value,
    path: &Path,
    plan: &Plan,
) -> Result<Recalled> {
    let file = match File::options().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Recalled::Nothing);
        }
        Err(error) => return Err(Error::io("open", path, error)),
    };
    let Some(Survey { identity, last }) = journal::survey(BufReader::new(&file)) else {
        return Err(useless("its journal is damaged from the beginning"));
    };
    check_identity(&identity, source, image)?;
    match last {
        Last::Nothing => Ok(Recalled::Nothing),
        Last::Done(text) => done(disk, image, &text),
        Last::Checkpoint(checkpoint, end) => {
            let mut target = target::reopen(image, disk.capacity_bytes, plan)?;
            let records = File::open(path).map_err(|error| Error::io("open", path, error))?;
            let account = replay(disk, &mut target, BufReader::new(records), end)?;
            let writer = Writer::go_on(file, end).map_err(|error| Error::io("cut", path, error))?;
            Ok(Recalled::At(Box::new((
                target, account, checkpoint, writer,
            ))))
        }
    }
}

/// A disk that is finished.
#[derive(Serialize, Deserialize)]
struct Finished {
    report: DiskReport,
    /// Whoever changes the image later, in part perhaps, changes this.
    image: String,
}

/// The text of a finished disk, whose image is durable.
pub(super) fn finished(image: &Path, report: &DiskReport) -> Result<String> {
    let finished = Finished {
        report: report.clone(),
        image: stamp(image)?,
    };
    serde_json::to_string(&finished)
        .map_err(|error| Error::new(ErrorKind::Internal, "write a report").with_source(error))
}

fn stamp(image: &Path) -> Result<String> {
    let found = fs::symlink_metadata(image).map_err(|error| Error::io("stat", image, error))?;
    let (seconds, nanoseconds) = (found.mtime(), found.mtime_nsec());
    Ok(format!("{} {seconds}.{nanoseconds:09}", found.len()))
}

fn done(disk: &SourceDisk, image: &Path, text: &str) -> Result<Recalled> {
    let finished: Finished = serde_json::from_str(text)
        .map_err(|_| useless("its journal ends with what is no report"))?;
    if finished.image != stamp(image)? {
        return Err(useless("its file was changed after it was finished"));
    }
    let resumed_bytes = disk.allocated_bytes;
    Ok(Recalled::Done(DiskReport {
        resumed_bytes,
        ..finished.report
    }))
}

/// Places all blocks again that the journal tells of, and cuts off what lies behind them.
fn replay(disk: &SourceDisk, target: &mut Target, records: impl Read, end: End) -> Result<Account> {
    let mut account = Account::new(disk.capacity_bytes);
    let most = disk.capacity_bytes.div_ceil(BLOCK_BYTES);
    let length_bytes = target.length_bytes()?;
    let mut end_bytes = 0;
    let mut packed_end = 0;
    let each = |record: Record| {
        if record.index >= most {
            return Err(useless("its journal names a block behind the disk's end"));
        }
        if let Some(place) = account.place(&record, Some(&mut *target.layout))? {
            let end = place.0.saturating_add(record.stored_bytes());
            end_bytes = end.max(end_bytes);
            if record.packed_bytes > 0 {
                packed_end = end;
            }
        }
        Ok(())
    };
    journal::replay(records, end, each)
        .ok_or_else(|| useless("its journal changed while it was read"))??;
    if end_bytes > length_bytes {
        return Err(useless("its file is shorter than its journal says"));
    }
    target.cut(end_bytes)?;
    // The last cluster of streams may have others behind it, and is still being filled.
    let open_end = packed_end.next_multiple_of(BLOCK_BYTES);
    target.clear(packed_end, open_end.min(end_bytes))?;
    Ok(account)
}

/// All that the target's bytes depend on.
fn source_identity(disk: &SourceDisk, plan: &Plan) -> Result<Value> {
    let mut files = blake3::Hasher::new();
    let mut add = |line: &str| {
        files.update(line.as_bytes()).update(b"\n");
    };
    for window in disk.image.files() {
        add(&window.stamp()?);
    }
    for checksum in &disk.checksums {
        add(&format!("{} {}", checksum.window.stamp()?, checksum.hex));
    }
    Ok(json!({
        "program": env!("CARGO_PKG_VERSION"),
        "format": plan.format,
        "compress": plan.compress,
        "compress_level": plan.compress_level,
        "strict_window": plan.strict_window,
        "digest": plan.digest,
        "disk": disk.name,
        "source_format": disk.format,
        "capacity_bytes": disk.capacity_bytes,
        "source_files": files.finalize().to_hex().as_str(),
    }))
}

/// The identity with the image's own: another file under its name is not what was written.
fn with_image(mut source: Value, image: &Path) -> Result<String> {
    let found = fs::symlink_metadata(image).map_err(|error| Error::io("stat", image, error))?;
    if let Some(fields) = source.as_object_mut() {
        let inode = format!("{}:{}", found.dev(), found.ino());
        fields.insert("image".to_owned(), Value::from(inode));
    }
    Ok(source.to_string())
}

fn check_identity(told: &str, source: &Value, image: &Path) -> Result<()> {
    let now = with_image(source.clone(), image)?;
    if told == now {
        return Ok(());
    }
    let (Ok(Value::Object(told)), Ok(Value::Object(now))) =
        (serde_json::from_str(told), serde_json::from_str(&now))
    else {
        return Err(useless("its journal does not say what it is of"));
    };
    let changed: Vec<&str> = now
        .iter()
        .filter(|(key, value)| told.get(*key) != Some(*value))
        .map(|(key, _)| key.as_str())
        .collect();
    Err(useless(&format!(
        "not as it was at its last checkpoint: {}",
        changed.join(", ")
    )))
}

fn useless(why: &str) -> Error {
    Error::new(ErrorKind::Invalid, why)
}

fn name(image: &Path) -> String {
    let name = image.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}
