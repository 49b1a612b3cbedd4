//! What the daemon shows of itself: shared by the dispatcher, which writes it, and the heartbeat.
use std::fmt::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use crate::instance::Instance;
use crate::job::Status;
use crate::job::record::{DaemonState, Totals, timestamp};

use super::activity::{Activity, Pulse, lock};

#[derive(Default)]
pub struct Shown {
    pub state: DaemonState,
    pub queue_depth: u64,
    pub active: Vec<Arc<Activity>>,
    pub totals: Totals,
}

pub struct Board {
    pub shown: Mutex<Shown>,
    /// The dispatcher's own sign of life.
    pub pulse: Pulse,
    /// Woken when something changed that should be seen at once.
    pub changed: tokio::sync::Notify,
    started_at: String,
}

impl Board {
    pub fn new() -> Self {
        Self {
            shown: Mutex::default(),
            pulse: Pulse::new(),
            changed: tokio::sync::Notify::new(),
            started_at: timestamp(SystemTime::now()),
        }
    }

    /// Changes what is shown and wakes the heartbeat.
    pub fn update(&self, change: impl FnOnce(&mut Shown)) {
        change(&mut lock(&self.shown));
        self.changed.notify_one();
    }

    /// Whether the dispatcher and every running job moved within their patience plus `extra`.
    pub fn is_moving(&self, extra: Duration) -> bool {
        let shown = lock(&self.shown);
        !self.pulse.is_stuck(extra) && !shown.active.iter().any(|job| job.is_stuck(extra))
    }

    pub fn status(&self, instance: &Instance, host: &str) -> Status {
        let shown = lock(&self.shown);
        let directories = &instance.directories;
        Status {
            instance: instance.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            host: host.to_owned(),
            started_at: self.started_at.clone(),
            updated_at: timestamp(SystemTime::now()),
            state: shown.state,
            watch_dir: directories.queue.clone(),
            output_dir: directories.output.clone(),
            work_dir: directories.work.clone(),
            max_concurrent_jobs: instance.config.max_concurrent_jobs,
            queue_depth: shown.queue_depth,
            active: shown.active.iter().map(|job| job.show()).collect(),
            totals: shown.totals.clone(),
            free_bytes: crate::instance::free_bytes(&directories.output).unwrap_or(0),
        }
    }
}

impl Default for Board {
    fn default() -> Self {
        Self::new()
    }
}

/// One line for `systemctl status`.
pub fn summary(status: &Status) -> String {
    let mut line = match status.state {
        DaemonState::Running => String::new(),
        DaemonState::Paused => "paused; ".to_owned(),
        DaemonState::Draining => "draining; ".to_owned(),
        DaemonState::Stopping => "stopping; ".to_owned(),
    };
    // Writing to a String cannot fail.
    let _ = write!(line, "{} waiting", status.queue_depth);
    for job in &status.active {
        let (name, phase) = (&job.vm_name, job.phase.as_str());
        let _ = write!(line, "; {name}: {phase} {:.0} %", job.percent);
    }
    line
}

/// The metrics for node_exporter's textfile collector (Prometheus text format 0.0.4).
pub fn metrics(status: &Status) -> String {
    let instance = &status.instance;
    let totals = &status.totals;
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: &[(&str, u64)]| {
        let _ = writeln!(
            text,
            "# HELP hyper2kvm_{name} {help}\n# TYPE hyper2kvm_{name} {kind}"
        );
        for (label, value) in samples {
            let _ = writeln!(
                text,
                "hyper2kvm_{name}{{instance=\"{instance}\"{label}}} {value}"
            );
        }
    };
    family(
        "queue_depth",
        "gauge",
        "Jobs that wait.",
        &[("", status.queue_depth)],
    );
    let active = status.active.len() as u64;
    family(
        "active_jobs",
        "gauge",
        "Jobs that are being worked on.",
        &[("", active)],
    );
    family(
        "jobs_total",
        "counter",
        "Jobs that ended, by outcome.",
        &[
            (",outcome=\"completed\"", totals.completed),
            (",outcome=\"failed\"", totals.failed),
            (",outcome=\"cancelled\"", totals.cancelled),
            (",outcome=\"retried\"", totals.retried),
        ],
    );
    family(
        "read_bytes_total",
        "counter",
        "Source bytes converted.",
        &[("", totals.bytes_in)],
    );
    family(
        "written_bytes_total",
        "counter",
        "Result bytes written.",
        &[("", totals.bytes_out)],
    );
    family(
        "free_bytes",
        "gauge",
        "Free space for results.",
        &[("", status.free_bytes)],
    );
    text
}
