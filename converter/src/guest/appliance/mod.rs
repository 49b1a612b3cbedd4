//! The session with one appliance: libguestfs and its small virtual machine in a process of our own
//! that has a time limit and can be killed; hostile file systems never meet the host's kernel.
//!
//! One launch per guest. Every failure, whatever its cause, is of the kind `guest`.
mod calls;
mod files;
mod library;
mod process;
mod scratch;
mod told;
mod wire;

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

pub use calls::Stat;
pub use process::serve;
use scratch::Scratch;
pub use scratch::sweep;
pub use wire::Drive;
use wire::{Launch, Reply, Request, receive, send};

use super::accel::Accel;
use crate::disk::Observer;
use crate::error::{Error, ErrorKind, Result};

/// The hidden command under which this program serves as the appliance process.
pub const COMMAND: &str = "appliance";
/// Enough for dracut and update-initramfs, which unpack what they make in memory.
const MEMORY_MIB: i32 = 1280;
/// How often a waiting session gives a sign of life and looks whether it shall end.
const TICK: Duration = Duration::from_millis(500);
/// What the library says (c-api.c) of an appliance whose end it has seen.
const NOT_LAUNCHED: &str = "call launch before using this function";
/// How much of what the appliance printed an error tells.
const TOLD_CHARS: usize = 300;

/// Where sessions keep what they need, and how long they may take.
#[derive(Debug, Clone)]
pub struct Site {
    /// Holds libguestfs's cached appliance and its temporary files.
    pub work: PathBuf,
    /// For a launch under KVM, which hangs on some hosts.
    pub kvm_limit: Duration,
    /// For a launch without.
    pub launch_limit: Duration,
    /// For everything that is done in one session, the launch apart.
    pub session_limit: Duration,
}

/// A running appliance.
pub struct Appliance<'a> {
    child: Child,
    input: Option<ChildStdin>,
    replies: Receiver<Result<(Reply, Vec<u8>)>>,
    observer: &'a dyn Observer,
    deadline: Instant,
    scratch: Scratch,
    /// Why the process is gone, if it is.
    over: Option<String>,
}

/// Why there is no appliance.
struct Unlaunched {
    error: Error,
    /// Whether it was stopped at its time limit.
    is_late: bool,
}

impl<'a> Appliance<'a> {
    /// Starts the process and launches the appliance with these disks. An emulated one that does
    /// not come up in its time is launched once more.
    pub fn launch(
        site: &Site,
        drives: Vec<Drive>,
        accel: Accel,
        observer: &'a dyn Observer,
    ) -> Result<Self> {
        let order = Launch {
            drives,
            memory_mib: MEMORY_MIB,
            cpus: cpus(accel),
        };
        let mut launched = Self::come_up(site, &order, accel, observer);
        if let (
            Err(Unlaunched {
                error,
                is_late: true,
            }),
            Accel::Tcg,
        ) = (&launched, accel)
        {
            tracing::warn!("launching once more: {}", error.to_line());
            launched = Self::come_up(site, &order, accel, observer);
        }
        launched.map_err(|unlaunched| without_library(unlaunched.error))
    }

    fn come_up(
        site: &Site,
        order: &Launch,
        accel: Accel,
        observer: &'a dyn Observer,
    ) -> std::result::Result<Self, Unlaunched> {
        let limit = match accel {
            Accel::Kvm => site.kvm_limit,
            Accel::Tcg => site.launch_limit,
        };
        let started = Self::start(site, accel, observer, limit);
        let mut appliance = started.map_err(|error| Unlaunched {
            error,
            is_late: false,
        })?;
        if let Err(error) = appliance.ask(&Request::Launch(order.clone()), &[]) {
            let is_late = error.kind == ErrorKind::Guest && appliance.deadline <= Instant::now();
            let error = if appliance.over.is_some() {
                error
            } else {
                appliance.with_last_words(&error)
            };
            return Err(Unlaunched { error, is_late });
        }
        appliance.deadline = Instant::now() + site.session_limit;
        Ok(appliance)
    }

    fn start(
        site: &Site,
        accel: Accel,
        observer: &'a dyn Observer,
        limit: Duration,
    ) -> Result<Self> {
        let failed = |error| failed("start the appliance's process", error);
        let scratch = Scratch::create(&site.work)?;
        let log = scratch.log();
        let stderr = std::fs::File::create(&log).map_err(|e| Error::io("create", &log, e))?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("hyper2kvm").arg(COMMAND).process_group(0);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr);
        command
            .env("LIBGUESTFS_BACKEND", "direct")
            .env("TMPDIR", scratch.directory());
        match accel {
            Accel::Tcg => command.env("LIBGUESTFS_BACKEND_SETTINGS", "force_tcg"),
            Accel::Kvm => command.env("LIBGUESTFS_BACKEND_SETTINGS", "force_kvm"),
        };
        if std::env::var_os("LIBGUESTFS_CACHEDIR").is_none() {
            command.env("LIBGUESTFS_CACHEDIR", scratch::shared(&site.work));
        }
        let mut child = command.spawn().map_err(failed)?;
        let input = child.stdin.take();
        let mut output = child.stdout.take();
        let (sender, replies) = channel();
        std::thread::Builder::new()
            .name("appliance".to_owned())
            .spawn(move || {
                while let Some(reply) = output.as_mut().and_then(|o| receive(o).transpose()) {
                    let is_last = reply.is_err();
                    if sender.send(reply).is_err() || is_last {
                        break;
                    }
                }
            })
            .map_err(failed)?;
        Ok(Self {
            child,
            input,
            replies,
            observer,
            deadline: Instant::now() + limit,
            scratch,
            over: None,
        })
    }

    /// Sends a request and waits for its answer, within the time limit.
    fn ask(&mut self, request: &Request, bytes: &[u8]) -> Result<(Reply, Vec<u8>)> {
        if let Some(why) = &self.over {
            return Err(guest(why.clone()));
        }
        let sent = match &mut self.input {
            Some(input) => send(input, request, bytes),
            None => Err(guest("the appliance was shut down")),
        };
        if let Err(error) = sent {
            return Err(self.end(error));
        }
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            match self.replies.recv_timeout(left.min(TICK)) {
                Ok(Ok((Reply::Failed(reason), _))) if reason.contains(NOT_LAUNCHED) => {
                    let what = format!("the appliance's QEMU ended before {}", name_of(request));
                    return Err(self.end(guest(what)));
                }
                Ok(Ok((Reply::Failed(reason), _))) => {
                    return Err(guest(format!("{}: {reason}", name_of(request))));
                }
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(error)) => return Err(self.end(error)),
                Err(RecvTimeoutError::Disconnected) => {
                    let what = format!("the appliance died during {}", name_of(request));
                    return Err(self.end(guest(what)));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.observer.advance(0);
            if self.observer.is_cancelled() {
                return Err(self.end(Error::new(ErrorKind::Cancelled, "repair the guest")));
            }
            if left.is_zero() {
                let what = format!(
                    "the appliance was stopped: {} took too long",
                    name_of(request)
                );
                return Err(self.end(guest(what)));
            }
        }
    }

    /// Kills what is left.
    fn end(&mut self, mut error: Error) -> Error {
        let status = self.kill();
        if error.kind == ErrorKind::Cancelled {
            self.over = Some(error.to_line());
            return error;
        }
        if let Some(signal) = status.and_then(|status| status.signal()) {
            error = guest(format!("{} (signal {signal})", error.to_line()));
        }
        let error = self.with_last_words(&error);
        self.over = Some(error.to_line());
        error
    }

    /// The error, and what the appliance last printed.
    fn with_last_words(&self, error: &Error) -> Error {
        let mut text = error.to_line();
        let said = std::fs::read(self.scratch.log()).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let said: Vec<&str> = said
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        if let Some(last) = said.last() {
            let shown = last.chars().filter(|c| !c.is_control());
            let end: String = shown.take(TOLD_CHARS).collect();
            text.push_str(&format!("; it last said: {end}"));
        }
        guest(text)
    }

    fn kill(&mut self) -> Option<std::process::ExitStatus> {
        if let Ok(Some(status)) = self.child.try_wait() {
            self.kill_group();
            return Some(status);
        }
        self.kill_group();
        self.child.wait().ok()
    }

    /// The process, its QEMU and the library's recovery process are one group.
    fn kill_group(&self) {
        if let Ok(id) = i32::try_from(self.child.id()) {
            // Whoever is gone already needs no signal.
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
    }

    /// Unmounts, flushes, powers off; only what was shut down without an error may be committed.
    pub fn shutdown(mut self) -> Result<()> {
        self.call("umount_all", &[])?;
        self.ask(&Request::Shutdown, &[])?;
        Ok(())
    }
}

impl Drop for Appliance<'_> {
    fn drop(&mut self) {
        self.input = None;
        self.kill();
    }
}

/// Several make an initramfs sooner; emulated ones have been seen to hang.
fn cpus(accel: Accel) -> i32 {
    match accel {
        Accel::Kvm => std::thread::available_parallelism().map_or(1, |it| it.get().min(4) as i32),
        Accel::Tcg => 1,
    }
}

pub(super) fn guest(context: impl Into<String>) -> Error {
    Error::new(ErrorKind::Guest, context)
}

fn failed(doing: &str, error: std::io::Error) -> Error {
    guest(doing).with_source(error)
}

/// An error of the loader says what to install.
fn without_library(error: Error) -> Error {
    if !error.context.contains("libguestfs.so") {
        return error;
    }
    guest("guest repair needs libguestfs, which is not installed")
        .with_remedy("install libguestfs (Debian: libguestfs-tools, Fedora and RHEL: libguestfs)")
        .with_source(error)
}

/// What an error says was being done.
fn name_of(request: &Request) -> String {
    match request {
        Request::Launch(_) => "launch".to_owned(),
        Request::Call(name, arguments) if arguments.is_empty() => name.clone(),
        Request::Call(name, arguments) => format!("{name} {}", arguments.join(" ")),
        Request::Read(path) => format!("reading {path}"),
        Request::Write(path) => format!("writing {path}"),
        Request::Run(arguments) => arguments.join(" "),
        Request::Chmod(_, path) | Request::Chown(_, _, path) => format!("setting mode of {path}"),
        Request::Stat(path) | Request::Space(path) => format!("looking at {path}"),
        Request::Trim(path, ..) => format!("trimming {path}"),
        Request::OpenLuks(device, _) => format!("opening {device}"),
        Request::ScanLvm => "looking for volume groups".to_owned(),
        Request::Shutdown => "shutdown".to_owned(),
    }
}

/// The path as the appliance's process is told it.
pub fn drive(path: &Path, format: &str, read_only: bool) -> Result<Drive> {
    let text = path.to_str().ok_or_else(|| {
        Error::invalid(format!("{path:?} is not UTF-8")).with_remedy("choose another directory")
    })?;
    Ok(Drive {
        path: text.to_owned(),
        format: format.to_owned(),
        read_only,
    })
}
