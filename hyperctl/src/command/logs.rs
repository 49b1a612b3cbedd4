//! `logs`: the tail of a job's log that its record holds.
use serde_json::json;

use queue::job::JobState;

use super::status::nothing;
use crate::args::{self, Several};
use crate::outcome::{Exit, Result, Stop};
use crate::render::text::clean;
use crate::render::{self};
use crate::view::find::{Found, search_patiently};
use crate::view::{self, Job, Place};
use crate::watch::{self, Deadline};

pub fn run(args: &args::Logs) -> Result<Exit> {
    let places = view::every(&args.place)?;
    let mut searched = search_patiently(&places, &Several::from(&args.which))?;
    render::notes(&searched.notes);
    let (place, job) = match searched.found.pop() {
        Some(Found::Job { place, job }) => (place, *job),
        Some(Found::Drop { vm, drop, .. }) => {
            let name = &drop.name;
            let message = format!("{vm}: {name} is not claimed yet and has no log");
            return Err(Stop::new(Exit::Failed, message)
                .with_remedy("`hyperctl status --follow` waits for the job"));
        }
        Some(Found::Nothing { vm }) => return Err(nothing(&vm)),
        None => return Err(Stop::usage("name a job")),
    };
    let log = &job.record().log;
    let tail = args.tail.unwrap_or(log.len());
    let shown = log
        .get(log.len().saturating_sub(tail)..)
        .unwrap_or_default();
    if args.json && !args.follow {
        render::print_json(&json!({
            "job_id": job.id(), "vm_name": job.record().vm_name,
            "instance": job.instance, "log": shown,
        }))?;
        return Ok(Exit::Done);
    }
    print(&job, shown, args.json)?;
    if args.follow {
        follow(&place, job, args.json)?;
    }
    Ok(Exit::Done)
}

fn print(job: &Job, lines: &[String], json: bool) -> Result<()> {
    for line in lines {
        if json {
            render::print_json_line(&json!({"job_id": job.id(), "line": line}))?;
        } else {
            render::print(&format!("{}\n", clean(line)))?;
        }
    }
    Ok(())
}

/// Prints lines as the record gets them, until the job ends or nobody works on it.
fn follow(place: &Place, mut job: Job, json: bool) -> Result<()> {
    let deadline = Deadline::after(None);
    let mut watchdog = super::follow::Watchdog::new();
    while !job.is_final() {
        deadline.pause(watch::INTERVAL);
        watchdog.check(&[place], &super::follow::Show::Nothing)?;
        let Some(read) = place.job(job.id(), false)? else {
            break;
        };
        print(&read, added(&job.record().log, &read.record().log), json)?;
        job = read;
    }
    if !job.is(JobState::Completed) && job.is_final() {
        render::say(&format!("the job is {}", job.state()));
    }
    Ok(())
}

/// The lines of `now` that `before` does not have: both are windows on one growing log.
fn added<'a>(before: &[String], now: &'a [String]) -> &'a [String] {
    let longest = before.len().min(now.len());
    let overlap = (0..=longest)
        .rev()
        .find(|length| before.ends_with(now.get(..*length).unwrap_or_default()))
        .unwrap_or_default();
    now.get(overlap..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_lines_of_a_moving_window_are_added() {
        for (before, now, new) in [
            ("", "a b", "a b"),
            ("a b", "a b", ""),
            ("a b", "a b c", "c"),
            ("a b c", "b c d", "d"),
            ("a b c", "d e f", "d e f"),
            ("a a", "a a a", "a"),
            ("a b", "", ""),
        ] {
            let lines = |text: &str| -> Vec<String> {
                text.split_whitespace().map(str::to_owned).collect()
            };
            assert_eq!(
                added(&lines(before), &lines(now)),
                lines(new),
                "{before} | {now}"
            );
        }
    }
}
