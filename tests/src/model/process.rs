//! `Process`: one process's view of a `Disk`; counts its steps, and fails or dies at a chosen one.
//!
//! A step is a call that changes the disk or takes a lock; looking is free and never fails, except
//! that a dead process gets `killed` from everything.
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use queue::durable::{Entry, EntryKind, Lock, Stat, Volume};
use queue::error::{Error, ErrorKind, Result};

use super::disk::{Disk, Node, Outcome};

/// What happens at a step, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call fails with this error number; the process lives on. A write leaves half a file.
    Fail(Errno),
    /// The call is made but reports this error number, as a network file system may do it.
    FailAfter(Errno),
    /// The process dies instead of making the call. A write leaves half a file.
    KillBefore,
    /// The process dies when the call is done.
    KillAfter,
}

type Interruption = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Plan {
    steps: u64,
    fault: Option<(u64, Fault)>,
    /// Runs while this process stands still just before a step.
    interruption: Option<(u64, Interruption)>,
    is_full: bool,
    cannot_exchange: bool,
    dead: bool,
}

/// Clones are the same process.
#[derive(Clone)]
pub struct Process {
    disk: Disk,
    number: u64,
    plan: Arc<Mutex<Plan>>,
}

struct HeldLock {
    disk: Disk,
    number: u64,
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        self.disk
            .state()
            .locks
            .retain(|_, (_, number)| *number != self.number);
    }
}

impl Process {
    pub fn start(disk: &Disk) -> Self {
        let mut state = disk.state();
        state.next_number += 1;
        let number = state.next_number;
        drop(state);
        Self {
            disk: disk.clone(),
            number,
            plan: Arc::default(),
        }
    }

    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    fn plan(&self) -> std::sync::MutexGuard<'_, Plan> {
        self.plan
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// How many steps it has made.
    pub fn steps(&self) -> u64 {
        self.plan().steps
    }

    /// Plans one fault, `step` steps from now.
    pub fn fault_at(&self, step: u64, fault: Fault) {
        let mut plan = self.plan();
        plan.fault = Some((plan.steps + step, fault));
    }

    /// Runs `interruption` just before the step that is `step` steps from now.
    pub fn interrupt_at(&self, step: u64, interruption: impl FnOnce() + Send + 'static) {
        let mut plan = self.plan();
        plan.interruption = Some((plan.steps + step, Box::new(interruption)));
    }

    /// Everything that needs space fails with ENOSPC until further notice.
    pub fn set_full(&self, is_full: bool) {
        self.plan().is_full = is_full;
    }

    /// A file system without RENAME_EXCHANGE.
    pub fn forbid_exchange(&self) {
        self.plan().cannot_exchange = true;
    }

    /// SIGKILL: its locks are gone, what it changed stays.
    pub fn kill(&self) {
        self.plan().dead = true;
        self.disk
            .state()
            .locks
            .retain(|_, (owner, _)| *owner != self.number);
    }

    pub fn is_dead(&self) -> bool {
        self.plan().dead
    }

    /// Whether `error` is what a dead process gets.
    pub fn is_killed(error: &Error) -> bool {
        error.kind == ErrorKind::Internal && error.context == KILLED
    }

    fn alive(&self) -> Result<()> {
        if self.is_dead() {
            return Err(Error::new(ErrorKind::Internal, KILLED));
        }
        Ok(())
    }

    /// One step: `call` changes the disk, unless a fault is due.
    fn step<T>(
        &self,
        doing: &str,
        paths: &[&Path],
        call: impl FnOnce(&Disk) -> Outcome<T>,
    ) -> Result<T> {
        self.breakable_step(doing, paths, |_| {}, call)
    }

    /// A step that leaves what `half` does if it fails or dies.
    fn breakable_step<T>(
        &self,
        doing: &str,
        paths: &[&Path],
        half: impl FnOnce(&Disk),
        call: impl FnOnce(&Disk) -> Outcome<T>,
    ) -> Result<T> {
        let fault = self.next_step(doing)?;
        let outcome = match fault {
            None | Some(Fault::KillAfter) => call(&self.disk),
            Some(Fault::FailAfter(errno)) => call(&self.disk).and(Err(errno.into())),
            Some(Fault::Fail(errno)) => {
                half(&self.disk);
                Err(errno.into())
            }
            Some(Fault::KillBefore) => {
                half(&self.disk);
                Err(Errno::EINTR.into())
            }
        };
        let told = outcome
            .as_ref()
            .map_or_else(io::Error::to_string, |_| "ok".to_owned());
        self.trace(doing, paths, &told);
        if matches!(fault, Some(Fault::KillBefore | Fault::KillAfter)) {
            self.trace("die", &[], "killed");
            self.kill();
            self.alive()?;
        }
        outcome.map_err(|error| Error::io(doing, paths.first().unwrap_or(&Path::new("")), error))
    }

    /// Counts the step, lets an interruption run, and tells which fault is due.
    fn next_step(&self, doing: &str) -> Result<Option<Fault>> {
        self.alive()?;
        let (fault, interruption) = {
            let mut plan = self.plan();
            plan.steps += 1;
            let steps = plan.steps;
            let needs_space = matches!(doing, "write" | "create directory" | "link" | "lock");
            let full = (plan.is_full && needs_space).then_some(Fault::Fail(Errno::ENOSPC));
            let due = plan
                .fault
                .take_if(|(at, _)| *at == steps)
                .map(|(_, fault)| fault);
            (
                match due {
                    // A lock that is not handed out is not held.
                    Some(Fault::FailAfter(errno)) if doing == "lock" => Some(Fault::Fail(errno)),
                    due => due.or(full),
                },
                plan.interruption.take_if(|(at, _)| *at == steps),
            )
        };
        if let Some((_, interruption)) = interruption {
            interruption();
            self.alive()?;
        }
        Ok(fault)
    }

    /// A line of the caller's own in the disk's trace.
    pub fn remark(&self, text: &str) {
        self.disk
            .state()
            .trace
            .push(format!("{}: {text}", self.number));
    }

    fn trace(&self, doing: &str, paths: &[&Path], told: &str) {
        let paths: Vec<String> = paths
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let (number, steps) = (self.number, self.steps());
        let line = format!("{number}:{steps} {doing} {}: {told}", paths.join(" => "));
        self.disk.state().trace.push(line);
    }

    fn look<T>(
        &self,
        doing: &str,
        path: &Path,
        call: impl FnOnce(&Disk) -> Outcome<T>,
    ) -> Result<Option<T>> {
        self.alive()?;
        match call(&self.disk) {
            Ok(value) => Ok(Some(value)),
            Err(error) if is_absence(&error) => Ok(None),
            Err(error) => Err(Error::io(doing, path, error)),
        }
    }
}

const KILLED: &str = "the model killed this process";

fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(nix::libc::ENOENT | nix::libc::ENOTDIR)
    )
}

impl Volume for Process {
    fn visit_dir(&self, dir: &Path, each: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        self.alive()?;
        let entries = self.disk.state().list(dir);
        let entries = entries.map_err(|error| Error::io("list", dir, error))?;
        let mut entries = entries.into_iter();
        entries.try_for_each(|(name, kind)| each(Entry { name, kind }))
    }

    fn stat(&self, path: &Path) -> Result<Option<Stat>> {
        self.look("stat", path, |disk| {
            let state = disk.state();
            let node = state.node(path)?;
            Ok(Stat {
                kind: node.kind(),
                size_bytes: match node {
                    Node::File { bytes, .. } => bytes.len() as u64,
                    _ => 0,
                },
                modified: state.modified(path)?,
            })
        })
    }

    fn read(&self, path: &Path, limit_bytes: u64) -> Result<Option<Vec<u8>>> {
        let node = self.look("read", path, |disk| Ok(disk.state().node(path)?.clone()))?;
        let too_large = || {
            let text = format!("{} is larger than {limit_bytes} bytes", path.display());
            Error::invalid(text)
        };
        match node {
            None => Ok(None),
            Some(Node::File { bytes, .. }) if bytes.len() as u64 > limit_bytes => Err(too_large()),
            Some(Node::File { bytes, .. }) => Ok(Some(bytes)),
            Some(Node::Symlink(_)) => Err(Error::io("open", path, Errno::ELOOP.into())),
            Some(Node::Directory) => Err(Error::invalid(format!(
                "{} is not a regular file",
                path.display()
            ))),
        }
    }

    fn read_link(&self, path: &Path) -> Result<Option<PathBuf>> {
        let node = self.look("read link", path, |disk| {
            Ok(disk.state().node(path)?.clone())
        })?;
        Ok(match node {
            Some(Node::Symlink(target)) => Some(target),
            _ => None,
        })
    }

    fn create_dir(&self, path: &Path, _mode: u32) -> Result<()> {
        self.step("create directory", &[path], |disk| {
            disk.state().create(path, Node::Directory).map(|_| ())
        })
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let create = |disk: &Disk, bytes: &[u8]| {
            let node = Node::File {
                bytes: bytes.to_vec(),
                synced: bytes.is_empty(),
            };
            disk.state().create(path, node).map(|_| ())
        };
        let half = |disk: &Disk| {
            let _ = create(disk, bytes.get(..bytes.len() / 2).unwrap_or_default());
        };
        self.breakable_step("write", &[path], half, |disk| create(disk, bytes))
    }

    fn sync(&self, path: &Path) -> Result<()> {
        self.step("fsync", &[path], |disk| disk.state().sync(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.step("rename", &[from, to], |disk| disk.state().rename(from, to))
    }

    fn rename_new(&self, from: &Path, to: &Path) -> Result<bool> {
        self.step("rename", &[from, to], |disk| {
            let mut state = disk.state();
            if state.node(to).is_ok() {
                return Ok(false);
            }
            state.rename(from, to).map(|()| true)
        })
    }

    fn exchange(&self, a: &Path, b: &Path) -> Result<bool> {
        let cannot = self.plan().cannot_exchange;
        self.step("exchange", &[a, b], |disk| match cannot {
            true => Ok(false),
            false => disk.state().exchange(a, b).map(|()| true),
        })
    }

    fn symlink(&self, target: &Path, path: &Path) -> Result<()> {
        let node = Node::Symlink(target.to_path_buf());
        self.step("link", &[path, target], |disk| {
            disk.state().create(path, node).map(|_| ())
        })
    }

    fn remove_file(&self, path: &Path) -> Result<()> {
        self.step("remove", &[path], |disk| {
            gone_is_fine(disk.state().remove(path, false))
        })
    }

    fn remove_dir(&self, path: &Path) -> Result<()> {
        self.step("remove directory", &[path], |disk| {
            gone_is_fine(disk.state().remove(path, true))
        })
    }

    fn lock(&self, path: &Path, create: bool) -> Result<Option<Lock>> {
        let (disk, owner) = (self.disk.clone(), self.number);
        let number = self.step("lock", &[path], |disk| {
            let mut state = disk.state();
            let inode = match state.node(path).map(Node::kind) {
                Ok(EntryKind::File) => state.inode(path)?,
                Ok(_) => return Err(Errno::ELOOP.into()),
                // Its directory may be gone.
                Err(error) if is_absence(&error) && state.place(path).is_err() => return Ok(None),
                Err(error) if is_absence(&error) && create => state.create(
                    path,
                    Node::File {
                        bytes: Vec::new(),
                        synced: true,
                    },
                )?,
                Err(error) if is_absence(&error) => return Ok(None),
                Err(error) => return Err(error),
            };
            if state.locks.contains_key(&inode) {
                return Ok(None);
            }
            state.next_number += 1;
            let number = state.next_number;
            state.locks.insert(inode, (owner, number));
            Ok(Some(number))
        })?;
        Ok(number.map(|number| Box::new(HeldLock { disk, number }) as Lock))
    }
}

fn gone_is_fine(outcome: Outcome<()>) -> Outcome<()> {
    match outcome {
        Err(error) if is_absence(&error) => Ok(()),
        outcome => outcome,
    }
}
