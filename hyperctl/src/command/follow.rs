//! Following VMs to their end: what their jobs do is read again and again and shown as it changes.
use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use queue::job::{JobId, JobState};

use crate::outcome::{Exit, Result, Stop};
use crate::render::bars::Bars;
use crate::render::{self, Style, migration};
use crate::view::find::{self, Found};
use crate::view::{Life, Migration, Place, Role, Scope};
use crate::watch::{self, Deadline, Every, Interrupt};

/// A daemon that is being restarted is waited for: this long after its last heartbeat …
const RESTART: Duration = Duration::from_secs(30);
/// … and at least this long from the first look.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the whole queue is read: for the place in it, and for jobs that are not there yet.
pub const SCAN: Duration = Duration::from_secs(2);
/// How long nothing may be seen of what was put into an instance's queue: a claim takes a moment.
const UNSEEN: Duration = Duration::from_secs(30);

/// How what happens is told.
pub enum Show {
    Bars(Bars),
    /// A line per change; the text of each job's last line.
    Lines(Style, BTreeMap<JobId, String>),
    /// A JSON line per change; the text of each job's last line.
    Json(BTreeMap<JobId, String>),
    Nothing,
}

impl Show {
    /// Bars on a terminal, lines elsewhere.
    pub fn detect(json: bool) -> Self {
        let style = Style::detect();
        match (json, style.terminal) {
            (true, _) => Self::Json(BTreeMap::new()),
            (_, true) => Self::Bars(Bars::new(style)),
            _ => Self::Lines(style, BTreeMap::new()),
        }
    }

    fn update(&mut self, found: &Migration) -> Result<()> {
        let now = SystemTime::now();
        let id = found.id();
        match self {
            Self::Bars(bars) if found.is_final() => {
                bars.end(id, &migration::ending(found, &Style::detect(), now))
            }
            Self::Bars(bars) => bars.show(found, now),
            Self::Lines(style, _) if found.is_final() => {
                render::print(&migration::ending(found, style, now))
            }
            Self::Lines(_, last) => match last.insert(id, mark(found)) {
                Some(before) if last.get(&id) == Some(&before) => Ok(()),
                _ => render::print(&format!("{}\n", migration::line(found, now))),
            },
            Self::Json(last) => {
                let value = found.to_json();
                let text = value.to_string();
                match last.insert(id, text.clone()) {
                    Some(before) if before == text => Ok(()),
                    _ => render::print_json_line(&value),
                }
            }
            Self::Nothing => Ok(()),
        }
    }

    /// Takes the bars away.
    pub fn close(&mut self) -> Result<()> {
        match self {
            Self::Bars(bars) => bars.clear(),
            _ => Ok(()),
        }
    }

    pub fn say(&self, text: &str) -> Result<()> {
        match self {
            Self::Bars(bars) => bars.above(&format!("{}\n", render::text::clean(text))),
            _ => {
                render::say(text);
                Ok(())
            }
        }
    }
}

/// What makes another line worth printing: a state, a phase, a place, five more percent.
fn mark(found: &Migration) -> String {
    let job = found.current();
    let percent = (job.percent() / 5.0).floor();
    let record = job.record();
    let (state, phase, step) = (found.state(), job.phase(), found.step().as_str());
    if job.is(JobState::Processing) {
        return format!("{state} {step} {phase} {percent} {}", record.attempts);
    }
    let reason = found.waiting().map(|drop| &drop.reason);
    let (position, priority) = (job.position, job.priority());
    let not_before = &record.not_before;
    format!("{state} {step} {reason:?} {position:?} {not_before:?} {priority}")
}

/// What there is no job of yet.
#[derive(Debug)]
pub enum Awaited {
    /// A job of this name that is newer than the one, in one of the places.
    Vm {
        name: String,
        after: Option<JobId>,
        places: Vec<Place>,
    },
    /// The job of this request to the export service.
    Request { drop: String, place: Place },
}

impl Awaited {
    fn look(&self, is_due: bool) -> Result<Option<Migration>> {
        match self {
            Self::Vm {
                name,
                after,
                places,
            } if is_due => {
                for place in places {
                    let jobs = match place.jobs() {
                        Err(_) if place.role == Role::Export => continue,
                        read => read?.jobs,
                    };
                    if let Some(job) = find::newest(jobs, name, *after) {
                        return Ok(Some(Migration::of(job, place.role)));
                    }
                }
                Ok(None)
            }
            Self::Vm { .. } => Ok(None),
            Self::Request { drop, place } => {
                if place.drop_named(drop).is_some() {
                    return Ok(None);
                }
                let job = place.job_of_drop(drop)?;
                Ok(job.map(|job| Migration::of(job, Role::Export)))
            }
        }
    }

    fn places(&self) -> Vec<&Place> {
        match self {
            Self::Vm { places, .. } => places.iter().collect(),
            Self::Request { place, .. } => vec![place],
        }
    }
}

/// One VM on its way.
#[derive(Debug)]
struct Followed {
    /// Set while there is no job yet.
    awaited: Option<Awaited>,
    migration: Option<Migration>,
    scan: Every,
    /// Since when nothing is seen of what was exported.
    unseen: Option<Instant>,
}

impl Followed {
    fn new(awaited: Option<Awaited>, migration: Option<Migration>) -> Self {
        Self {
            awaited,
            migration,
            scan: Every::new(SCAN),
            unseen: None,
        }
    }

    fn of(found: Found, scope: &Scope) -> Self {
        let (name, after, places) = match found {
            Found::Migration(migration) => return Self::new(None, Some(*migration)),
            Found::Drop {
                place, vm, after, ..
            } => (vm, after, vec![*place]),
            Found::Nothing { vm } => (vm, None, scope.places.clone()),
        };
        let awaited = Awaited::Vm {
            name,
            after,
            places,
        };
        Self::new(Some(awaited), None)
    }

    fn has_ended(&self) -> bool {
        self.migration.as_ref().is_some_and(Migration::is_final)
    }

    fn look(&mut self, scope: &Scope) -> Result<()> {
        let is_due = self.scan.is_due();
        if let Some(migration) = &mut self.migration {
            migration.read_again(scope, is_due)?;
            return self.check_unseen(scope);
        }
        if let Some(awaited) = &self.awaited {
            self.migration = awaited.look(is_due)?;
        }
        self.check_request()
    }

    /// A request that was taken away must not be waited for without end.
    fn check_request(&mut self) -> Result<()> {
        let (None, Some(Awaited::Request { drop, place })) = (&self.migration, &self.awaited)
        else {
            return Ok(());
        };
        if place.drop_named(drop).is_some() || !is_lost(&mut self.unseen, Some(place)) {
            return Ok(());
        }
        let (queue, name) = (place.directories.queue.display(), &place.instance);
        let message = format!("{drop} is gone from {queue}, and {name} has no job of it");
        Err(Stop::new(Exit::Failed, message).with_remedy("was it removed? ask again"))
    }

    /// Nor what was exported and then lost.
    fn check_unseen(&mut self, scope: &Scope) -> Result<()> {
        let between = self.migration.as_ref().filter(|found| found.is_between());
        let Some(found) = between.filter(|found| found.waiting().is_none()) else {
            self.unseen = None;
            return Ok(());
        };
        if !is_lost(&mut self.unseen, found.place(scope)) {
            return Ok(());
        }
        let delivered = found.current().record().delivered.as_ref();
        let path = delivered.map(|to| to.queue.join(&to.drop));
        let instance = found.instance();
        let message = format!(
            "{} was exported to {}, where it is not any more, and {instance} has no job of it",
            found.vm_name(),
            path.unwrap_or_default().display(),
        );
        let remedy =
            format!("was it removed? `hyperctl list --instance {instance}` shows its jobs");
        Err(Stop::new(Exit::Failed, message).with_remedy(remedy))
    }

    fn places<'a>(&'a self, scope: &'a Scope) -> Vec<&'a Place> {
        match (&self.migration, &self.awaited) {
            (Some(migration), _) => migration.place(scope).into_iter().collect(),
            (None, Some(awaited)) => awaited.places(),
            (None, None) => Vec::new(),
        }
    }
}

/// Whether nothing has been seen for too long where a daemon is there to take it.
fn is_lost(unseen: &mut Option<Instant>, place: Option<&Place>) -> bool {
    let since = *unseen.get_or_insert_with(Instant::now);
    let is_served = place.is_none_or(|place| place.life() == Life::Responding);
    since.elapsed() >= UNSEEN && is_served
}

/// What ends the following before the VMs have ended.
#[derive(Debug, Default)]
pub struct Limits {
    pub timeout: Option<Duration>,
    pub interrupt: Option<Interrupt>,
}

impl Limits {
    pub fn after(timeout: Option<Duration>) -> Self {
        Self {
            timeout,
            interrupt: None,
        }
    }
}

/// Follows until every VM has ended; `Exit::TimedOut` or `Exit::Interrupted` when a limit is met
/// before.
pub fn follow(
    found: Vec<Found>,
    scope: &Scope,
    show: &mut Show,
    limits: &Limits,
) -> Result<(Exit, Vec<Migration>)> {
    let all = found.into_iter().map(|found| Followed::of(found, scope));
    run(all.collect(), scope, show, limits)
}

/// The same of what there is no job of yet.
pub fn follow_awaited(
    awaited: Awaited,
    scope: &Scope,
    show: &mut Show,
    limits: &Limits,
) -> Result<(Exit, Vec<Migration>)> {
    run(
        vec![Followed::new(Some(awaited), None)],
        scope,
        show,
        limits,
    )
}

fn run(
    mut all: Vec<Followed>,
    scope: &Scope,
    show: &mut Show,
    limits: &Limits,
) -> Result<(Exit, Vec<Migration>)> {
    let deadline = Deadline::after(limits.timeout);
    let mut watchdog = Watchdog::new();
    let mut told = vec![false; all.len()];
    let early = loop {
        for (followed, told) in all.iter_mut().zip(&mut told) {
            if *told {
                continue;
            }
            followed.look(scope)?;
            if let Some(migration) = &followed.migration {
                show.update(migration)?;
            }
            *told = followed.has_ended();
        }
        let mut left = all
            .iter()
            .filter(|followed| !followed.has_ended())
            .peekable();
        if left.peek().is_none() {
            break None;
        }
        if limits
            .interrupt
            .as_ref()
            .is_some_and(Interrupt::was_pressed)
        {
            break Some(Exit::Interrupted);
        }
        if deadline.has_passed() {
            break Some(Exit::TimedOut);
        }
        let places: Vec<&Place> = left.flat_map(|followed| followed.places(scope)).collect();
        watchdog.check(&places, show)?;
        deadline.pause(watch::INTERVAL);
    };
    let migrations = all.into_iter().filter_map(|followed| followed.migration);
    let migrations: Vec<Migration> = migrations.collect();
    let are_done = migrations.iter().all(|found| found.is(JobState::Completed));
    let usual = if are_done { Exit::Done } else { Exit::Failed };
    Ok((early.unwrap_or(usual), migrations))
}

/// Notices that nobody is there any more to finish the jobs.
pub struct Watchdog {
    began: Instant,
    due: Every,
    warned: bool,
}

impl Watchdog {
    pub fn new() -> Self {
        Self {
            began: Instant::now(),
            due: Every::new(Duration::from_secs(1)),
            warned: false,
        }
    }

    /// Fails when no daemon that could go on with the jobs has been there for too long.
    pub fn check(&mut self, places: &[&Place], show: &Show) -> Result<()> {
        if !self.due.is_due() {
            return Ok(());
        }
        // An instance that is not known here may well go on.
        let Some(place) = places.first() else {
            return Ok(());
        };
        let lives: Vec<Life> = places.iter().map(|place| place.life()).collect();
        if lives.contains(&Life::Responding) {
            self.warned = false;
            return Ok(());
        }
        let recent = lives.iter().any(|life| match life {
            Life::Silent(age) | Life::Gone(age) | Life::Stopped(age) => *age < RESTART,
            _ => false,
        });
        if !recent && self.began.elapsed() >= PATIENCE {
            return Err(super::control::no_daemon(place));
        }
        if !self.warned {
            show.say("the daemon is not responding; waiting for it")?;
            self.warned = true;
        }
        Ok(())
    }
}
