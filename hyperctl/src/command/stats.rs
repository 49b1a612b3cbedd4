//! `stats`: sums over an instance's records, and the daemon's own totals.
use std::collections::BTreeMap;
use std::time::SystemTime;

use serde_json::{Value, json};

use queue::job::JobState;

use crate::args;
use crate::outcome::{Exit, Result};
use crate::render::fields::Fields;
use crate::render::text::clean;
use crate::render::{self, Colour, Style, quantity};
use crate::view::{self, Heartbeat, Life, Shelf};

pub fn run(args: &args::Stats) -> Result<Exit> {
    let known = view::daemons(&args.place)?;
    render::notes(&known.notes);
    let (shelves, notes) = view::read(&known.places)?;
    let all: Vec<Sums> = shelves.iter().map(Sums::of).collect();
    if args.json {
        render::print_json(&all.iter().map(Sums::to_json).collect())?;
    } else {
        let style = Style::detect();
        let blocks: Vec<String> = all.iter().map(|sums| sums.block(&style)).collect();
        render::print(&blocks.join("\n"))?;
    }
    render::notes(&notes);
    Ok(Exit::Done)
}

/// What an instance's records add up to.
#[derive(Debug, Default)]
struct Sums {
    instance: String,
    states: BTreeMap<String, u64>,
    failures: BTreeMap<String, u64>,
    /// Of completed jobs.
    source_bytes: u64,
    output_bytes: u64,
    virtual_bytes: u64,
    seconds: f64,
    phases: BTreeMap<String, f64>,
    retried: u64,
    /// None unless the daemon responds.
    heartbeat: Option<Heartbeat>,
}

impl Sums {
    fn of(shelf: &Shelf) -> Self {
        let heartbeat = shelf.place.heartbeat().ok().flatten();
        let mut sums = Self {
            instance: shelf.place.instance.clone(),
            heartbeat: heartbeat
                .filter(|heartbeat| heartbeat.life(SystemTime::now()) == Life::Responding),
            ..Self::default()
        };
        for state in ["queued", "processing", "completed", "failed", "cancelled"] {
            sums.states.insert(state.to_owned(), 0);
        }
        let drops = u64::try_from(shelf.drops.len()).unwrap_or(u64::MAX);
        sums.states.insert("new".to_owned(), drops);
        for job in &shelf.jobs {
            sums.add(job);
        }
        sums
    }

    fn add(&mut self, job: &view::Job) {
        let record = job.record();
        *self.states.entry(job.state()).or_default() += 1;
        self.retried += u64::from(record.attempts > 1);
        if job.is(JobState::Failed) {
            let kind = job
                .cause()
                .map_or_else(|| "unknown".to_owned(), |cause| cause.kind);
            *self.failures.entry(kind).or_default() += 1;
        }
        if !job.is(JobState::Completed) {
            return;
        }
        for disk in &record.disks {
            self.source_bytes = self.source_bytes.saturating_add(disk.source_bytes);
            self.output_bytes = self.output_bytes.saturating_add(disk.output_bytes);
            self.virtual_bytes = self.virtual_bytes.saturating_add(disk.virtual_size_bytes);
        }
        for (phase, seconds) in &record.timings {
            let seconds = seconds.max(0.0);
            *self.phases.entry(phase.clone()).or_default() += seconds;
            self.seconds += seconds;
        }
    }

    fn count(&self, state: &str) -> u64 {
        self.states.get(state).copied().unwrap_or_default()
    }

    /// Source bytes per second of work, over all completed jobs.
    fn rate_bytes_per_second(&self) -> Option<u64> {
        let rate = self.source_bytes as f64 / self.seconds;
        (self.seconds > 0.0 && rate.is_finite()).then_some(rate as u64)
    }

    fn block(&self, style: &Style) -> String {
        let mut fields = Fields::default();
        let counts = |states: &[&str]| {
            let texts = states
                .iter()
                .map(|state| format!("{} {state}", self.count(state)));
            texts.collect::<Vec<_>>().join(", ")
        };
        fields.add("Waiting", counts(&["new", "queued"]));
        fields.add("Running", counts(&["processing"]));
        fields.add("Finished", counts(&["completed", "failed", "cancelled"]));
        let failures: Vec<String> = self
            .failures
            .iter()
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        fields.add_all(
            "Failures",
            Some(failures.join(", ")).filter(|text| !text.is_empty()),
        );
        fields.add("Retried", self.retried.to_string());
        let (source, output) = (self.source_bytes, self.output_bytes);
        let sizes = format!(
            "{} in, {} out",
            quantity::bytes(source),
            quantity::bytes(output)
        );
        fields.add(
            "Bytes",
            format!("{sizes}, {} virtual", quantity::bytes(self.virtual_bytes)),
        );
        if let Some(rate) = self.rate_bytes_per_second() {
            let per_job = self.seconds / self.count("completed").max(1) as f64;
            let (rate, time) = (quantity::bytes(rate), quantity::seconds(per_job));
            fields.add("Speed", format!("{rate}/s, {time} per job"));
        }
        let phases: Vec<String> = self
            .phases
            .iter()
            .map(|(phase, seconds)| format!("{phase} {}", quantity::seconds(*seconds)))
            .collect();
        fields.add_all(
            "Time",
            Some(phases.join(", ")).filter(|text| !text.is_empty()),
        );
        if let Some(heartbeat) = &self.heartbeat {
            fields.add("Free", quantity::bytes(heartbeat.status().free_bytes));
        }
        let name = style.paint(Colour::Bold, &clean(&self.instance));
        format!("{} {name}\n{}", style.glyph("●", "*"), fields.into_text())
    }

    fn to_json(&self) -> Value {
        let status = self.heartbeat.as_ref().map(Heartbeat::status);
        json!({
            "instance": self.instance,
            "jobs": self.states,
            "failures": self.failures,
            "retried": self.retried,
            "source_bytes": self.source_bytes,
            "output_bytes": self.output_bytes,
            "virtual_size_bytes": self.virtual_bytes,
            "seconds": self.seconds,
            "phase_seconds": self.phases,
            "rate_bytes_per_second": self.rate_bytes_per_second(),
            "free_bytes": status.map(|status| status.free_bytes),
            "daemon_totals": status.map(|status| &status.totals),
        })
    }
}
