//! A job as text: a cell of the list, the full block, one line while it runs, and how it ended.
use std::time::{Duration, SystemTime};

use queue::job::record::parse_timestamp;
use queue::job::{DefineState, Definition, DiskRecord, JobId, JobState, Progress, Record};

use super::fields::Fields;
use super::quantity;
use super::style::{Colour, Style};
use super::text::clean;
use crate::view::{Job, Unclaimed};

const BAR_COLUMNS: usize = 24;

/// The colour of a state's name.
pub fn colour(state: &str) -> Colour {
    match state {
        "completed" => Colour::Green,
        "failed" => Colour::Red,
        "processing" => Colour::Cyan,
        "cancelled" => Colour::Yellow,
        _ => Colour::Plain,
    }
}

/// What matters most about a job in its state, in a few words.
pub fn detail(job: &Job, now: SystemTime) -> String {
    let record = job.record();
    if job.is(JobState::Processing) {
        let text = format!("{} {:.0}%", job.phase(), job.percent().floor());
        return match record.progress.eta_seconds {
            Some(seconds) => format!("{text}, {}", left(seconds)),
            None => text,
        };
    }
    if job.is(JobState::Completed) {
        return quantity::bytes(
            record
                .disks
                .iter()
                .fold(0, |sum: u64, disk| sum.saturating_add(disk.output_bytes)),
        );
    }
    if job.is(JobState::Queued) {
        return waiting(job, now);
    }
    job.cause().map_or_else(String::new, |cause| cause.message)
}

/// The age that counts: since the end of a finished job, since the arrival of any other.
pub fn age(job: &Job, now: SystemTime) -> String {
    let record = job.record();
    let finished = record.finished_at.as_deref().filter(|_| job.is_final());
    quantity::since(finished.unwrap_or(&record.created_at), now)
        .map_or_else(|| "-".to_owned(), quantity::age)
}

/// Place in the queue and urgency, or what has to come before: a missing file, the next try of a
/// job that failed for the moment.
pub(super) fn waiting(job: &Job, now: SystemTime) -> String {
    if let Some(name) = job.record().waits_for.first() {
        return format!("waits for {name}");
    }
    let next = job
        .retry_at()
        .and_then(|time| time.duration_since(now).ok());
    let mut text = match (next, job.position) {
        (Some(left), _) => format!("retry in {}", quantity::age(left)),
        (None, Some(position)) => format!("#{position}"),
        (None, None) => String::new(),
    };
    let priority = job.priority();
    if priority != "normal" {
        text.push_str(&format!(" {priority}"));
    }
    text.trim_start().to_owned()
}

/// The time that remains.
pub fn left(seconds: u64) -> String {
    format!("{} left", quantity::age(Duration::from_secs(seconds)))
}

/// `disk 2 of 3`; nothing for a VM of one disk.
pub fn which_disk(progress: &Progress) -> Option<String> {
    let is_one_of_many = progress.disks > 1 && progress.disk > 0;
    is_one_of_many.then(|| format!("disk {} of {}", progress.disk, progress.disks))
}

/// Disk, bytes, rate and time left, as far as they are known.
pub fn progress(record: &Record) -> String {
    let progress = &record.progress;
    let mut parts = Vec::new();
    parts.extend(which_disk(progress));
    if progress.bytes_total > 0 {
        let (done, total) = (progress.bytes_done, progress.bytes_total);
        parts.push(format!(
            "{} of {}",
            quantity::bytes(done),
            quantity::bytes(total)
        ));
    }
    if progress.rate_bytes_per_second > 0 {
        parts.push(format!(
            "{}/s",
            quantity::bytes(progress.rate_bytes_per_second)
        ));
    }
    parts.extend(progress.eta_seconds.map(left));
    parts.join(", ")
}

/// Everything about one job.
pub fn block(job: &Job, style: &Style, now: SystemTime) -> String {
    let state = job.state();
    let mut fields = Fields::default();
    let headline = style.paint(colour(&state), &clean(&headline(job, now)));
    fields.add_painted("State", &headline);
    add_facts(&mut fields, job, style, now);
    title(&job.record().vm_name, &state, job.id(), style) + &fields.into_text()
}

/// The first line of a block.
pub(super) fn title(vm: &str, state: &str, id: JobId, style: &Style) -> String {
    format!(
        "{} {} ({id})\n",
        style.paint(colour(state), style.glyph("●", "*")),
        style.paint(Colour::Bold, &clean(vm)),
    )
}

/// What the record says behind the state.
pub(super) fn add_facts(fields: &mut Fields, job: &Job, style: &Style, now: SystemTime) {
    let record = job.record();
    if job.is(JobState::Processing) {
        let bar = style.bar(job.percent(), BAR_COLUMNS);
        fields.add_painted("Progress", &format!("{bar} {:.0}%", job.percent().floor()));
        fields.add_all("", Some(progress(record)).filter(|text| !text.is_empty()));
    }
    let resumed_bytes = record.progress.resumed_bytes;
    if resumed_bytes > 0 {
        let resumed = quantity::bytes(resumed_bytes);
        fields.add(
            "Resumed",
            format!("{resumed} were done by an earlier attempt"),
        );
    }
    if let Some(cause) = job.cause() {
        fields.add_painted("Error", &style.paint(Colour::Red, &clean(&cause.message)));
        fields.add_all("Remedy", cause.remedy);
        fields.add("Kind", cause.kind);
    }
    fields.add("Instance", &job.instance);
    if !record.drop.is_empty() {
        fields.add("Source", &record.drop);
    }
    fields.add_all("Disks", record.disks.iter().map(disk));
    let outputs = record.outputs.iter().map(|path| path.display().to_string());
    fields.add_all("Output", outputs);
    fields.add_all("Libvirt", record.libvirt.as_ref().map(definition));
    fields.add_all(
        "",
        record.libvirt.as_ref().and_then(|told| told.remedy.clone()),
    );
    fields.add("Priority", job.priority());
    fields.add("Created", moment(&record.created_at, now));
    for (label, time) in [
        ("Started", &record.started_at),
        ("Finished", &record.finished_at),
    ] {
        fields.add_all(label, time.as_deref().map(|time| moment(time, now)));
    }
    let timings = record.timings.iter();
    let timings: Vec<String> = timings
        .map(|(phase, seconds)| format!("{phase} {}", quantity::seconds(*seconds)))
        .collect();
    fields.add_all(
        "Timings",
        Some(timings.join(", ")).filter(|text| !text.is_empty()),
    );
    if record.attempts > 1 {
        fields.add("Attempts", record.attempts.to_string());
    }
    if record.pid != 0 && job.is(JobState::Processing) {
        fields.add("Worker", format!("PID {} on {}", record.pid, record.host));
    }
    let found = record.findings.iter();
    let found = found.map(|it| format!("{}: {}", it.code.as_str(), it.text));
    fields.add_all("Guest", found);
    fields.add_all("Notes", record.notes.iter().cloned());
}

/// The state with what belongs to it.
fn headline(job: &Job, now: SystemTime) -> String {
    let state = job.state();
    let more = if job.is(JobState::Processing) {
        job.phase()
    } else if job.is(JobState::Queued) {
        waiting(job, now)
    } else if job.is_final() {
        took(job.record()).map_or_else(String::new, |time| format!("in {time}"))
    } else {
        String::new()
    };
    let joint = if job.is_final() { " " } else { ", " };
    if more.is_empty() {
        state
    } else {
        format!("{state}{joint}{more}")
    }
}

/// How long the job was worked on.
pub(super) fn took(record: &Record) -> Option<String> {
    let finished = record.finished_at.as_deref()?;
    let started = record.started_at.as_deref().unwrap_or(&record.created_at);
    quantity::between(started, finished).map(quantity::duration)
}

fn moment(time: &str, now: SystemTime) -> String {
    let text = quantity::moment(time);
    match parse_timestamp(time).and_then(|time| now.duration_since(time).ok()) {
        Some(age) => format!("{text} ({} ago)", quantity::age(age)),
        None => text,
    }
}

fn disk(disk: &DiskRecord) -> String {
    let mut text = disk.name.clone();
    if !disk.source_format.is_empty() {
        text.push_str(&format!(", {}", disk.source_format));
    }
    if disk.virtual_size_bytes > 0 {
        text.push_str(&format!(", {}", quantity::bytes(disk.virtual_size_bytes)));
    }
    if disk.output_bytes > 0 {
        let (source, output) = (disk.source_bytes, disk.output_bytes);
        let sizes = format!(
            " ({} in, {} out)",
            quantity::bytes(source),
            quantity::bytes(output)
        );
        text.push_str(&sizes);
    }
    text
}

/// What libvirt was told of the result, and what it said.
fn definition(told: &Definition) -> String {
    let state = match told.state {
        DefineState::Pending => "to be defined",
        DefineState::Defined => "defined",
        DefineState::NameTaken => "not defined, the name is taken",
        DefineState::Failed => "not defined",
    };
    let why = told.message.as_ref().map(|message| format!(": {message}"));
    format!("{state} at {}{}", told.uri, why.unwrap_or_default())
}

/// One line while the job is not done: `web-01: processing, convert 47% (1.2 GiB of 2.5 GiB)`.
pub fn line(job: &Job, now: SystemTime) -> String {
    line_of(&job.record().vm_name, &headline(job, now), job)
}

/// The same under another headline.
pub(super) fn line_of(vm: &str, headline: &str, job: &Job) -> String {
    let mut text = format!("{vm}: {headline}");
    if job.is(JobState::Processing) {
        text.push_str(&format!(" {:.0}%", job.percent().floor()));
        let progress = progress(job.record());
        if !progress.is_empty() {
            text.push_str(&format!(" ({progress})"));
        }
    } else if let Some(cause) = job.cause().filter(|_| !job.is_final()) {
        text.push_str(&format!(" after: {}", cause.message));
    }
    clean(&text)
}

/// How a job ended: the result's path, or the cause and the remedy.
pub fn ending(job: &Job, style: &Style, now: SystemTime) -> String {
    ending_of(&job.record().vm_name, &headline(job, now), job, style)
}

/// The same under another headline.
pub(super) fn ending_of(vm: &str, headline: &str, job: &Job, style: &Style) -> String {
    let record = job.record();
    let mark = if job.is(JobState::Completed) {
        style.glyph("✔", "+")
    } else {
        style.glyph("✘", "x")
    };
    let mut text = format!(
        "{} {}: {}",
        style.paint(colour(&job.state()), mark),
        style.paint(Colour::Bold, &clean(vm)),
        clean(headline),
    );
    match job.cause() {
        Some(cause) if !job.is(JobState::Completed) => {
            text.push_str(&format!(": {}\n", clean(&cause.message)));
            if let Some(remedy) = cause.remedy {
                text.push_str(&format!("  {}\n", clean(&remedy)));
            }
        }
        _ => text.push('\n'),
    }
    if let Some(told) = &record.libvirt
        && job.is(JobState::Completed)
    {
        text.push_str(&format!("  {}\n", clean(&definition(told))));
    }
    for path in &record.outputs {
        text.push_str(&format!("  {}\n", clean(&path.display().to_string())));
    }
    text
}

/// What is known of a job that has not begun.
pub fn block_of_drop(vm: &str, drop: &Unclaimed, instance: &str, style: &Style) -> String {
    let mut fields = Fields::default();
    fields.add("State", "new, not claimed yet");
    fields.add("Reason", &drop.reason);
    fields.add("Instance", instance);
    fields.add("Source", &drop.name);
    let title = style.paint(Colour::Bold, &clean(vm));
    format!("{} {title}\n{}", style.glyph("●", "*"), fields.into_text())
}
