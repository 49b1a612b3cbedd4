//! How a command ends: the exit codes of the product, and the error that carries one.
use std::fmt;
use std::io;
use std::process::ExitCode;

use queue::error::{Error, ErrorKind};

/// The exit codes that all four programs share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    /// The work failed.
    Failed = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    TimedOut = 3,
    /// The daemon is not there.
    NoDaemon = 4,
    /// Ctrl-C ended the following, not the work.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

pub type Result<T> = std::result::Result<T, Stop>;

/// Why a command stops early: an exit code, one line, and what to do about it.
#[derive(Debug)]
pub struct Stop {
    pub exit: Exit,
    /// Empty when there is nothing to say, as when the reader of a pipe went away.
    pub message: String,
    pub remedy: Option<String>,
}

impl Stop {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            remedy: None,
        }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// What writing to standard output met: `hyperctl list | head` is no failure.
    pub fn from_output(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(Exit::Done, ""),
            _ => Self::new(Exit::Failed, format!("write standard output: {error}")),
        }
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        let denied = error.os_error() == Some(nix::libc::EACCES);
        let exit = match error.kind {
            ErrorKind::Invalid => Exit::Usage,
            ErrorKind::Timeout => Exit::TimedOut,
            _ => Exit::Failed,
        };
        let mut message = error.to_string();
        for below in error.chain() {
            message.push_str(&format!(": {below}"));
        }
        let remedy = if denied {
            Some("run hyperctl as root or as a member of the service's group".to_owned())
        } else {
            error.remedy
        };
        Self {
            exit,
            message,
            remedy,
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
