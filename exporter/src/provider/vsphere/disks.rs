//! The disks of one lease, downloaded at the same time, and checked against what the server says
//! it has sent.
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Server;
use super::lease::{Device, Entry, Lease, Lost};
use super::session::Session;
use crate::error::{Error, ErrorKind, Result};
use crate::machine::{Delivered, Disk, Stream};
use crate::transfer::download::{self, NewFile, Sink};
use crate::transfer::http::Url;
use crate::transfer::tls::Thumbprint;
use crate::transfer::{Algorithm, Monitor};

/// A disk and where its content is.
pub struct Task<'a> {
    pub disk: &'a Disk,
    pub device: &'a Device,
}

pub struct Downloads<'a> {
    pub session: &'a Session,
    pub server: &'a Server,
    pub lease: &'a Lease<'a>,
    pub into: &'a Path,
    pub checksum: Algorithm,
    /// Else the disks go into the directory.
    pub stream: Option<&'a dyn Stream>,
}

/// What came of one disk.
struct Got {
    delivered: Delivered,
    /// By the algorithm of the server's manifest.
    check: String,
}

impl Downloads<'_> {
    /// The disks in the order of `tasks`, and what should be known of them.
    pub fn run(
        &self,
        tasks: &[Task<'_>],
        monitor: &dyn Monitor,
        steady: &dyn Monitor,
    ) -> Result<(Vec<Delivered>, Vec<String>)> {
        let total = tasks.iter().map(|task| task.disk.size_bytes).sum();
        let (progress, lost) = (AtomicU64::new(0), Lost::default());
        let check = if self.lease.ask_for_sha256(steady) {
            Algorithm::Sha256
        } else {
            Algorithm::Sha1
        };
        let watch = Watch {
            progress: &progress,
            lost: &lost,
            stream: self.stream,
            failed: AtomicBool::new(false),
        };
        self.lease.keep(&progress, total, &lost, steady, || {
            let all: Vec<usize> = (0..tasks.len()).collect();
            let mut got = self.fetch_all(tasks, &all, check, &watch, monitor)?;
            let manifest = self.lease.manifest(steady)?;
            let wrong = check_all(tasks, &got, &manifest);
            if let (Some(stream), Some((_, cause))) = (self.stream, wrong.first()) {
                return Err(stream.fail(cause));
            }
            if !wrong.is_empty() {
                let names: Vec<&str> = wrong.iter().map(|(_, cause)| cause.as_str()).collect();
                monitor.warn(&format!("{}; downloading it again", names.join(", ")));
                let again: Vec<usize> = wrong.iter().map(|(index, _)| *index).collect();
                for (index, new) in again
                    .iter()
                    .zip(self.fetch_all(tasks, &again, check, &watch, monitor)?)
                {
                    if let Some(old) = got.get_mut(*index) {
                        *old = new;
                    }
                }
                let manifest = self.lease.manifest(steady)?;
                if let Some((_, cause)) = check_all(tasks, &got, &manifest).into_iter().next() {
                    return Err(Error::new(ErrorKind::Corrupt, cause)
                        .with_remedy("look for what changes data on the way from the server"));
                }
            }
            let mut warnings = Vec::new();
            if manifest.is_empty() {
                warnings.push(
                    "the server tells no sizes and checksums: the download is as complete as the \
                     connection says"
                        .to_owned(),
                );
            }
            let disks: Vec<Delivered> = got.into_iter().map(|got| got.delivered).collect();
            if let Some(stream) = self.stream {
                stream.finish(&disks)?;
            }
            Ok((disks, warnings))
        })
    }

    /// Those of `tasks` with the given indices, some at a time; all or an error.
    fn fetch_all(
        &self,
        tasks: &[Task<'_>],
        which: &[usize],
        check: Algorithm,
        watch: &Watch<'_>,
        monitor: &dyn Monitor,
    ) -> Result<Vec<Got>> {
        let next = AtomicUsize::new(0);
        let done: Vec<Mutex<Option<Result<Got>>>> =
            which.iter().map(|_| Mutex::default()).collect();
        let work = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let task = which.get(at).and_then(|index| tasks.get(*index));
                let (Some(task), Some(slot)) = (task, done.get(at)) else {
                    return;
                };
                let branch = monitor.branch();
                let guard = Guard {
                    inner: &*branch,
                    watch,
                };
                let fetched = self.fetch(task, check, &guard);
                if fetched.is_err() {
                    watch.failed.store(true, Ordering::Relaxed);
                }
                *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(fetched);
            }
        };
        let threads = self.server.disks_at_once.clamp(1, which.len().max(1));
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(work);
            }
        });
        let mut got = Vec::new();
        let mut errors = Vec::new();
        for slot in done {
            match slot.into_inner().unwrap_or_else(PoisonError::into_inner) {
                Some(Ok(one)) => got.push(one),
                Some(Err(error)) => errors.push(error),
                None => {}
            }
        }
        // The others were cancelled because of the first.
        let first = errors
            .iter()
            .position(|error| error.kind != ErrorKind::Cancelled)
            .unwrap_or(0);
        if first < errors.len() {
            return Err(errors.swap_remove(first));
        }
        Ok(got)
    }

    fn fetch(&self, task: &Task<'_>, check: Algorithm, monitor: &dyn Monitor) -> Result<Got> {
        let disk = task.disk;
        let mut algorithms = vec![self.checksum];
        if check != self.checksum {
            algorithms.push(check);
        }
        let source = download::Source {
            url: self.url(task.device)?,
            name: &disk.file,
            size_bytes: None,
            algorithms: &algorithms,
        };
        monitor.begin(&disk.file, disk.size_bytes);
        let to = self.into.join(&disk.file);
        let mut sink: Box<dyn Sink + '_> = match self.stream {
            Some(stream) => stream.sink(&disk.file)?,
            None => Box::new(anew(&to)?),
        };
        let fetched = download::fetch(&self.session.client, &source, &mut *sink, monitor)?;
        drop(sink);
        let checksum = fetched.checksums.first().cloned().unwrap_or_default();
        let delivered = Delivered {
            id: disk.id.clone(),
            file: disk.file.clone(),
            format: disk.format.clone(),
            size_bytes: fetched.size_bytes,
            checksum,
            pieces: Vec::new(),
        };
        if let Some(stream) = self.stream {
            stream.end(&delivered)?;
        }
        Ok(Got {
            check: fetched.checksums.last().cloned().unwrap_or_default(),
            delivered,
        })
    }

    /// `*` is the server itself; the server vouches for the certificate of any other.
    fn url(&self, device: &Device) -> Result<Url> {
        let bad = || {
            Error::invalid(format!("the lease has no usable address of {}", device.key))
                .with_remedy("see the server's log")
        };
        let url = match device.url.strip_prefix("https://*/") {
            Some(path) => self.server.url(&format!("/{path}"))?,
            None => Url::parse(&device.url).map_err(|_| bad())?,
        };
        let host = url.host_str().ok_or_else(bad)?;
        if let Some(thumbprint) = device
            .thumbprint
            .as_deref()
            .and_then(|text| text.parse().ok())
        {
            let thumbprint: Thumbprint = thumbprint;
            self.session.vouched.insert(host, thumbprint);
        }
        Ok(url)
    }
}

/// A new file, also where an earlier attempt of this very export has left one.
fn anew(to: &Path) -> Result<NewFile<'_>> {
    match std::fs::remove_file(to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", to, error))
        }
        _ => NewFile::create(to),
    }
}

/// The tasks whose disks are not what the manifest says, with the cause.
fn check_all(tasks: &[Task<'_>], got: &[Got], manifest: &[Entry]) -> Vec<(usize, String)> {
    let mut wrong = Vec::new();
    for (index, (task, got)) in tasks.iter().zip(got).enumerate() {
        let Some(entry) = manifest.iter().find(|entry| entry.key == task.device.key) else {
            continue;
        };
        let (file, size) = (&got.delivered.file, got.delivered.size_bytes);
        if let Some(sent) = entry.size_bytes.filter(|sent| *sent != size) {
            wrong.push((
                index,
                format!("{file} has {size} bytes, the server sent {sent}"),
            ));
        } else if let Some(sum) = entry
            .checksum
            .as_ref()
            .filter(|sum| same_kind(sum, &got.check))
            && *sum != got.check
        {
            wrong.push((index, format!("{file} was damaged on its way")));
        }
    }
    wrong
}

fn same_kind(a: &str, b: &str) -> bool {
    a.split(':').next() == b.split(':').next()
}

/// What ends all downloads of a lease.
struct Watch<'a> {
    progress: &'a AtomicU64,
    lost: &'a Lost,
    stream: Option<&'a dyn Stream>,
    failed: AtomicBool,
}

/// One download's monitor, which feeds the lease and ends with the others.
struct Guard<'a> {
    inner: &'a dyn Monitor,
    watch: &'a Watch<'a>,
}

impl Monitor for Guard<'_> {
    fn begin(&self, what: &str, bytes_total: u64) {
        self.inner.begin(what, bytes_total);
    }

    fn advance(&self, bytes: u64) {
        self.watch.progress.fetch_add(bytes, Ordering::Relaxed);
        self.inner.advance(bytes);
    }

    fn stand(&self, bytes_done: u64, bytes_total: u64) {
        self.inner.stand(bytes_done, bytes_total);
    }

    fn message(&self, text: &str) {
        self.inner.message(text);
    }

    fn warn(&self, text: &str) {
        self.inner.warn(text);
    }

    fn is_cancelled(&self) -> bool {
        self.inner.is_cancelled()
            || self.watch.lost.is_lost()
            || self.watch.failed.load(Ordering::Relaxed)
            || self.watch.stream.is_some_and(Stream::is_over)
    }

    fn branch(&self) -> Box<dyn Monitor + '_> {
        Box::new(Guard {
            inner: self.inner,
            watch: self.watch,
        })
    }
}
