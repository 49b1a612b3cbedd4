//! The queue's one error: what went wrong (`ErrorKind`, stable), with what, and the remedy.
//!
//! The kind decides a job's fate (`ErrorKind::is_transient`); the text is for people.
use std::fmt;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Why a job failed. Stable: pollers match on the snake-case names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// What was asked for makes no sense: a bad manifest, name, path or option.
    Invalid,
    /// The source is damaged, truncated or contradicts itself or its checksum.
    Corrupt,
    /// The source is sound but uses a feature this program does not have.
    Unsupported,
    NoSpace,
    Io,
    Timeout,
    Cancelled,
    /// Guest repair failed although it was required.
    Guest,
    /// A defect of this program.
    Internal,
}

impl ErrorKind {
    /// Whether trying again later can help: the one place where a kind becomes a fate.
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Io | Self::NoSpace | Self::Timeout)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Corrupt => "corrupt",
            Self::Unsupported => "unsupported",
            Self::NoSpace => "no_space",
            Self::Io => "io",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::Guest => "guest",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// A kind, one lower-case line of context, optionally a remedy and the cause below.
#[derive(Debug)]
pub struct Error {
    pub kind: ErrorKind,
    pub context: String,
    /// What the administrator can do about it; one line.
    pub remedy: Option<String>,
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            remedy: None,
            source: None,
        }
    }

    pub fn invalid(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, context)
    }

    /// An operating-system error met while `doing` something to `path`.
    pub fn io(doing: &str, path: &Path, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        };
        let remedy = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Some("free space on this file system".to_owned())
            }
            io::ErrorKind::PermissionDenied => {
                Some("give the user that this program runs as access to it".to_owned())
            }
            io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::AlreadyExists => Some("check the path".to_owned()),
            _ => None,
        };
        Self {
            kind,
            context: format!("{doing} {}", path.display()),
            remedy,
            source: Some(Box::new(source)),
        }
    }

    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    #[must_use]
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The operating system's error number below this error, if there is one.
    pub fn os_error(&self) -> Option<i32> {
        self.source
            .as_ref()?
            .downcast_ref::<io::Error>()?
            .raw_os_error()
    }

    /// All of it in one line: the cause, what lies below it, and the remedy.
    pub fn to_line(&self) -> String {
        let mut line = self.context.clone();
        for below in self.chain() {
            line.push_str(": ");
            line.push_str(&below);
        }
        if let Some(remedy) = &self.remedy {
            line.push_str("; ");
            line.push_str(remedy);
        }
        line
    }

    /// The texts below this error, nearest first.
    pub fn chain(&self) -> Vec<String> {
        let mut texts = Vec::new();
        let mut next = std::error::Error::source(self);
        while let Some(error) = next {
            texts.push(error.to_string());
            next = error.source();
        }
        texts
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn std::error::Error + 'static))
    }
}
