//! Finds the jobs that a user means by a VM's name or a job's id.
use std::time::Duration;

use queue::arrival::candidate;
use queue::job::{JobId, VmName};

use super::{Job, Place, Shelf, Unclaimed};
use crate::args::Several;
use crate::outcome::{Result, Stop};
use crate::watch::{self, Deadline};

/// What a name or an id stands for.
#[derive(Debug, Clone)]
pub enum Found {
    Job {
        place: Place,
        job: Box<Job>,
    },
    /// Dropped and not claimed yet: the job comes after `after`, the newest of this VM so far.
    Drop {
        place: Place,
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

/// Looks for each job that was asked for in all the places.
pub fn search(places: &[Place], asked: &Several) -> Result<Search> {
    let mut search = Search::default();
    for id in &asked.job {
        search.found.push(by_id(places, *id)?);
    }
    if asked.vm.is_empty() {
        return Ok(search);
    }
    let (shelves, notes) = super::read(places.to_vec())?;
    search.notes = notes;
    for vm in &asked.vm {
        let (mut found, elsewhere) = by_name(&shelves, vm);
        if let Found::Job { place, job } = &mut found
            && let Some(whole) = place.job(job.id(), false)?
        {
            let position = job.position;
            **job = whole;
            job.position = position;
        }
        search.found.push(found);
        search.notes.extend(elsewhere);
    }
    Ok(search)
}

/// Like `search`, but what has no name yet is looked for again for a moment: between a drop's claim
/// and its record there is nothing to see.
pub fn search_patiently(places: &[Place], asked: &Several) -> Result<Search> {
    const MOMENT: Duration = Duration::from_secs(1);
    let complete = |search: &Search| {
        let mut found = search.found.iter();
        !found.any(|found| matches!(found, Found::Nothing { .. }))
    };
    let found = watch::until(Deadline::after(Some(MOMENT)), || {
        Ok(Some(search(places, asked)?).filter(complete))
    })?;
    found.map_or_else(|| search(places, asked), Ok)
}

/// The newest job of a VM with an id above `after`.
pub fn newest(jobs: Vec<Job>, vm: &str, after: Option<JobId>) -> Option<Job> {
    jobs.into_iter()
        .filter(|job| job.is_of(vm) && after.is_none_or(|after| job.id() > after))
        .max_by_key(Job::id)
}

fn by_id(places: &[Place], id: JobId) -> Result<Found> {
    for place in places {
        if let Some(job) = place.job(id, true)? {
            return Ok(Found::Job {
                place: place.clone(),
                job: Box::new(job),
            });
        }
    }
    Err(Stop::usage(format!("there is no {id}")).with_remedy("`hyperctl list` shows the jobs"))
}

/// Also a note when the same VM is in several instances: the newest is taken.
fn by_name(shelves: &[Shelf], vm: &str) -> (Found, Option<String>) {
    let mut candidates = Vec::new();
    for shelf in shelves {
        let newest = shelf.jobs.iter().rev().find(|job| job.is_of(vm));
        let dropped = shelf.drops.iter().find(|drop| drop_is_of(&drop.name, vm));
        // A drop is newer than any record: its job has not begun.
        let key = (dropped.is_some(), newest.map(Job::id));
        if dropped.is_some() || newest.is_some() {
            candidates.push((key, &shelf.place, newest, dropped));
        }
    }
    candidates.sort_by_key(|(key, ..)| *key);
    let others: Vec<&str> = candidates
        .iter()
        .rev()
        .skip(1)
        .map(|(_, place, ..)| place.instance.as_str())
        .collect();
    let note = |place: &Place| {
        (!others.is_empty()).then(|| {
            format!(
                "{vm} is also in {}; showing the newest, of {} (choose with --instance)",
                others.join(", "),
                place.instance
            )
        })
    };
    match candidates.last() {
        Some((_, place, newest, Some(drop))) => {
            let found = Found::Drop {
                place: (*place).clone(),
                drop: (*drop).clone(),
                vm: vm.to_owned(),
                after: newest.map(Job::id),
            };
            (found, note(place))
        }
        Some((_, place, Some(job), None)) => {
            let found = Found::Job {
                place: (*place).clone(),
                job: Box::new((*job).clone()),
            };
            (found, note(place))
        }
        _ => (Found::Nothing { vm: vm.to_owned() }, None),
    }
}

/// Whether a drop will become a job of this VM, as far as its name tells.
fn drop_is_of(name: &str, vm: &str) -> bool {
    let stem = match candidate::classify(name) {
        Some(_) => candidate::stem(name),
        None => name,
    };
    match (VmName::new(stem), VmName::new(vm)) {
        (Ok(stem), Ok(vm)) => stem == vm,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drop_is_known_by_its_stem() {
        for (name, vm, same) in [
            ("web-01.vmdk", "web-01", true),
            ("web-01.OVA", "web-01", true),
            ("web-01.raw.zst", "web-01", true),
            ("web-01", "web-01", true),
            ("web-01.json", "web-01", true),
            ("web-01.old.vmdk", "web-01", false),
            ("web-01-flat.vmdk", "web-01", false),
            ("srv.example.com.vmdk", "srv.example.com", true),
            (".vmdk", "", false),
        ] {
            assert_eq!(drop_is_of(name, vm), same, "{name} {vm}");
        }
    }
}
