//! What is found of a guest on its way: the codes that a record and metadata.json tell.
use serde::{Deserialize, Serialize};

/// What was found of a guest that keeps it from being repaired, or that its owner should know.
/// Stable: pollers match on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestCode {
    /// The repair is switched off.
    Off,
    /// No disk holds an operating system.
    NoSystem,
    /// A volume is encrypted, and no key opens it.
    Locked,
    /// There is no recipe for this system.
    UnsupportedGuest,
    /// There are further systems; one was chosen.
    SeveralRoots,
    /// The repair failed; the disks are as they came.
    RepairFailed,
}

impl GuestCode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::NoSystem => "no_system",
            Self::Locked => "locked",
            Self::UnsupportedGuest => "unsupported_guest",
            Self::SeveralRoots => "several_roots",
            Self::RepairFailed => "repair_failed",
        }
    }
}

/// One of them, with what it is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub code: GuestCode,
    /// One line.
    pub text: String,
}
