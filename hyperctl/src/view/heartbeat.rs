//! `Heartbeat`: what a daemon last said of itself, and whether it can be believed now.
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use queue::error::{Error, ErrorKind, Result};
use queue::instance::Directories;
use queue::job::Status;
use queue::job::record::{DaemonState, HEARTBEAT_STALE, parse_timestamp};
use serde_json::{Value, json};

use super::file::{self, Tolerant};

/// A daemon's last heartbeat.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    read: Tolerant<Status>,
    active: Vec<Active>,
}

/// A job a worker is on, in whatever words the daemon says it.
#[derive(Debug, Clone, PartialEq)]
pub struct Active {
    pub job_id: String,
    pub vm_name: String,
    pub phase: String,
    /// Between 0 and 100.
    pub percent: f64,
}

/// Whether a daemon is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    Responding,
    /// No heartbeat for this long.
    Silent(Duration),
    /// Its heartbeat is this far ahead of this host's clock: it says nothing about now.
    Ahead(Duration),
    /// Its process is gone; the last heartbeat was this long ago.
    Gone(Duration),
    /// It said that it was stopping, this long ago, and has gone.
    Stopped(Duration),
    /// There is a heartbeat, without a time that can be read.
    Timeless,
    /// There never was a heartbeat.
    Absent,
}

impl Heartbeat {
    /// Reads the heartbeat in these directories; `None` if no daemon ever ran there.
    pub fn read(directories: &Directories) -> Result<Option<Self>> {
        let path = directories.status();
        let bytes = file::read(&path).map_err(|error| Error::io("read heartbeat", &path, error))?;
        bytes
            .map(|bytes| Self::parse(&bytes))
            .transpose()
            .map_err(|error| {
                Error::new(
                    ErrorKind::Corrupt,
                    format!("the heartbeat {} cannot be read", path.display()),
                )
                .with_source(error)
            })
    }

    fn parse(bytes: &[u8]) -> serde_json::Result<Self> {
        let read = Tolerant::<Status>::parse(bytes, &[])?;
        let active = match read.unknown.get("active") {
            Some(Value::Array(jobs)) => jobs.iter().map(Active::from_value).collect(),
            _ => read.known.active.iter().map(Active::from).collect(),
        };
        Ok(Self { read, active })
    }

    pub fn status(&self) -> &Status {
        &self.read.known
    }

    pub fn active(&self) -> &[Active] {
        &self.active
    }

    pub fn is(&self, state: DaemonState) -> bool {
        self.status().state == state && !self.read.unknown.contains_key("state")
    }

    /// What the daemon says its state is.
    pub fn state(&self) -> String {
        let unknown = self.read.unknown_text("state");
        unknown.unwrap_or_else(|| {
            match self.status().state {
                DaemonState::Running => "running",
                DaemonState::Paused => "paused",
                DaemonState::Draining => "draining",
                DaemonState::Stopping => "stopping",
            }
            .to_owned()
        })
    }

    pub fn life(&self, now: SystemTime) -> Life {
        let Some(updated) = parse_timestamp(&self.status().updated_at) else {
            return Life::Timeless;
        };
        let age = match now.duration_since(updated) {
            Ok(age) => age,
            Err(ahead) if ahead.duration() > HEARTBEAT_STALE => {
                return Life::Ahead(ahead.duration());
            }
            Err(_) => Duration::ZERO,
        };
        let stale = age > HEARTBEAT_STALE;
        let gone = self.process_is_gone();
        if self.is(DaemonState::Stopping) && (stale || gone) {
            Life::Stopped(age)
        } else if stale {
            Life::Silent(age)
        } else if gone {
            Life::Gone(age)
        } else {
            Life::Responding
        }
    }

    /// How long the daemon has been up, by its own word.
    pub fn uptime(&self, now: SystemTime) -> Option<Duration> {
        let started = parse_timestamp(&self.status().started_at)?;
        now.duration_since(started).ok()
    }

    /// Only a process of this host can be looked for.
    fn process_is_gone(&self) -> bool {
        let status = self.status();
        let here = nix::unistd::gethostname()
            .is_ok_and(|host| !status.host.is_empty() && host == status.host.as_str());
        match i32::try_from(status.pid) {
            Ok(pid) if here && pid > 0 => kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH),
            _ => false,
        }
    }

    /// The heartbeat as JSON, unknown values included.
    pub fn to_json(&self) -> Value {
        let mut value = json!(self.status());
        if let Some(fields) = value.as_object_mut() {
            for (name, unknown) in &self.read.unknown {
                fields.insert(name.clone(), unknown.clone());
            }
        }
        value
    }
}

impl Active {
    pub fn to_json(&self) -> Value {
        json!({
            "job_id": self.job_id, "vm_name": self.vm_name,
            "phase": self.phase, "percent": self.percent,
        })
    }

    fn from_value(value: &Value) -> Self {
        let text = |name: &str| {
            let text = value.get(name).and_then(Value::as_str);
            text.unwrap_or("?").to_owned()
        };
        let percent = value.get("percent").and_then(Value::as_f64);
        Self {
            job_id: text("job_id"),
            vm_name: text("vm_name"),
            phase: text("phase"),
            percent: percent.unwrap_or_default().clamp(0.0, 100.0),
        }
    }
}

impl From<&queue::job::record::ActiveJob> for Active {
    fn from(job: &queue::job::record::ActiveJob) -> Self {
        Self {
            job_id: job.job_id.to_string(),
            vm_name: job.vm_name.clone(),
            phase: job.phase.as_str().to_owned(),
            percent: job.percent.clamp(0.0, 100.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use queue::job::record::timestamp;

    fn heartbeat(age_seconds: i64, state: &str, host: &str, pid: u32) -> Heartbeat {
        let now = SystemTime::now();
        let offset = Duration::from_secs(age_seconds.unsigned_abs());
        let updated = if age_seconds < 0 {
            now + offset
        } else {
            now - offset
        };
        let text = json!({
            "updated_at": timestamp(updated), "state": state, "host": host, "pid": pid,
        });
        Heartbeat::parse(text.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_heartbeat_is_believed_only_while_it_is_fresh() {
        let here = nix::unistd::gethostname().unwrap().into_string().unwrap();
        let own = std::process::id();
        // Linux never gives out a pid this large.
        let nobody = i32::MAX as u32;
        for (age, state, host, pid, responds) in [
            (0, "running", here.as_str(), own, true),
            (9, "running", &here, own, true),
            (12, "running", &here, own, false),
            (0, "running", &here, nobody, false),
            (0, "running", "elsewhere", nobody, true),
            (0, "running", "", nobody, true),
            (0, "running", &here, 0, true),
            (0, "running", &here, u32::MAX, true),
            (0, "stopping", &here, own, true),
            (60, "stopping", &here, own, false),
            (-5, "paused", &here, own, true),
            (-3600, "running", &here, own, false),
            (0, "hibernating", &here, own, true),
        ] {
            let life = heartbeat(age, state, host, pid).life(SystemTime::now());
            assert_eq!(
                life == Life::Responding,
                responds,
                "{age} {state} {host} {pid}: {life:?}"
            );
        }
        let timeless = Heartbeat::parse(b"{}").unwrap();
        assert_eq!(timeless.life(SystemTime::now()), Life::Timeless);
    }

    #[test]
    fn running_jobs_are_never_lost_to_an_unknown_word() {
        let text = json!({"active": [
            {"job_id": "x", "vm_name": "web-01", "phase": "upload", "percent": 1e300},
            {"phase": 7},
        ]});
        let heartbeat = Heartbeat::parse(text.to_string().as_bytes()).unwrap();
        assert_eq!(heartbeat.active().len(), 2);
        assert_eq!(heartbeat.active()[0].phase, "upload");
        assert_eq!(heartbeat.active()[0].percent, 100.0);
    }
}
