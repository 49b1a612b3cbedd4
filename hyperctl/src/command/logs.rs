//! `logs`: the tails of the logs that a VM's records hold.
use queue::job::{JobId, JobState};
use serde_json::json;

use super::follow::{SCAN, Show, Watchdog};
use super::status::nothing;
use crate::args::{self, Several};
use crate::outcome::{Exit, Result, Stop};
use crate::render::text::clean;
use crate::render::{self};
use crate::view::find::{Found, search_patiently};
use crate::view::{Job, Migration, Scope};
use crate::watch::{self, Deadline, Every};

pub fn run(args: &args::Logs) -> Result<Exit> {
    let scope = Scope::of(&args.place)?;
    let mut searched = search_patiently(&scope, &Several::from(&args.which))?;
    render::notes(&searched.notes);
    let found = match searched.found.pop() {
        Some(Found::Migration(found)) => *found,
        Some(Found::Drop { vm, drop, .. }) => {
            let name = &drop.name;
            let message = format!("{vm}: {name} is not claimed yet and has no log");
            return Err(Stop::new(Exit::Failed, message)
                .with_remedy("`hyperctl status --follow` waits for the job"));
        }
        Some(Found::Nothing { vm }) => return Err(nothing(&vm)),
        None => return Err(Stop::usage("name a job")),
    };
    let only = args.which.job;
    let jobs = parts(&found, only);
    let all: Vec<(JobId, &String)> = jobs
        .iter()
        .flat_map(|job| job.record().log.iter().map(|line| (job.id(), line)))
        .collect();
    let tail = args.tail.unwrap_or(all.len());
    let shown = all
        .get(all.len().saturating_sub(tail)..)
        .unwrap_or_default();
    if args.json && !args.follow {
        let lines: Vec<&String> = shown.iter().map(|(_, line)| *line).collect();
        let ids: Vec<JobId> = jobs.iter().map(|job| job.id()).collect();
        render::print_json(&json!({
            "job_id": ids.last(), "job_ids": ids, "vm_name": found.vm_name(),
            "instance": found.instance(), "log": lines,
        }))?;
        return Ok(Exit::Done);
    }
    for (id, line) in shown {
        print(*id, line, args.json)?;
    }
    if args.follow {
        follow(&scope, found, only, args.json)?;
    }
    Ok(Exit::Done)
}

/// The records that are meant: the one that was named, else the export's and the conversion's.
fn parts(found: &Migration, only: Option<JobId>) -> Vec<&Job> {
    let parts = [found.export(), found.conversion()].into_iter().flatten();
    parts
        .filter(|job| only.is_none_or(|id| job.id() == id))
        .collect()
}

fn print(id: JobId, line: &str, json: bool) -> Result<()> {
    if json {
        return render::print_json_line(&json!({"job_id": id, "line": line}));
    }
    render::print(&format!("{}\n", clean(line)))
}

/// Prints lines as the records get them, until the end or until nobody works on it.
fn follow(scope: &Scope, mut found: Migration, only: Option<JobId>, json: bool) -> Result<()> {
    let deadline = Deadline::after(None);
    let mut scan = Every::new(SCAN);
    let mut watchdog = Watchdog::new();
    let has_ended = |found: &Migration| match only {
        Some(_) => parts(found, only).iter().all(|job| job.is_final()),
        None => found.is_final(),
    };
    while !has_ended(&found) {
        deadline.pause(watch::INTERVAL);
        let places: Vec<_> = found.place(scope).into_iter().collect();
        watchdog.check(&places, &Show::Nothing)?;
        let mut now = found.clone();
        now.read_again(scope, scan.is_due())?;
        let before = parts(&found, only);
        for job in parts(&now, only) {
            let earlier = before.iter().find(|earlier| earlier.id() == job.id());
            let known = earlier.map_or(&[][..], |earlier| &earlier.record().log);
            for line in added(known, &job.record().log) {
                print(job.id(), line, json)?;
            }
        }
        found = now;
    }
    let last = parts(&found, only).last().copied();
    if let Some(job) = last.filter(|job| !job.is(JobState::Completed)) {
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
