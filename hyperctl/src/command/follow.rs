//! Following jobs to their end: what they do is read again and again and shown as it changes.
use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use queue::job::{JobId, JobState};

use crate::outcome::{Exit, Result, Stop};
use crate::render::bars::Bars;
use crate::render::{self, Style, job};
use crate::view::find::{self, Found};
use crate::view::{Job, Life, Place};
use crate::watch::{self, Deadline, Every};

/// A daemon that is being restarted is waited for: this long after its last heartbeat …
const RESTART: Duration = Duration::from_secs(30);
/// … and at least this long from the first look.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the whole queue is read: for the place in it, and for jobs that are not there yet.
const SCAN: Duration = Duration::from_secs(2);

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

    fn update(&mut self, job: &Job) -> Result<()> {
        let now = SystemTime::now();
        match self {
            Self::Bars(bars) if job.is_final() => {
                bars.end(job.id(), &job::ending(job, &Style::detect(), now))
            }
            Self::Bars(bars) => bars.show(job, now),
            Self::Lines(style, _) if job.is_final() => render::print(&job::ending(job, style, now)),
            Self::Lines(_, last) => match last.insert(job.id(), step(job)) {
                Some(before) if last.get(&job.id()) == Some(&before) => Ok(()),
                _ => render::print(&format!("{}\n", job::line(job, now))),
            },
            Self::Json(last) => {
                let value = job.to_json();
                let text = value.to_string();
                match last.insert(job.id(), text.clone()) {
                    Some(before) if before == text => Ok(()),
                    _ => render::print_json_line(&value),
                }
            }
            Self::Nothing => Ok(()),
        }
    }

    fn say(&self, text: &str) -> Result<()> {
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
fn step(job: &Job) -> String {
    let percent = (job.percent() / 5.0).floor();
    let record = job.record();
    let (state, phase) = (job.state(), job.phase());
    match job.is(JobState::Processing) {
        true => format!("{state} {phase} {percent} {}", record.attempts),
        false => format!(
            "{state} {:?} {:?} {}",
            job.position,
            record.not_before,
            job.priority()
        ),
    }
}

/// One job on its way.
#[derive(Debug)]
struct Followed {
    /// Where it is, or may appear.
    places: Vec<Place>,
    /// Set while there is no job yet: the VM's name, and the newest job that is not meant.
    awaited: Option<(String, Option<JobId>)>,
    job: Option<Job>,
    scan: Every,
}

impl Followed {
    fn new(found: Found, places: &[Place]) -> Self {
        let (places, awaited, job) = match found {
            Found::Job { place, job } => (vec![place], None, Some(*job)),
            Found::Drop {
                place, vm, after, ..
            } => (vec![place], Some((vm, after)), None),
            Found::Nothing { vm } => (places.to_vec(), Some((vm, None)), None),
        };
        Self {
            places,
            awaited,
            job,
            scan: Every::new(SCAN),
        }
    }

    fn has_ended(&self) -> bool {
        self.job.as_ref().is_some_and(Job::is_final)
    }

    fn look(&mut self) -> Result<()> {
        if let (Some(place), Some(job)) = (self.places.first(), &self.job) {
            let numbered = job.is(JobState::Queued) && self.scan.is_due();
            let mut read = place.job(job.id(), numbered)?.ok_or_else(|| {
                Stop::new(Exit::Failed, format!("the record of {} is gone", job.id()))
            })?;
            if read.is(JobState::Queued) && !numbered {
                read.position = job.position;
            }
            self.job = Some(read);
        } else if let Some((vm, after)) = &self.awaited
            && self.scan.is_due()
        {
            for place in &self.places {
                if let Some(job) = find::newest(place.jobs()?.jobs, vm, *after) {
                    self.places = vec![place.clone()];
                    self.job = Some(job);
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Follows until every job has ended; `Exit::TimedOut` when the limit passes before.
pub fn follow(
    found: Vec<Found>,
    places: &[Place],
    show: &mut Show,
    timeout: Option<Duration>,
) -> Result<(Exit, Vec<Job>)> {
    let deadline = Deadline::after(timeout);
    let mut all: Vec<Followed> = found
        .into_iter()
        .map(|found| Followed::new(found, places))
        .collect();
    let mut watchdog = Watchdog::new();
    let mut told = vec![false; all.len()];
    loop {
        for (followed, told) in all.iter_mut().zip(&mut told) {
            if *told {
                continue;
            }
            followed.look()?;
            if let Some(job) = &followed.job {
                show.update(job)?;
            }
            *told = followed.has_ended();
        }
        let left: Vec<&Place> = all
            .iter()
            .filter(|followed| !followed.has_ended())
            .flat_map(|followed| &followed.places)
            .collect();
        if left.is_empty() {
            break;
        }
        if deadline.has_passed() {
            let jobs = all
                .into_iter()
                .filter_map(|followed| followed.job)
                .collect();
            return Ok((Exit::TimedOut, jobs));
        }
        watchdog.check(&left, show)?;
        deadline.pause(watch::INTERVAL);
    }
    let jobs: Vec<Job> = all
        .into_iter()
        .filter_map(|followed| followed.job)
        .collect();
    let done = jobs.iter().all(|job| job.is(JobState::Completed));
    Ok((if done { Exit::Done } else { Exit::Failed }, jobs))
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
            let place = places
                .first()
                .ok_or_else(|| Stop::usage("no instance is known"))?;
            return Err(super::control::no_daemon(place));
        }
        if !self.warned {
            show.say("the daemon is not responding; waiting for it")?;
            self.warned = true;
        }
        Ok(())
    }
}
