//! What the user sees: a progress bar on a terminal, warnings, and the answer as text or JSON.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use exporter::error::Error;
use exporter::machine::{Power, Summary};
use exporter::provider::local::is_url;
use exporter::transfer::Monitor;
use exporter::worker::daemon::Presence;
use exporter::worker::follow::Ending;
use exporter::worker::{Outcome, Route, Task};
use indicatif::{HumanBytes, HumanDuration, MultiProgress, ProgressBar, ProgressStyle};
use serde_json::{Value, json};

/// What a link of 1 Gbit/s carries in a second.
const GIGABIT_BYTES: u64 = 110_000_000;
/// What a disk copies to another in a second.
const COPY_BYTES: u64 = 200_000_000;

/// A bar of one VM, or of one of its disks; draws on standard error, and only on a terminal.
pub struct Bar {
    bars: MultiProgress,
    bar: ProgressBar,
    quiet: bool,
    cancelled: Arc<AtomicBool>,
}

impl Bar {
    pub fn new(bars: &MultiProgress, vm: &str, quiet: bool, cancelled: Arc<AtomicBool>) -> Self {
        let bar = Self::behind(bars, None, quiet, cancelled);
        bar.begin(vm, 0);
        bar
    }

    fn behind(
        bars: &MultiProgress,
        other: Option<&ProgressBar>,
        quiet: bool,
        cancelled: Arc<AtomicBool>,
    ) -> Self {
        let bar = match other {
            // One that is hidden stands behind no other.
            _ if quiet => ProgressBar::hidden(),
            Some(other) => bars.insert_after(other, ProgressBar::no_length()),
            None => bars.add(ProgressBar::no_length()),
        };
        let bar = Self {
            bars: bars.clone(),
            bar,
            quiet,
            cancelled,
        };
        bar.set_total(0);
        bar.bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }

    fn set_total(&self, bytes: u64) {
        let template = if bytes > 0 {
            "{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}"
        } else {
            "{prefix} {spinner} {elapsed} {msg}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        self.bar.set_length(bytes);
    }
}

impl Monitor for Bar {
    fn begin(&self, what: &str, bytes_total: u64) {
        self.bar.reset();
        self.set_total(bytes_total);
        self.bar.set_prefix(what.to_owned());
        self.bar.set_message("");
    }

    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn stand(&self, bytes_done: u64, bytes_total: u64) {
        if self.bar.length() != Some(bytes_total) {
            self.set_total(bytes_total);
        }
        self.bar.set_position(bytes_done);
    }

    fn message(&self, text: &str) {
        self.bar.set_message(text.to_owned());
    }

    fn warn(&self, text: &str) {
        if !self.quiet {
            self.bar.suspend(|| eprintln!("warning: {text}"));
        }
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    fn branch(&self) -> Box<dyn Monitor + '_> {
        let cancelled = Arc::clone(&self.cancelled);
        Box::new(Self::behind(
            &self.bars,
            Some(&self.bar),
            self.quiet,
            cancelled,
        ))
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        self.bars.remove(&self.bar);
    }
}

/// An error as one line with its causes, then its remedy.
pub fn error_text(error: &Error) -> String {
    let mut text = error.to_string();
    for below in error.chain() {
        text.push_str(": ");
        text.push_str(&below);
    }
    if let Some(remedy) = &error.remedy {
        text.push('\n');
        text.push_str(remedy);
    }
    text.push('\n');
    text
}

fn description(task: &Task) -> Value {
    json!({
        "vm_name": task.export.name.as_str(),
        "provider": task.export.provider(),
        "instance": task.instance.name,
    })
}

/// VMs, one per line.
pub fn list(found: &[Summary], as_json: bool) -> String {
    if as_json {
        let lines = found.iter().map(|vm| format!("{}\n", json!(vm)));
        return lines.collect();
    }
    let mut text = String::new();
    for vm in found {
        let place = vm.location.as_deref().unwrap_or(&vm.name);
        let cpus = vm.cpus.map_or("?".to_owned(), |cpus| cpus.to_string());
        let memory = vm
            .memory_bytes
            .map_or("?".to_owned(), |bytes| HumanBytes(bytes).to_string());
        let (id, power) = (&vm.id, vm.power.as_str());
        let guest = vm.guest_os.as_deref().unwrap_or_default();
        text.push_str(&format!(
            "{id:<12} {power:<9} {cpus:>3} {memory:>12}  {place}  {guest}\n"
        ));
    }
    text
}

/// What would be done.
pub fn plan(task: &Task, as_json: bool) -> String {
    let directories = &task.instance.directories;
    let output = directories.output.display();
    let what = match (&task.route, task.presence()) {
        (Route::Directory { output, .. }, _) => {
            format!(
                "copy to {}",
                output.join(task.export.name.as_str()).display()
            )
        }
        (Route::Queue { .. }, Some(Presence::Running { .. })) => {
            let (queue, service) = (directories.queue.display(), task.instance.service());
            format!("submit to {queue} for {service}, result in {output}")
        }
        (Route::Queue { converter, .. }, _) => {
            let (service, converter) = (task.instance.service(), converter.display());
            format!("{service} is not running: convert with {converter} into {output}")
        }
        (Route::Convert { converter, .. }, _) => {
            format!("convert with {} into {output}", converter.display())
        }
    };
    if as_json {
        let mut value = description(task);
        let (bytes, time, _) = expect(task);
        merge(
            &mut value,
            json!({"outcome": "dry_run", "disks": task.export.vm.disks, "plan": what,
                "expected_bytes": bytes, "expected_seconds": time.as_secs()}),
        );
        return format!("{value}\n");
    }
    let mut text = format!("{}: {what}\n", task.export.name);
    let vm = &task.export.vm;
    for disk in &vm.disks {
        text.push_str(&format!(
            "  {} {} ({}, {} bytes)\n",
            disk.id, disk.file, disk.format, disk.size_bytes
        ));
    }
    let (bytes, time, pace) = expect(task);
    let (bytes, time) = (HumanBytes(bytes), HumanDuration(time));
    if task.export.provider() == "local" {
        text.push_str(&format!("  {bytes}, about {time} at {pace}\n"));
    } else {
        let from = match vm.power {
            Power::Off => "as it is: it is off",
            _ => "from a snapshot that is removed again: it is not off",
        };
        text.push_str(&format!(
            "  {from}\n  at most {bytes}, about {time} at {pace}\n"
        ));
    }
    text
}

/// How much an export moves, how long that may take, and at which pace.
fn expect(task: &Task) -> (u64, Duration, &'static str) {
    let vm = &task.export.vm;
    let bytes = vm.disks.iter().map(|disk| disk.size_bytes).sum::<u64>();
    let (bytes_per_second, pace) = match task.export.provider() == "local" && !is_url(&vm.id) {
        true => (COPY_BYTES, "200 MB/s"),
        false => (GIGABIT_BYTES, "1 Gbit/s"),
    };
    let time = Duration::from_secs(bytes.div_ceil(bytes_per_second));
    (bytes, time, pace)
}

/// The answer about one VM, for standard output.
pub fn outcome(task: &Task, outcome: &Outcome, seconds: f64) -> Value {
    let mut value = description(task);
    let (word, error) = match &outcome.ending {
        Ending::Completed { .. } if matches!(task.route, Route::Directory { .. }) => {
            ("exported", None)
        }
        Ending::Completed { .. } => ("completed", None),
        Ending::Failed(text) => ("failed", Some(text.trim_end())),
        Ending::TimedOut => ("timed_out", None),
        Ending::Interrupted => ("interrupted", None),
    };
    let outputs = match &outcome.ending {
        Ending::Completed { outputs } => outputs.as_slice(),
        _ => &[],
    };
    merge(
        &mut value,
        json!({
            "outcome": word,
            "job_id": outcome.job,
            "direct": outcome.fell_back,
            "outputs": outputs,
            "disks": outcome.disks,
            "error": error,
            "seconds": seconds,
        }),
    );
    value
}

pub fn failure(name: &str, error: &Error) -> Value {
    json!({
        "vm_name": name,
        "outcome": "failed",
        "error": error_text(error).trim_end(),
    })
}

fn merge(value: &mut Value, more: Value) {
    if let (Some(value), Value::Object(more)) = (value.as_object_mut(), more) {
        value.extend(more);
    }
}
