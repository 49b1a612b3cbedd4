//! Finds the VMs that a user means by name or by a job's id.
use std::time::Duration;

use queue::job::{JobId, VmName};

use super::migration::{Joined, Next};
use super::{Job, Migration, Place, Role, Scope, Unclaimed};
use crate::args::Several;
use crate::outcome::{Result, Stop};
use crate::watch::{self, Deadline};

/// What a name or an id stands for.
#[derive(Debug, Clone)]
pub enum Found {
    Migration(Box<Migration>),
    /// Dropped and not claimed yet: the job comes after `after`, the newest of this VM so far.
    Drop {
        place: Box<Place>,
        drop: Unclaimed,
        vm: String,
        after: Option<JobId>,
    },
    /// Nothing has this VM's name yet.
    Nothing {
        vm: String,
    },
}

/// What was looked for, and what should be said about the search.
#[derive(Debug, Default)]
pub struct Search {
    pub found: Vec<Found>,
    pub notes: Vec<String>,
}

/// Looks for each VM that was asked for.
pub fn search(scope: &Scope, asked: &Several) -> Result<Search> {
    let mut search = Search::default();
    for id in &asked.job {
        let migration = by_id(scope, *id)?;
        search.found.push(Found::Migration(Box::new(migration)));
    }
    if asked.vm.is_empty() {
        return Ok(search);
    }
    let joined = scope.read()?;
    for vm in &asked.vm {
        let (mut found, elsewhere) = by_name(&joined, vm);
        if let Found::Migration(migration) = &mut found {
            // The records without their logs were read, and numbered: the rest is read now.
            migration.read_again(scope, false)?;
        }
        search.found.push(found);
        search.notes.extend(elsewhere);
    }
    search.notes.extend(joined.notes);
    Ok(search)
}

/// Like `search`, but what has no name yet is looked for again for a moment: between a drop's claim
/// and its record there is nothing to see.
pub fn search_patiently(scope: &Scope, asked: &Several) -> Result<Search> {
    const MOMENT: Duration = Duration::from_secs(1);
    let complete = |search: &Search| {
        let mut found = search.found.iter();
        !found.any(|found| matches!(found, Found::Nothing { .. }))
    };
    let found = watch::until(Deadline::after(Some(MOMENT)), || {
        Ok(Some(search(scope, asked)?).filter(complete))
    })?;
    found.map_or_else(|| search(scope, asked), Ok)
}

/// The newest job of a VM with an id above `after`.
pub fn newest(jobs: Vec<Job>, vm: &str, after: Option<JobId>) -> Option<Job> {
    jobs.into_iter()
        .filter(|job| job.is_of(vm) && after.is_none_or(|after| job.id() > after))
        .max_by_key(Job::id)
}

/// The way of which a job of this id, of either daemon, is a part.
fn by_id(scope: &Scope, id: JobId) -> Result<Migration> {
    for place in &scope.places {
        let read = match place.job(id, true) {
            // Who may read an instance's results need not be one who may read what is exported.
            Err(_) if place.role == Role::Export => continue,
            read => read?,
        };
        let Some(job) = read else {
            continue;
        };
        let export = match place.role {
            Role::Convert => export_of(scope, &job),
            Role::Export => None,
        };
        let mut migration = Migration::of(job, place.role);
        if let (Some(export), Migration::Plain(job)) = (export, &migration) {
            let next = Next::Claimed(Box::new(job.clone()));
            return Ok(Migration::Exported { export, next });
        }
        migration.read_again(scope, true)?;
        return Ok(migration);
    }
    Err(Stop::usage(format!("there is no {id}")).with_remedy("`hyperctl list` shows the jobs"))
}

/// The export that a conversion's drop came of; none where that cannot be read.
fn export_of(scope: &Scope, conversion: &Job) -> Option<Job> {
    let place = scope.export_service()?;
    let drop = &conversion.record().drop;
    let is_its = |job: &Job| {
        let to = job.record().delivered.as_ref();
        to.is_some_and(|to| to.instance == conversion.instance && to.drop == *drop)
    };
    // The usual name of what is delivered is the export's id: one record to read instead of all.
    let usual = drop.parse().ok().and_then(|id| place.job(id, false).ok()?);
    usual
        .filter(is_its)
        .or_else(|| place.newest(is_its).ok().flatten())
}

/// Also a note when the same VM is in several instances: the newest is taken.
fn by_name(joined: &Joined, vm: &str) -> (Found, Option<String>) {
    let migrations = joined.migrations.iter().filter(|found| found.is_of(vm));
    let newest = migrations.clone().max_by_key(|found| found.id());
    // A drop is newer than any record: its job has not begun.
    let mut drops = joined.drops.iter();
    let dropped = drops.rfind(|(_, drop)| is_same(&drop.vm, vm));
    let (found, shown) = match (dropped, newest) {
        (Some((place, drop)), _) => {
            let in_place = migrations.clone().filter_map(|found| match place.role {
                Role::Convert => found.conversion(),
                Role::Export => found.export(),
            });
            let earlier = in_place.filter(|job| job.instance == place.instance);
            let found = Found::Drop {
                place: Box::new(place.clone()),
                drop: drop.clone(),
                vm: vm.to_owned(),
                after: earlier.map(Job::id).max(),
            };
            (found, place.instance.as_str())
        }
        (None, Some(newest)) => {
            let found = Found::Migration(Box::new(newest.clone()));
            (found, newest.instance())
        }
        (None, None) => return (Found::Nothing { vm: vm.to_owned() }, None),
    };
    let mut others: Vec<&str> = migrations.map(Migration::instance).collect();
    others.sort_unstable();
    others.dedup();
    others.retain(|instance| *instance != shown);
    let note = (!others.is_empty()).then(|| {
        format!(
            "{vm} is also in {}; showing the newest, of {shown} (choose with --instance)",
            others.join(", "),
        )
    });
    (found, note)
}

/// Whether a drop's name and a VM's mean the same.
fn is_same(name: &str, vm: &str) -> bool {
    match (VmName::new(name), VmName::new(vm)) {
        (Ok(name), Ok(vm)) => name == vm,
        _ => false,
    }
}
