//! The requests: drop one file, then watch until the daemon's files show its effect.
//!
//! The daemon alone moves jobs. What it refuses stands in `<request>.refused`.
pub mod job;

use std::path::PathBuf;
use std::time::Duration;

use queue::job::record::DaemonState;
use queue::job::{JobState, Request};
use queue::spool::request;
use serde_json::{Value, json};

use crate::args;
use crate::outcome::{Exit, Result, Stop};
use crate::render::daemon::{life_reason, life_word};
use crate::render::{self, Style, text};
use crate::view::{self, Heartbeat, Life, Place, Role, refusal};
use crate::watch::{self, Deadline, Every};

pub fn pause(args: &args::Control) -> Result<Exit> {
    steer(args, Request::Pause, DaemonState::Paused)
}

pub fn resume(args: &args::Control) -> Result<Exit> {
    steer(args, Request::Resume, DaemonState::Running)
}

/// Asks the daemon for a state and waits until it has it.
fn steer(args: &args::Control, request: Request, wanted: DaemonState) -> Result<Exit> {
    let place = view::chosen(&args.place)?;
    let asked = Asked::submit(&place, request)?;
    let state = asked.until(Some(args.patience.timeout), || {
        let heartbeat = place.heartbeat()?;
        Ok(heartbeat.filter(|heartbeat| heartbeat.is(wanted)))
    })?;
    tell_state(&asked, &state, args.patience.json)
}

pub fn drain(args: &args::Drain) -> Result<Exit> {
    let place = view::chosen(&args.place)?;
    let asked = Asked::submit(&place, Request::Drain)?;
    let style = Style::detect();
    let mut last = String::new();
    let state = asked.until(args.timeout, || {
        let Some(heartbeat) = place.heartbeat()? else {
            return Ok(None);
        };
        if !heartbeat.is(DaemonState::Draining) {
            return Ok(None);
        }
        let waiting = heartbeat.status().queue_depth;
        let left = format!("{} running, {waiting} waiting", heartbeat.active().len());
        if style.terminal && !args.json && left != last {
            render::say(&format!("draining: {left}"));
            last = left;
        }
        Ok(is_idle(&place, &heartbeat)?.then_some(heartbeat))
    })?;
    tell_state(&asked, &state, args.json)
}

/// Nothing that was claimed is left. What is not claimed yet waits for `resume`.
fn is_idle(place: &Place, heartbeat: &Heartbeat) -> Result<bool> {
    if !heartbeat.active().is_empty() {
        return Ok(false);
    }
    if heartbeat.status().queue_depth == 0 {
        return Ok(true);
    }
    let jobs = place.jobs()?.jobs;
    Ok(!jobs
        .iter()
        .any(|job| job.is(JobState::Queued) || job.is(JobState::Processing)))
}

fn tell_state(asked: &Asked, heartbeat: &Heartbeat, json: bool) -> Result<Exit> {
    let state = heartbeat.state();
    if json {
        asked.print_json("status", heartbeat.to_json())?;
    } else {
        let instance = text::clean(&asked.place.instance);
        let idle = if heartbeat.is(DaemonState::Draining) {
            ", idle"
        } else {
            ""
        };
        render::print(&format!("{instance}: {}{idle}\n", text::clean(&state)))?;
    }
    Ok(Exit::Done)
}

/// A request on its way.
#[derive(Debug)]
struct Asked<'a> {
    place: &'a Place,
    request: Request,
    path: PathBuf,
}

impl<'a> Asked<'a> {
    /// Drops the request, unless nobody is there to take it.
    fn submit(place: &'a Place, request: Request) -> Result<Self> {
        if place.life() != Life::Responding {
            return Err(no_daemon(place));
        }
        let path = request::submit(&place.directories, &request)?;
        Ok(Self {
            place,
            request,
            path,
        })
    }

    /// Looks until the effect shows, the daemon refuses or goes away, or the time is up.
    fn until<T>(
        &self,
        timeout: Option<Duration>,
        mut effect: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let mut alive = Every::new(Duration::from_secs(1));
        let found = watch::until(Deadline::after(timeout), || {
            if let Some(cause) = refusal::read(&self.path)? {
                let mut stop = Stop::new(Exit::Failed, cause.message);
                stop.remedy = cause.remedy;
                return Err(stop);
            }
            // A request that still lies there has had no effect; what shows was so before.
            if !self.path.exists()
                && let Some(found) = effect()?
            {
                return Ok(Some(found));
            }
            if alive.is_due() && self.place.life() != Life::Responding {
                return Err(no_daemon(self.place));
            }
            Ok(None)
        })?;
        found.ok_or_else(|| {
            let remedy = if self.path.exists() {
                format!("the daemon has not taken {} yet", self.path.display())
            } else {
                "the daemon has taken the request; `hyperctl list` shows its effect".to_owned()
            };
            Stop::new(
                Exit::TimedOut,
                "timed out before the request had its effect",
            )
            .with_remedy(remedy)
        })
    }

    fn print_json(&self, name: &str, effect: Value) -> Result<()> {
        let mut value = json!(self.request);
        if let Some(fields) = value.as_object_mut() {
            fields.insert("instance".to_owned(), json!(self.place.instance));
            fields.insert(name.to_owned(), effect);
        }
        render::print_json(&value)
    }
}

/// Nobody is there to do it: how it is known, and how the daemon is started.
pub fn no_daemon(place: &Place) -> Stop {
    let life = place.life();
    let who = match place.role {
        Role::Convert => format!("the daemon of {}", place.instance),
        Role::Export => format!("the export service {}", place.instance),
    };
    let message = format!("{who} is {} ({})", life_word(life), life_reason(life));
    let (queue, output) = (&place.directories.queue, &place.directories.output);
    let (queue, output) = (queue.display(), output.display());
    let start = match (&place.service, place.role) {
        (Some(service), _) => format!("systemctl start {service}"),
        (None, Role::Convert) => {
            format!("hyper2kvm daemon --watch-dir {queue} --output-dir {output}")
        }
        (None, Role::Export) => {
            format!("hypervisord daemon --requests-dir {queue} --output-dir {output}")
        }
    };
    Stop::new(Exit::NoDaemon, message).with_remedy(format!("start it: {start}"))
}
