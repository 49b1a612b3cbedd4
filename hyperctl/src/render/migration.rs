//! A VM's way as text. A plain conversion is shown as its job; what was exported, in steps.
use std::time::SystemTime;

use queue::job::{JobState, Phase};

use super::fields::Fields;
use super::style::{Colour, Style};
use super::text::clean;
use super::{job, quantity};
use crate::view::migration::Step;
use crate::view::{Job, Migration};

/// What matters most in its state, in a few words.
pub fn detail(found: &Migration, now: SystemTime) -> String {
    let current = found.current();
    let detail = job::detail(current, now);
    let Some(export) = found.export() else {
        return detail;
    };
    match found.step() {
        Step::Requested => format!("export {detail}"),
        Step::Queued => format!("exported, {}", waiting(found, now)),
        _ if current.is(JobState::Processing) => {
            let behind = detail.split_once(' ').map(|(_, behind)| behind);
            format!("{} {}", activity(found), behind.unwrap_or_default())
        }
        _ if current.id() == export.id() && found.is_final() => format!("export: {detail}"),
        _ => detail,
    }
}

/// The age that counts: since the end, else since the request.
pub fn age(found: &Migration, now: SystemTime) -> String {
    let export = found.export().filter(|_| !found.is_final());
    let Some(export) = export else {
        return job::age(found.current(), now);
    };
    let asked = quantity::since(&export.record().created_at, now);
    asked.map_or_else(|| "-".to_owned(), quantity::age)
}

/// What is done at the moment: a job's own phase, or the step of what was exported.
pub fn activity(found: &Migration) -> String {
    match found.export() {
        None => found.current().phase(),
        Some(_) => found.step().as_str().to_owned(),
    }
}

/// What it waits for in the instance's queue.
fn waiting(found: &Migration, now: SystemTime) -> String {
    if !found.is_between() {
        return job::waiting(found.current(), now);
    }
    match found.waiting() {
        Some(drop) => format!("{} ({})", drop.reason, found.instance()),
        None => format!("in the queue of {}", found.instance()),
    }
}

/// The step with what belongs to it.
fn headline(found: &Migration, now: SystemTime) -> String {
    let (job, step) = (found.current(), found.step());
    let with = |text: &str, more: String| match more.is_empty() {
        true => text.to_owned(),
        false => format!("{text}, {more}"),
    };
    if job.is(JobState::Completed) && !found.is_between() {
        return with(step.as_str(), times(found).join(", "));
    }
    if found.is_final() {
        let part = if step <= Step::Exporting {
            "export"
        } else {
            "conversion"
        };
        let time = job::took(job.record());
        let time = time.map_or_else(String::new, |time| format!(" after {time}"));
        return format!("{part} {}{time}", job.state());
    }
    match step {
        Step::Requested => with("requested", job::waiting(job, now)),
        Step::Queued => with("exported, queued", waiting(found, now)),
        _ => step.as_str().to_owned(),
    }
}

/// `exported in 3m 2s`, `converted in 1m 4s`.
fn times(found: &Migration) -> Vec<String> {
    let took = |job: Option<&Job>, word: &str| {
        let time = job::took(job.filter(|job| job.is(JobState::Completed))?.record())?;
        Some(format!("{word} in {time}"))
    };
    let times = [
        took(found.export(), "exported"),
        took(found.conversion(), "converted"),
    ];
    times.into_iter().flatten().collect()
}

/// Every step there is, with a mark for how far the VM is.
fn steps(found: &Migration, style: &Style) -> String {
    let now_at = found.step();
    let names = [
        (Step::Exporting, "exported"),
        (Step::Queued, "queued"),
        (Step::Converting, "converted"),
        (Step::Repairing, "repaired"),
        (Step::Done, "done"),
    ];
    let was_repaired = found.conversion().is_some_and(|job| {
        let timings = &job.record().timings;
        timings.contains_key(Phase::Repair.as_str())
    });
    let mut texts = Vec::new();
    for (step, name) in names {
        // Whether a guest is to be repaired is known when it is, or when it was not.
        if step == Step::Repairing && now_at > Step::Repaired && !was_repaired {
            continue;
        }
        let is_here = step == now_at && step != Step::Done;
        let (colour, mark, name) = if is_here && found.is_final() {
            (Colour::Red, style.glyph("✘", "x"), name)
        } else if is_here {
            (Colour::Cyan, style.glyph("●", ">"), now_at.as_str())
        } else if step <= now_at {
            (Colour::Green, style.glyph("✔", "+"), name)
        } else {
            (Colour::Dim, style.glyph("○", "-"), name)
        };
        texts.push(style.paint(colour, &format!("{mark} {name}")));
    }
    texts.join("  ")
}

/// Everything about one VM.
pub fn block(found: &Migration, style: &Style, now: SystemTime) -> String {
    let job = found.current();
    let Some(export) = found.export() else {
        return job::block(job, style, now);
    };
    let mut fields = Fields::default();
    let state = found.state();
    let headline = style.paint(job::colour(&state), &clean(&headline(found, now)));
    fields.add_painted("State", &headline);
    fields.add_painted("Steps", &steps(found, style));
    job::add_facts(&mut fields, job, style, now);
    let part = |job: &Job| {
        let time = job::took(job.record()).map(|time| format!(" in {time}"));
        let bytes = job.record().progress.bytes_done;
        let bytes = (bytes > 0).then(|| format!(", {}", quantity::bytes(bytes)));
        let (time, bytes) = (time.unwrap_or_default(), bytes.unwrap_or_default());
        format!("{}: {}{time}{bytes}", job.id(), job.state())
    };
    fields.add("Export", part(export));
    let record = export.record();
    let drop = record.delivered.as_ref().map(|to| to.queue.join(&to.drop));
    let instance = || Some(format!("instance {}", record.target.as_ref()?));
    let to = drop
        .map(|drop| drop.display().to_string())
        .or_else(instance);
    fields.add_all("To", to);
    fields.add_all("Conversion", found.conversion().map(part));
    job::title(found.vm_name(), &state, job.id(), style) + &fields.into_text()
}

/// One line while it is not done: `web-01: exporting 47% (1.2 GiB of 2.5 GiB)`.
pub fn line(found: &Migration, now: SystemTime) -> String {
    match found.export() {
        None => job::line(found.current(), now),
        Some(_) => job::line_of(found.vm_name(), &headline(found, now), found.current()),
    }
}

/// How it ended: the result's path, or the cause and the remedy.
pub fn ending(found: &Migration, style: &Style, now: SystemTime) -> String {
    match found.export() {
        None => job::ending(found.current(), style, now),
        Some(_) => {
            let headline = headline(found, now);
            job::ending_of(found.vm_name(), &headline, found.current(), style)
        }
    }
}
