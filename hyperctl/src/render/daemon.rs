//! A daemon as text and as JSON: never running unless its heartbeat is fresh.
use std::time::SystemTime;

use queue::job::record::DaemonState;
use serde_json::{Value, json};

use super::fields::Fields;
use super::quantity;
use super::style::{Colour, Style};
use super::table::{Cell, Flexible};
use super::text::{clean, pad};
use crate::view::heartbeat::Active;
use crate::view::systemd::Unit;
use crate::view::{Heartbeat, Life, Place};

const BAR_COLUMNS: usize = 16;
const NAME_COLUMNS: usize = 20;

/// One daemon, seen from its files and from systemd.
#[derive(Debug)]
pub struct Daemon {
    pub place: Place,
    /// None if it never ran or its heartbeat is broken.
    pub heartbeat: Option<Heartbeat>,
    pub life: Life,
    /// None where there is no systemd or it does not know the service.
    pub unit: Option<Unit>,
    /// How many jobs wait, by the heartbeat, else the unclaimed drops.
    pub queue_depth: u64,
    /// How many of them a running daemon has not claimed yet.
    pub unclaimed: usize,
}

impl Daemon {
    pub fn is_responding(&self) -> bool {
        self.life == Life::Responding
    }

    /// Whether it should be there and is not.
    pub fn is_lost(&self) -> bool {
        let wanted = self
            .unit
            .as_ref()
            .is_some_and(|unit| unit.active == "active");
        match self.life {
            Life::Responding | Life::Stopped(_) => false,
            Life::Absent => wanted,
            _ => true,
        }
    }

    fn beating(&self) -> Option<&Heartbeat> {
        self.heartbeat.as_ref().filter(|_| self.is_responding())
    }

    fn pid(&self) -> Option<u32> {
        let own = self.beating().map(|heartbeat| heartbeat.status().pid);
        own.or_else(|| self.unit.as_ref()?.pid)
    }

    fn service(&self) -> &str {
        self.place.service.as_deref().unwrap_or("-")
    }

    fn unit_state(&self) -> &str {
        self.unit.as_ref().map_or("-", |unit| unit.active.as_str())
    }

    fn uptime(&self, now: SystemTime) -> Option<std::time::Duration> {
        self.beating()?.uptime(now)
    }

    fn colour(&self) -> Colour {
        match &self.beating() {
            Some(heartbeat) if heartbeat.is(DaemonState::Running) => Colour::Green,
            Some(_) => Colour::Yellow,
            None if self.is_lost() => Colour::Red,
            None => Colour::Dim,
        }
    }

    /// A word for the state: the daemon's own while it responds.
    fn word(&self) -> String {
        match self.beating() {
            Some(heartbeat) => heartbeat.state(),
            None if self.life == Life::Absent && self.is_lost() => "not responding".to_owned(),
            None => life_word(self.life).to_owned(),
        }
    }

    /// The block of `daemon status`.
    pub fn block(&self, style: &Style, now: SystemTime) -> String {
        let colour = self.colour();
        let title = format!(
            "{} {}\n",
            style.paint(colour, style.glyph("●", "*")),
            style.paint(Colour::Bold, &clean(&self.place.instance)),
        );
        let reason = life_reason(self.life);
        let state = match reason.is_empty() {
            true => clean(&self.word()),
            false => clean(&format!("{} ({reason})", self.word())),
        };
        let mut fields = Fields::default();
        fields.add_painted("State", &style.paint(colour, &state));
        let service = match &self.place.service {
            Some(service) => format!("{service} ({})", self.unit_state()),
            None => "-".to_owned(),
        };
        fields.add("Service", service);
        let status = self.beating().map(Heartbeat::status);
        fields.add(
            "PID",
            match (self.pid(), status) {
                (Some(pid), Some(status)) if !status.host.is_empty() => {
                    format!("{pid} on {}", status.host)
                }
                (Some(pid), _) => pid.to_string(),
                _ => "-".to_owned(),
            },
        );
        fields.add(
            "Uptime",
            self.uptime(now).map_or("-".to_owned(), quantity::duration),
        );
        fields.add(
            "Watch dir",
            self.place.directories.queue.display().to_string(),
        );
        fields.add(
            "Output dir",
            self.place.directories.output.display().to_string(),
        );
        let mut queue = format!("{} waiting", self.queue_depth);
        if self.unclaimed > 0 {
            queue.push_str(&format!(" ({} not claimed yet)", self.unclaimed));
        }
        fields.add("Queue", queue);
        if let Some(status) = status {
            let active = self.beating().map_or(&[][..], Heartbeat::active);
            let running = format!("{} of {} running", active.len(), status.max_concurrent_jobs);
            fields.add("Jobs", running);
            for job in active {
                fields.add_painted("", &running_job(job, style));
            }
            let totals = &status.totals;
            fields.add(
                "Totals",
                format!(
                    "{} completed, {} failed, {} cancelled",
                    totals.completed, totals.failed, totals.cancelled
                ),
            );
            fields.add("Free", quantity::bytes(status.free_bytes));
            fields.add("Version", &status.version);
        }
        title + &fields.into_text()
    }

    /// The header of `daemon list`, and the columns that give way on a narrow terminal.
    pub fn columns() -> (Vec<&'static str>, Vec<Flexible>) {
        let header = vec![
            "NAME", "SERVICE", "ACTIVE", "STATE", "PID", "UPTIME", "QUEUE", "RUNNING",
        ];
        let flexible = [(1, 12), (0, 8), (1, 8)];
        let flexible = flexible.map(|(column, narrowest)| Flexible { column, narrowest });
        (header, flexible.to_vec())
    }

    /// The line of `daemon list`.
    pub fn row(&self, now: SystemTime) -> Vec<Cell> {
        let running = self.beating().map(|heartbeat| heartbeat.active().len());
        let text = |value: Option<String>| value.unwrap_or_default();
        vec![
            Cell::new(&self.place.instance),
            Cell::new(self.service()),
            Cell::new(self.unit_state()),
            Cell::painted(self.colour(), self.word()),
            Cell::new(text(self.pid().map(|pid| pid.to_string()))),
            Cell::new(text(self.uptime(now).map(quantity::age))),
            Cell::new(self.queue_depth.to_string()),
            Cell::new(text(running.map(|running| running.to_string()))),
        ]
    }

    pub fn to_json(&self, now: SystemTime) -> Value {
        let age = match self.life {
            Life::Silent(age) | Life::Gone(age) | Life::Stopped(age) => Some(age.as_secs()),
            _ => None,
        };
        json!({
            "instance": self.place.instance,
            "service": self.place.service,
            "service_state": self.unit.as_ref().map(|unit| &unit.active),
            "state": self.word().replace(' ', "_"),
            "responding": self.is_responding(),
            "heartbeat_age_seconds": age,
            "pid": self.pid(),
            "uptime_seconds": self.uptime(now).map(|uptime| uptime.as_secs()),
            "watch_dir": self.place.directories.queue,
            "output_dir": self.place.directories.output,
            "queue_depth": self.queue_depth,
            "active": self.beating().map(|heartbeat| {
                let active = heartbeat.active().iter();
                active.map(Active::to_json).collect::<Vec<_>>()
            }),
            "heartbeat": self.heartbeat.as_ref().map(Heartbeat::to_json),
        })
    }
}

/// What a daemon is called that does not speak for itself.
pub fn life_word(life: Life) -> &'static str {
    match life {
        Life::Responding => "running",
        Life::Stopped(_) => "stopped",
        Life::Absent => "not running",
        _ => "not responding",
    }
}

/// How it is known that a daemon is not there; empty if it is.
pub fn life_reason(life: Life) -> String {
    match life {
        Life::Responding => String::new(),
        Life::Silent(age) | Life::Stopped(age) => {
            format!("last heartbeat {} ago", quantity::age(age))
        }
        Life::Gone(age) => format!(
            "its process is gone, last heartbeat {} ago",
            quantity::age(age)
        ),
        Life::Ahead(by) => format!(
            "last heartbeat {} in the future: set the clocks",
            quantity::age(by)
        ),
        Life::Timeless => "its heartbeat cannot be read".to_owned(),
        Life::Absent => "no heartbeat yet".to_owned(),
    }
}

fn running_job(job: &Active, style: &Style) -> String {
    let name = style.fit(&clean(&job.vm_name), NAME_COLUMNS);
    format!(
        "{} {} {:>3.0}% {}",
        pad(&name, NAME_COLUMNS),
        style.bar(job.percent, BAR_COLUMNS),
        job.percent.floor(),
        clean(&job.phase),
    )
}
