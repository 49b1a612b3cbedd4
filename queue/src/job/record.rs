//! The files that pollers read: one `Record` per job, one `Status` per daemon.
//!
//! All fields are optional when read, so that an older reader and a newer writer understand each
//! other. Times are RFC 3339 in UTC; sizes are bytes; durations are seconds.
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};
use crate::job::{Definition, Delivery, Finding, JobId};

/// The largest record that is read, in bytes.
pub const MAX_BYTES: u64 = 4 * 1024 * 1024;
/// A heartbeat older than this is stale: the daemon is not responding.
pub const HEARTBEAT_STALE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    #[default]
    Queued,
    Processing,
    Completed,
    Failed,
    Cancelled,
}

impl JobState {
    /// Whether nothing more will happen to the job by itself.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Processing => "processing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    #[default]
    Settle,
    Verify,
    /// The provider is asked what the VM is.
    Describe,
    /// Its disks are fetched.
    Export,
    Convert,
    Repair,
    /// The boot check.
    Prove,
    Publish,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Settle => "settle",
            Self::Verify => "verify",
            Self::Describe => "describe",
            Self::Export => "export",
            Self::Convert => "convert",
            Self::Repair => "repair",
            Self::Prove => "prove",
            Self::Publish => "publish",
        }
    }
}

/// Sorts by urgency: high before normal before low.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    High,
    #[default]
    Normal,
    Low,
}

impl Priority {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    pub bytes_done: u64,
    pub bytes_total: u64,
    pub percent: f64,
    /// The mean of the last seconds.
    pub rate_bytes_per_second: u64,
    pub eta_seconds: Option<u64>,
    /// Of `bytes_done`: what an earlier, interrupted attempt had done.
    pub resumed_bytes: u64,
    /// The disk that is being worked on, from 1; 0 before the first.
    pub disk: u32,
    pub disks: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskRecord {
    /// File name of the result, e.g. `web-01-disk2.qcow2`.
    pub name: String,
    /// e.g. `vmdk (streamOptimized)`.
    pub source_format: String,
    pub virtual_size_bytes: u64,
    pub source_bytes: u64,
    pub output_bytes: u64,
    /// Content digest, `blake3:<hex>`.
    pub digest: Option<String>,
    /// Source bytes that an earlier, interrupted attempt had read and that were not read again.
    pub resumed_bytes: u64,
}

/// Why a job failed, for pollers and for `<name>.error.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub kind: ErrorKind,
    /// One line: the cause.
    pub message: String,
    /// One line: what to do about it.
    #[serde(default)]
    pub remedy: Option<String>,
    #[serde(default)]
    pub chain: Vec<String>,
}

impl Failure {
    /// The text of `<vm>.error`: the first line is the cause, then what to do about it.
    pub fn to_text(&self) -> String {
        let mut text = self.line();
        text.push('\n');
        if let Some(remedy) = &self.remedy {
            text.push_str(&one_line(remedy));
            text.push('\n');
        }
        text.push_str(&format!("kind: {}\n", self.kind));
        text
    }

    /// The cause alone, with what is below it.
    pub fn line(&self) -> String {
        let all = [&self.message].into_iter().chain(&self.chain);
        let lines: Vec<String> = all.map(|text| one_line(text)).collect();
        lines.join(": ")
    }
}

fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// What to do about an error that does not say it itself.
fn usual_remedy(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Invalid => "correct it and drop it again",
        ErrorKind::Corrupt => "export or copy it again",
        ErrorKind::Unsupported => "export it in another form",
        ErrorKind::NoSpace => "free space, then `hyperctl retry`",
        ErrorKind::Io => "look at the disk and the kernel's log, then `hyperctl retry`",
        ErrorKind::Timeout => "find out what is slow, then `hyperctl retry`",
        ErrorKind::Cancelled => "`hyperctl retry` takes it up after all",
        ErrorKind::Guest => "see the job's log, or switch the repair off",
        ErrorKind::Internal => "this is a defect: report it with the journal's last lines",
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self {
            kind: error.kind,
            message: error.to_string(),
            remedy: error
                .remedy
                .clone()
                .or_else(|| Some(usual_remedy(error.kind).to_owned())),
            chain: error.chain(),
        }
    }
}

/// `output/.daemon/jobs/<job>.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub job_id: JobId,
    pub vm_name: String,
    #[serde(default)]
    pub instance: String,
    /// The name under which the job was dropped into the queue directory.
    #[serde(default)]
    pub drop: String,
    #[serde(default)]
    pub state: JobState,
    #[serde(default)]
    pub phase: Phase,
    #[serde(default)]
    pub priority: Priority,
    /// 1 = next; only while queued.
    #[serde(default)]
    pub queue_position: Option<u64>,
    /// The first files that the drop names and that are not there whole; only while queued.
    #[serde(default)]
    pub waits_for: Vec<String>,
    #[serde(default)]
    pub progress: Progress,
    #[serde(default)]
    pub disks: Vec<DiskRecord>,
    /// Seconds spent per phase.
    #[serde(default)]
    pub timings: BTreeMap<String, f64>,
    /// How many times a worker started this job.
    #[serde(default)]
    pub attempts: u32,
    #[serde(default)]
    pub error: Option<Failure>,
    #[serde(default)]
    pub created_at: String,
    #[serde(default)]
    pub updated_at: String,
    #[serde(default)]
    pub started_at: Option<String>,
    #[serde(default)]
    pub finished_at: Option<String>,
    /// A queued job that failed and waits for its next try waits until then.
    #[serde(default)]
    pub not_before: Option<String>,
    #[serde(default)]
    pub host: String,
    #[serde(default)]
    pub pid: u32,
    /// Published files, absolute.
    #[serde(default)]
    pub outputs: Vec<PathBuf>,
    /// The instance that is to convert what an export brings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Where an export went: the conversion's record bears its drop's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivered: Option<Delivery>,
    /// Where a failed job's source lies now, absolute.
    #[serde(default)]
    pub archived: Vec<PathBuf>,
    /// The job that made this one needless: a later one of its name, or one that owns its disk.
    #[serde(default)]
    pub superseded_by: Option<JobId>,
    /// What was found of the guest: before the first byte is copied as far as the disks tell it.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// Absent where nobody asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub libvirt: Option<Definition>,
    /// What was read over, e.g. unknown fields of the manifest.
    #[serde(default)]
    pub notes: Vec<String>,
    /// The last lines of the job's log, oldest first.
    #[serde(default)]
    pub log: Vec<String>,
}

impl Record {
    pub fn new(job_id: JobId, vm_name: &str, instance: &str, drop: &str) -> Self {
        let now = timestamp(SystemTime::now());
        Self {
            job_id,
            vm_name: vm_name.to_owned(),
            instance: instance.to_owned(),
            drop: drop.to_owned(),
            state: JobState::Queued,
            phase: Phase::Settle,
            priority: Priority::Normal,
            queue_position: None,
            waits_for: Vec::new(),
            progress: Progress::default(),
            disks: Vec::new(),
            timings: BTreeMap::new(),
            attempts: 0,
            error: None,
            created_at: now.clone(),
            updated_at: now,
            started_at: None,
            finished_at: None,
            not_before: None,
            host: String::new(),
            pid: 0,
            outputs: Vec::new(),
            target: None,
            delivered: None,
            archived: Vec::new(),
            superseded_by: None,
            findings: Vec::new(),
            libvirt: None,
            notes: Vec::new(),
            log: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DaemonState {
    #[default]
    Running,
    Paused,
    Draining,
    Stopping,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    pub completed: u64,
    pub failed: u64,
    pub cancelled: u64,
    pub retried: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// A job a worker is on, as the heartbeat shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActiveJob {
    pub job_id: JobId,
    pub vm_name: String,
    pub phase: Phase,
    pub percent: f64,
}

/// `output/.daemon/status.json`: the daemon's heartbeat, every 2 s and on change.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    pub instance: String,
    pub version: String,
    pub pid: u32,
    pub host: String,
    pub started_at: String,
    pub updated_at: String,
    pub state: DaemonState,
    pub watch_dir: PathBuf,
    pub output_dir: PathBuf,
    pub work_dir: PathBuf,
    pub max_concurrent_jobs: u32,
    /// Jobs that wait, claimed or not.
    pub queue_depth: u64,
    pub active: Vec<ActiveJob>,
    /// Since this daemon started.
    pub totals: Totals,
    pub free_bytes: u64,
}

impl Status {
    /// How far the heartbeat is from now; `None` if its time cannot be read. One from the future is
    /// as old as it is ahead: after the clock was set back, a dead daemon's must not look fresh.
    pub fn age(&self, now: SystemTime) -> Option<Duration> {
        let updated = parse_timestamp(&self.updated_at)?;
        Some(
            now.duration_since(updated)
                .unwrap_or_else(|ahead| ahead.duration()),
        )
    }

    /// Whether the daemon beat its heart lately: a stale one is never shown as running.
    pub fn is_fresh(&self, now: SystemTime) -> bool {
        self.age(now).is_some_and(|age| age <= HEARTBEAT_STALE)
    }
}

/// RFC 3339 in UTC with milliseconds.
pub fn timestamp(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

pub fn parse_timestamp(text: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339_weak(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_from_the_future_is_no_sign_of_life() {
        let now = SystemTime::now();
        for (ahead_seconds, fresh) in [(0, true), (2, true), (3600, false)] {
            let beaten = now + Duration::from_secs(ahead_seconds);
            let status = Status {
                updated_at: timestamp(beaten),
                ..Status::default()
            };
            assert_eq!(status.is_fresh(now), fresh, "{ahead_seconds}");
        }
    }
}
