//! Requests about jobs: `cancel`, `retry`, `priority`, `import`.
use std::collections::BTreeMap;
use std::time::SystemTime;

use queue::job::{DefineState, JobId, JobState, Priority, Request};
use serde_json::{Value, json};

use super::super::status::nothing;
use super::Asked;
use crate::args;
use crate::outcome::{Exit, Result, Stop};
use crate::render::text::clean;
use crate::render::{self, Style, job};
use crate::view::{self, Job, Migration, Place, Role, Scope};

pub fn cancel(args: &args::Cancel) -> Result<Exit> {
    let which = (args.which.job, args.which.vm.as_deref());
    let (place, job) = target(&args.place, which, |job| !job.is_final())?;
    if job.is_final() {
        return Err(refuse(&job, "there is nothing to cancel"));
    }
    let id = job.id();
    let asked = Asked::submit(&place, Request::Cancel { job_id: id })?;
    let job = asked.until(Some(args.patience.timeout), || {
        match place.job(id, false)?.filter(Job::is_final) {
            Some(job) if job.is(JobState::Cancelled) => Ok(Some(job)),
            Some(job) => Err(refuse(&job, "it ended before it could be cancelled")),
            None => Ok(None),
        }
    })?;
    tell(&asked, &job, args.patience.json)
}

pub fn prioritise(args: &args::Prioritise) -> Result<Exit> {
    let which = (args.which.job, args.which.vm.as_deref());
    let (place, job) = target(&args.place, which, |job| !job.is_final())?;
    if job.is_final() {
        return Err(refuse(&job, "its priority does not matter any more"));
    }
    let priority = Priority::from(args.level);
    let request = Request::SetPriority {
        job_id: job.id(),
        priority,
    };
    let id = job.id();
    let asked = Asked::submit(&place, request)?;
    let job = asked.until(Some(args.patience.timeout), || {
        let job = place.job(id, true)?;
        Ok(job.filter(|job| job.priority() == priority.as_str()))
    })?;
    tell(&asked, &job, args.patience.json)
}

pub fn import(args: &args::Import) -> Result<Exit> {
    let which = (args.which.job, args.which.vm.as_deref());
    let is_published = |job: &Job| job.is(JobState::Completed);
    let (place, job) = target(&args.place, which, is_published)?;
    if !is_published(&job) {
        return Err(refuse(
            &job,
            "only a published VM can be defined in libvirt",
        ));
    }
    let id = job.id();
    let asked = Asked::submit(&place, Request::Import { job_id: id })?;
    let job = asked.until(Some(args.patience.timeout), || {
        let job = place.job(id, false)?;
        Ok(job.filter(|job| job.record().libvirt.is_some()))
    })?;
    if args.patience.json {
        asked.print_json("job", json!(job.to_json()))?;
    }
    let told = job.record().libvirt.as_ref();
    let vm = clean(&job.record().vm_name);
    match told {
        Some(told) if told.state == DefineState::Defined => {
            if !args.patience.json {
                render::print(&format!("{vm}: defined at {}\n", clean(&told.uri)))?;
            }
            Ok(Exit::Done)
        }
        told => {
            let message = told.and_then(|told| told.message.clone());
            let message = message.unwrap_or_else(|| "the daemon does not say why".to_owned());
            let mut stop = Stop::new(Exit::Failed, format!("{vm} is not defined: {message}"));
            stop.remedy = told.and_then(|told| told.remedy.clone());
            Err(stop)
        }
    }
}

pub fn retry(args: &args::Retry) -> Result<Exit> {
    if args.all_failed {
        return retry_all(args);
    }
    let which = (args.job, args.vm.as_deref());
    let has_failed = |job: &Job| job.is_final() && !job.is(JobState::Completed);
    let (place, before) = target(&args.place, which, has_failed)?;
    if !has_failed(&before) {
        return Err(refuse(&before, "only a failed job is tried again"));
    }
    let id = before.id();
    let asked = Asked::submit(&place, Request::Retry { job_id: id })?;
    let job = asked.until(Some(args.patience.timeout), || {
        let job = place.job(id, true)?;
        Ok(job.filter(|job| was_tried_again(&before, job)))
    })?;
    tell(&asked, &job, args.patience.json)
}

fn retry_all(args: &args::Retry) -> Result<Exit> {
    let place = view::chosen(&args.place)?;
    let failed: Vec<Job> = failed_jobs(&place)?;
    if failed.is_empty() && !args.patience.json {
        render::print("no job has failed\n")?;
        return Ok(Exit::Done);
    }
    let asked = Asked::submit(&place, Request::RetryAllFailed)?;
    let mut left: Vec<&Job> = failed.iter().collect();
    let mut done: Vec<Job> = Vec::new();
    let outcome = asked.until(Some(args.patience.timeout), || {
        let mut waiting = Vec::new();
        for before in &left {
            match place.job(before.id(), false)? {
                Some(job) if !was_tried_again(before, &job) => waiting.push(*before),
                job => done.extend(job),
            }
        }
        left = waiting;
        Ok(left.is_empty().then_some(()))
    });
    if args.patience.json {
        asked.print_json("jobs", done.iter().map(Job::to_json).collect::<Value>())?;
    } else {
        render::print(&format!(
            "{} of {} jobs tried again\n",
            done.len(),
            failed.len()
        ))?;
    }
    outcome.map(|()| Exit::Done)
}

fn failed_jobs(place: &Place) -> Result<Vec<Job>> {
    let read = place.jobs()?;
    render::notes(&read.skipped);
    let failed = read.jobs.into_iter().filter(|job| job.is(JobState::Failed));
    Ok(failed.collect())
}

/// Whether a job has left the end it had come to, even if it has come to another one since.
fn was_tried_again(before: &Job, now: &Job) -> bool {
    let (old, new) = (before.record(), now.record());
    !now.is_final()
        || new.state != old.state
        || new.attempts > old.attempts
        || new.finished_at != old.finished_at
}

/// The job that is meant: by id, or of the newest of a VM's ways, one that fits first.
fn target(
    typed: &args::Place,
    (id, vm): (Option<JobId>, Option<&str>),
    fits: impl Fn(&Job) -> bool,
) -> Result<(Place, Job)> {
    let scope = Scope::of(typed)?;
    let mut matches = match (id, vm) {
        (Some(id), _) => by_id(&scope, id)?,
        (None, Some(vm)) => by_name(&scope, vm, &fits)?,
        (None, None) => return Err(Stop::usage("name a job with --vm or --job")),
    };
    // A finished job of the same name elsewhere is not in the way.
    if matches.iter().any(|(_, job)| fits(job)) {
        matches.retain(|(_, job)| fits(job));
    }
    let instances: Vec<String> = matches
        .iter()
        .map(|(place, _)| place.instance.clone())
        .collect();
    match (matches.pop(), matches.is_empty()) {
        (Some(found), true) => Ok(found),
        (Some(_), false) => {
            let name = vm.unwrap_or("the job");
            let message = format!("{name} is in several instances: {}", instances.join(", "));
            Err(Stop::usage(message).with_remedy("choose one with --instance"))
        }
        (None, _) => Err(match (id, vm) {
            (Some(id), _) => Stop::usage(format!("there is no {id}"))
                .with_remedy("`hyperctl list` shows the jobs"),
            (None, vm) => nothing(vm.unwrap_or_default()),
        }),
    }
}

fn by_id(scope: &Scope, id: JobId) -> Result<Vec<(Place, Job)>> {
    let mut matches = Vec::new();
    for place in &scope.places {
        let read = match place.job(id, false) {
            Err(_) if place.role == Role::Export => None,
            read => read?,
        };
        matches.extend(read.map(|job| (place.clone(), job)));
    }
    Ok(matches)
}

/// One job for each instance in which the VM is: of the newest way on which one fits.
fn by_name(scope: &Scope, vm: &str, fits: &impl Fn(&Job) -> bool) -> Result<Vec<(Place, Job)>> {
    let joined = scope.read()?;
    render::notes(&joined.notes);
    // An export that is completed has handed its VM on: only the conversion can be meant. While
    // both are at work the export is, without which the other has nothing to do.
    let part = |found: &Migration| -> Option<Job> {
        let export = found.export().filter(|job| !job.is(JobState::Completed));
        let mut parts = export.into_iter().chain(found.conversion());
        parts.find(|job| fits(job)).cloned()
    };
    let mut newest: BTreeMap<String, (bool, JobId, Job)> = BTreeMap::new();
    for found in joined.migrations.iter().filter(|found| found.is_of(vm)) {
        let fitting = part(found);
        let key = (fitting.is_some(), found.id());
        let job = fitting.unwrap_or_else(|| found.current().clone());
        let instance = found.instance().to_owned();
        match newest.get(&instance) {
            Some((fits, id, _)) if (*fits, *id) > key => {}
            _ => {
                newest.insert(instance, (key.0, key.1, job));
            }
        }
    }
    let jobs = newest.into_values().map(|(.., job)| job);
    let placed = jobs.filter_map(|job| Some((scope.place(&job.instance)?.clone(), job)));
    Ok(placed.collect())
}

fn refuse(job: &Job, why: &str) -> Stop {
    let (vm, state) = (&job.record().vm_name, job.state());
    if let Some(delivered) = &job.record().delivered {
        let (id, instance) = (job.id(), &delivered.instance);
        let message = format!("{vm} ({id}) is exported and handed over to {instance}: {why}");
        let remedy = format!("`hyperctl status --job {id}` shows its conversion");
        return Stop::new(Exit::Failed, message).with_remedy(remedy);
    }
    Stop::new(
        Exit::Failed,
        format!("{vm} ({}) is {state}: {why}", job.id()),
    )
}

fn tell(asked: &Asked, job: &Job, json: bool) -> Result<Exit> {
    if json {
        asked.print_json("job", json!(job.to_json()))?;
    } else {
        let now = SystemTime::now();
        if job.is(JobState::Failed) {
            render::print(&job::ending(job, &Style::detect(), now))?;
            return Ok(Exit::Done);
        }
        let line = job::line(job, now);
        let priority = match &asked.request {
            Request::SetPriority { .. } => format!(", priority {}", job.priority()),
            _ => String::new(),
        };
        render::print(&format!("{line}{}\n", clean(&priority)))?;
    }
    Ok(Exit::Done)
}
