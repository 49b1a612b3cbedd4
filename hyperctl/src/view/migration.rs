//! `Migration`: one VM's way from request to result, by the records of both daemons.
//!
//! An export's record says into which instance's queue it put the VM, and under which name; the
//! conversion's record bears that name as its drop.
use std::collections::HashMap;

use queue::job::{JobId, JobState, Phase};
use serde_json::{Value, json};

use super::{Job, Place, Role, Scope, Shelf, Unclaimed};
use crate::outcome::{Exit, Result, Stop};

#[derive(Debug, Clone)]
pub enum Migration {
    /// The conversion of what somebody dropped into an instance's queue.
    Plain(Job),
    Exported {
        export: Job,
        next: Next,
    },
}

/// What became of what an export put into an instance's queue.
#[derive(Debug, Clone)]
pub enum Next {
    /// It is not there yet, or is being claimed.
    Unseen,
    Waits(Unclaimed),
    Claimed(Box<Job>),
}

/// Where a VM is on its way, in the words in which it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Asked for; other exports come first.
    Requested,
    Exporting,
    /// In the instance's queue.
    Queued,
    Converting,
    Repairing,
    Repaired,
    Done,
}

impl Step {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Exporting => "exporting",
            Self::Queued => "queued",
            Self::Converting => "converting",
            Self::Repairing => "repairing",
            Self::Repaired => "repaired",
            Self::Done => "done",
        }
    }
}

impl Migration {
    /// What a record in a place speaks of, as far as it alone tells.
    pub fn of(job: Job, role: Role) -> Self {
        match role {
            Role::Convert => Self::Plain(job),
            Role::Export => Self::Exported {
                export: job,
                next: Next::Unseen,
            },
        }
    }

    pub fn export(&self) -> Option<&Job> {
        match self {
            Self::Plain(_) => None,
            Self::Exported { export, .. } => Some(export),
        }
    }

    pub fn conversion(&self) -> Option<&Job> {
        match self {
            Self::Plain(job) => Some(job),
            Self::Exported {
                next: Next::Claimed(job),
                ..
            } => Some(job),
            Self::Exported { .. } => None,
        }
    }

    /// Delivered and not claimed yet.
    pub fn waiting(&self) -> Option<&Unclaimed> {
        match self {
            Self::Exported {
                next: Next::Waits(drop),
                ..
            } => Some(drop),
            _ => None,
        }
    }

    /// The record that says how far the VM is, or why it goes no further.
    pub fn current(&self) -> &Job {
        match self {
            Self::Plain(job) => job,
            Self::Exported { export, next } => match next {
                Next::Claimed(job) if says_more(job, export) => job,
                _ => export,
            },
        }
    }

    /// Its identity: the export's id, where there is one.
    pub fn id(&self) -> JobId {
        self.export().unwrap_or(self.current()).id()
    }

    pub fn vm_name(&self) -> &str {
        let job = self.conversion().unwrap_or(self.current());
        &job.record().vm_name
    }

    pub fn is_of(&self, vm: &str) -> bool {
        [self.export(), self.conversion()]
            .into_iter()
            .flatten()
            .any(|job| job.is_of(vm))
    }

    /// The instance that converts it; the export service where that is not known.
    pub fn instance(&self) -> &str {
        let export = self.export().map(Job::record);
        let delivered = export.and_then(|record| record.delivered.as_ref());
        let target = export.and_then(|record| record.target.as_ref());
        match (self.conversion(), delivered, target) {
            (Some(job), ..) => &job.instance,
            (None, Some(delivered), _) => &delivered.instance,
            (None, None, Some(target)) => target,
            (None, None, None) => &self.current().instance,
        }
    }

    /// Exported, and no conversion is known.
    pub fn is_between(&self) -> bool {
        let job = self.current();
        let is_export = self.export().is_some_and(|export| export.id() == job.id());
        is_export && job.is(JobState::Completed) && job.record().delivered.is_some()
    }

    pub fn is_final(&self) -> bool {
        self.current().is_final() && !self.is_between()
    }

    pub fn is(&self, state: JobState) -> bool {
        match self.is_between() {
            true => state == JobState::Queued,
            false => self.current().is(state),
        }
    }

    /// The state's name, as a job's.
    pub fn state(&self) -> String {
        match self.is_between() {
            true => JobState::Queued.as_str().to_owned(),
            false => self.current().state(),
        }
    }

    /// How far it is; of one that failed or was cancelled, how far it came.
    pub fn step(&self) -> Step {
        let Some(job) = self
            .conversion()
            .filter(|job| job.id() == self.current().id())
        else {
            return match self.is_between() {
                true => Step::Queued,
                false if self.current().is(JobState::Queued) => Step::Requested,
                false => Step::Exporting,
            };
        };
        let record = job.record();
        let was_repaired = record.timings.contains_key(Phase::Repair.as_str());
        match record.phase {
            _ if job.is(JobState::Completed) => Step::Done,
            _ if job.is(JobState::Queued) => Step::Queued,
            Phase::Repair => Step::Repairing,
            Phase::Prove | Phase::Publish if was_repaired => Step::Repaired,
            _ => Step::Converting,
        }
    }

    /// A plain conversion is its record; else what both records come to, and both.
    pub fn to_json(&self) -> Value {
        let job = self.current();
        let current = job.to_json();
        let field = |name: &str| current.get(name).cloned().unwrap_or_default();
        let Some(export) = self.export() else {
            return current;
        };
        let finished = self.is_final().then(|| field("finished_at"));
        json!({
            "vm_name": self.vm_name(),
            "instance": self.instance(),
            "job_id": job.id(),
            "state": self.state(),
            "step": self.step().as_str(),
            "priority": job.priority(),
            "queue_position": job.position,
            "progress": field("progress"),
            "error": field("error"),
            "outputs": field("outputs"),
            "created_at": export.record().created_at,
            "finished_at": finished,
            "export": export.to_json(),
            "conversion": self.conversion().map(Job::to_json),
        })
    }

    /// The place whose daemon is to go on with it; none where it is not known here.
    pub fn place<'a>(&self, scope: &'a Scope) -> Option<&'a Place> {
        match self.is_between() {
            true => scope.place(self.instance()),
            false => scope.place(&self.current().instance),
        }
    }

    /// Reads its records again. What takes reading many of them is done only if `thorough`, or
    /// where something has just happened.
    pub fn read_again(&mut self, scope: &Scope, thorough: bool) -> Result<()> {
        match self {
            Self::Plain(job) => read_again(job, scope, thorough),
            Self::Exported { export, next } => {
                read_again(export, scope, thorough)?;
                if let Next::Claimed(job) = next {
                    read_again(job, scope, thorough)?;
                    // An export that was tried again is converted by another job.
                    if !thorough || !job.is_final() || export.is(JobState::Completed) {
                        return Ok(());
                    }
                }
                next.look(export, scope, thorough)
            }
        }
    }
}

impl Next {
    fn look(&mut self, export: &Job, scope: &Scope, thorough: bool) -> Result<()> {
        let Some(delivered) = &export.record().delivered else {
            return Ok(());
        };
        let Some(place) = scope.place(&delivered.instance) else {
            return Ok(());
        };
        if let Some(drop) = place.drop_named(&delivered.drop) {
            *self = Self::Waits(drop);
        } else if thorough || matches!(self, Self::Waits(_)) {
            let claimed = place.job_of_drop(&delivered.drop)?;
            *self = claimed.map_or(Self::Unseen, |job| Self::Claimed(Box::new(job)));
        }
        Ok(())
    }
}

/// Whether a conversion tells more than its export: both may be at work, and an export that failed
/// ends its conversion too.
fn says_more(conversion: &Job, export: &Job) -> bool {
    if conversion.is_final() {
        let has_result = conversion.is(JobState::Completed);
        return export.is(JobState::Completed) || has_result && export.is_final();
    }
    export.is_final() || !conversion.is(JobState::Queued)
}

fn read_again(job: &mut Job, scope: &Scope, numbered: bool) -> Result<()> {
    let place = scope.place(&job.instance);
    let read = match place {
        Some(place) => place.job(job.id(), numbered)?,
        None => None,
    };
    let gone = || Stop::new(Exit::Failed, format!("the record of {} is gone", job.id()));
    let mut read = read.ok_or_else(gone)?;
    if read.is(JobState::Queued) && !numbered {
        read.position = job.position;
    }
    *job = read;
    Ok(())
}

/// Every VM's way, and what is not claimed yet with its instance.
#[derive(Debug, Default)]
pub struct Joined {
    pub migrations: Vec<Migration>,
    pub drops: Vec<(Place, Unclaimed)>,
    pub notes: Vec<String>,
}

/// Joins exports with what became of them; the rest are conversions by themselves.
pub fn join(shelves: Vec<Shelf>) -> Joined {
    let mut joined = Joined::default();
    let mut delivered: HashMap<(String, String), usize> = HashMap::new();
    let (exports, instances): (Vec<Shelf>, Vec<Shelf>) = shelves
        .into_iter()
        .partition(|shelf| shelf.place.role == Role::Export);
    for shelf in exports {
        for job in shelf.jobs {
            if let Some(to) = &job.record().delivered {
                let key = (to.instance.clone(), to.drop.clone());
                delivered.insert(key, joined.migrations.len());
            }
            joined.migrations.push(Migration::of(job, Role::Export));
        }
        let drops = shelf.drops.into_iter();
        joined
            .drops
            .extend(drops.map(|drop| (shelf.place.clone(), drop)));
    }
    for shelf in instances {
        let instance = &shelf.place.instance;
        let find = |drop: &str| -> Option<usize> {
            let key = (instance.clone(), drop.to_owned());
            delivered.get(&key).copied()
        };
        for drop in shelf.drops {
            let exported = find(&drop.name).and_then(|at| joined.migrations.get_mut(at));
            match exported {
                Some(Migration::Exported { next, .. }) => *next = Next::Waits(drop),
                _ => joined.drops.push((shelf.place.clone(), drop)),
            }
        }
        // Oldest first: of several jobs of one drop the newest counts.
        for job in shelf.jobs {
            let exported = find(&job.record().drop).and_then(|at| joined.migrations.get_mut(at));
            let Some(Migration::Exported { next, .. }) = exported else {
                joined.migrations.push(Migration::Plain(job));
                continue;
            };
            if let Next::Claimed(earlier) = std::mem::replace(next, Next::Claimed(Box::new(job))) {
                joined.migrations.push(Migration::Plain(*earlier));
            }
        }
    }
    joined
}
