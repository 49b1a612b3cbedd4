//! Whether an instance's converter runs: asks systemd, and looks at its heartbeat.
//!
//! The heartbeat counts as well, so that a daemon without systemd is found.
use std::process::{Command, Stdio};
use std::time::SystemTime;

use queue::durable::{HostVolume, Volume};
use queue::instance::Instance;
use queue::job::Status;
use queue::job::record::DaemonState;

const MAX_STATUS_BYTES: u64 = 4 * 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// The service is active, or its heartbeat is fresh.
    Running {
        paused: bool,
        /// Its heartbeat is fresh: it is ours, and does what this version can.
        beats: bool,
    },
    Absent,
}

pub fn look(instance: &Instance) -> Presence {
    let beat = heartbeat(instance).filter(|status| status.is_fresh(SystemTime::now()));
    let paused = beat
        .as_ref()
        .is_some_and(|status| status.state == DaemonState::Paused);
    let ending =
        |status: &Status| matches!(status.state, DaemonState::Stopping | DaemonState::Draining);
    match beat {
        Some(status) if ending(&status) => Presence::Absent,
        Some(_) => Presence::Running {
            paused,
            beats: true,
        },
        None if is_active(&instance.service()) => Presence::Running {
            paused,
            beats: false,
        },
        None => Presence::Absent,
    }
}

/// The last heartbeat, however old.
pub fn heartbeat(instance: &Instance) -> Option<Status> {
    let path = instance.directories.status();
    let bytes = HostVolume.read(&path, MAX_STATUS_BYTES).ok()??;
    serde_json::from_slice(&bytes).ok()
}

fn is_active(service: &str) -> bool {
    let asked = Command::new("systemctl")
        .args(["is-active", "--quiet", service])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    asked.is_ok_and(|status| status.success())
}
