//! A file that still arrives: how much of it is there, and whether its producer has declared its
//! end beside it (`<file>.end`).
//!
//! Such a file is only ever appended to. One that stands still for too long has lost its producer,
//! unless its time of modification goes on.
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use queue::job::end::{self, End};
use queue::roots::Folder;

use crate::disk::{Checksum, Observer, Waiter, Window, corrupt};
use crate::error::{Error, ErrorKind, Result};

/// How long a look at the file is waited for: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(40);

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrived {
    Yes,
    /// The file is whole, and shorter.
    Never,
    /// Whoever waited was told to stop.
    GivenUp,
}

/// What the producer says of a file that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Whole {
    pub bytes: u64,
    pub checksum: Option<String>,
}

impl Whole {
    /// What is stated of the file in `window`.
    pub fn checksum(&self, window: &Window) -> Result<Option<Checksum>> {
        let name = super::file_name(window.path());
        let stated_by = end::name_of(&name);
        let stated = self.checksum.as_deref();
        let parse = |text| super::manifest::parse_checksum(text, window, &stated_by, &name);
        stated.map(parse).transpose()
    }
}

pub(super) struct Arriving {
    file: Arc<File>,
    path: PathBuf,
    name: String,
    folder: Folder,
    /// How long it may stand still.
    patience: Duration,
    /// What was seen of it: never less than before.
    length_bytes: AtomicU64,
    state: Mutex<State>,
}

struct State {
    /// Since when it stands still.
    since: Instant,
    modified: Option<SystemTime>,
    whole: Option<Whole>,
}

impl Arriving {
    pub fn new(file: File, path: &Path, folder: Folder, patience: Duration) -> Result<Self> {
        let stat = file.metadata();
        let stat = stat.map_err(|error| Error::io("stat", path, error))?;
        // One that stood still before anybody looked has stood still.
        let modified = stat.modified().ok();
        let age = modified.and_then(|then| SystemTime::now().duration_since(then).ok());
        let age = age.unwrap_or_default().min(patience);
        let now = Instant::now();
        Ok(Self {
            file: Arc::new(file),
            path: path.to_path_buf(),
            name: super::file_name(path),
            folder,
            patience,
            length_bytes: AtomicU64::new(stat.len()),
            state: Mutex::new(State {
                since: now.checked_sub(age).unwrap_or(now),
                modified,
                whole: None,
            }),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn length_bytes(&self) -> u64 {
        self.length_bytes.load(Ordering::Acquire)
    }

    /// The window on what there is and will be.
    pub fn window(&self) -> Result<Window> {
        Window::growing(Arc::clone(&self.file), &self.path)
    }

    /// The file, which is whole.
    pub fn whole_window(&self) -> Result<Window> {
        let file = self.file.try_clone();
        let file = file.map_err(|error| Error::io("open", &self.path, error))?;
        Window::whole(file, &self.path)
    }

    pub fn whole(&self) -> Option<Whole> {
        self.state().whole.clone()
    }

    /// What is declared of it now, without waiting.
    pub fn look_for_end(&self) -> Result<Option<Whole>> {
        self.look()?;
        Ok(self.whole())
    }

    /// Waits until the file reaches `end_bytes`.
    pub fn wait_for(&self, end_bytes: u64, waiter: &dyn Waiter) -> Result<Arrived> {
        self.wait_until(waiter, |length_bytes, is_whole| {
            let is_there = length_bytes >= end_bytes;
            is_there
                .then_some(Arrived::Yes)
                .or(is_whole.then_some(Arrived::Never))
        })
    }

    /// Waits until the file is whole; `None` if that was given up.
    pub fn wait_for_end(&self, waiter: &dyn Waiter) -> Result<Option<Whole>> {
        self.wait_until(waiter, |_, is_whole| is_whole.then_some(Arrived::Yes))?;
        Ok(self.whole())
    }

    fn wait_until(
        &self,
        waiter: &dyn Waiter,
        holds: impl Fn(u64, bool) -> Option<Arrived>,
    ) -> Result<Arrived> {
        if let Some(arrived) = holds(self.length_bytes(), false) {
            return Ok(arrived);
        }
        let mut pause = FIRST_PAUSE;
        loop {
            let is_whole = self.look()?;
            let length_bytes = self.length_bytes();
            let goes_on = waiter.go_on(length_bytes)?;
            if let Some(arrived) = holds(length_bytes, is_whole) {
                return Ok(arrived);
            }
            if !goes_on {
                return Ok(Arrived::GivenUp);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Looks at the file and beside it; true if it is whole.
    fn look(&self) -> Result<bool> {
        let mut state = self.state();
        if state.whole.is_some() {
            return Ok(true);
        }
        // In this order: what is declared whole has its length.
        let end = self.read_end()?;
        let stat = self.file.metadata();
        let stat = stat.map_err(|error| Error::io("stat", &self.path, error))?;
        let (length_bytes, modified) = (stat.len(), stat.modified().ok());
        let is_silent = modified == state.modified;
        state.modified = modified;
        let before = self.length_bytes.swap(length_bytes, Ordering::AcqRel);
        let wrong = |what: String| Err(corrupt(&self.path, what));
        match end {
            Some(End::Aborted { aborted }) => Err(self.aborted(&aborted)),
            _ if length_bytes < before => wrong(format!(
                "it shrank from {before} to {length_bytes} bytes while it arrived"
            )),
            Some(End::Whole { bytes, .. }) if bytes != length_bytes => wrong(format!(
                "it was declared whole with {bytes} bytes, but has {length_bytes}"
            )),
            Some(End::Whole { bytes, checksum }) => {
                state.whole = Some(Whole { bytes, checksum });
                Ok(true)
            }
            None if length_bytes > before || !is_silent => {
                state.since = Instant::now();
                Ok(false)
            }
            None if state.since.elapsed() >= self.patience => Err(self.stalled(length_bytes)),
            None => Ok(false),
        }
    }

    fn read_end(&self) -> Result<Option<End>> {
        let name = end::name_of(&self.name);
        let Some(file) = self.folder.open(&name)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.take(end::MAX_BYTES)
            .read_to_end(&mut bytes)
            .map_err(|error| Error::io("read", &self.path.with_file_name(&name), error))?;
        End::parse(&bytes, &self.name).map(Some)
    }

    fn aborted(&self, reason: &str) -> Error {
        let what = format!(
            "the export of {} was aborted: {reason}",
            self.path.display()
        );
        Error::new(ErrorKind::Cancelled, what).with_remedy("export the machine again")
    }

    fn stalled(&self, length_bytes: u64) -> Error {
        let what = format!(
            "{} stopped arriving at {length_bytes} bytes, and its end was not declared for {} s",
            self.path.display(),
            self.patience.as_secs(),
        );
        Error::new(ErrorKind::Timeout, what)
            .with_remedy("see whether its exporter still runs, and export the machine again")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits on behalf of an observer alone.
pub(super) struct Patient<'a>(pub &'a dyn Observer);

impl Waiter for Patient<'_> {
    fn go_on(&self, _arrived_bytes: u64) -> Result<bool> {
        // No work of its own: the watchdog must see that somebody waits.
        self.0.advance(0);
        if self.0.is_cancelled() {
            let what = "the conversion was cancelled";
            return Err(Error::new(ErrorKind::Cancelled, what));
        }
        Ok(true)
    }
}
