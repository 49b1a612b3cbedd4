//! Runs a scene once for every step at which it may be struck, and for every disk that a crash may
//! leave; each time a new process must bring everything to a good end.
use std::fmt::Write;

use nix::errno::Errno;
use queue::job::{JobState, Record};

use crate::invariants::{Picture, Verdict};
use crate::model::{Disk, Fault, Process};
use crate::scene::{Scene, tell};

/// What strikes. Being killed after a step is being killed before the next one.
const FAULTS: [Fault; 4] = [
    Fault::KillBefore,
    Fault::Fail(Errno::EIO),
    Fault::Fail(Errno::ENOSPC),
    Fault::FailAfter(Errno::EIO),
];
/// Every so many recoveries one is struck as well, at each of its steps.
const SECOND_STRIKE_EVERY: u64 = 601;

/// How much was tried.
#[derive(Debug, Default)]
pub struct Tally {
    pub steps: u64,
    pub strikes: u64,
    pub crashes: u64,
    pub second_strikes: u64,
}

/// Strikes the scene everywhere; panics at the first disk that breaks a promise, with its history.
pub fn enumerate(name: &str, scene: &Scene) -> Tally {
    let start = scene.prepare();
    let mut tally = Tally {
        steps: count_steps(name, scene, &start),
        ..Tally::default()
    };
    for fault in FAULTS {
        for step in 1..=tally.steps + 1 {
            let what = format!("{name}: {fault:?} at step {step} of {}", tally.steps);
            strike(&what, scene, &start.fork(), (step, fault), &mut tally);
        }
    }
    println!("{name}: {tally:?}");
    tally
}

fn count_steps(name: &str, scene: &Scene, start: &Disk) -> u64 {
    let disk = start.fork();
    let process = scene.start(&disk);
    let outcome = (scene.act)(scene, &process).map_err(|error| tell(&error));
    demand(&format!("{name}: undisturbed"), &disk, outcome);
    let steps = process.steps();
    drop(process);
    finish(&format!("{name}: undisturbed"), scene, &disk);
    steps
}

fn strike(what: &str, scene: &Scene, disk: &Disk, at: (u64, Fault), tally: &mut Tally) {
    tally.strikes += 1;
    let process = scene.start(disk);
    process.fault_at(at.0, at.1);
    let outcome = (scene.act)(scene, &process);
    if let Err(error) = &outcome {
        process.remark(&format!("the act ended: {}", tell(error)));
    }
    demand(what, disk, Picture::of(disk).check_always(scene));
    let seen = Picture::of(disk).seen_done(scene).unwrap_or_default();
    for (index, crash) in disk.crashes().iter().enumerate() {
        tally.crashes += 1;
        let what = format!("{what}, then crash {index}: {crash}");
        let after = disk.after(crash);
        let verdict = Picture::of(&after).check_always(scene);
        demand_with(&what, &[disk, &after], verdict);
        if tally.crashes.is_multiple_of(SECOND_STRIKE_EVERY) {
            strike_again(&what, scene, disk, &after, tally);
        }
        let promise = outcome.is_ok().then(|| Picture::of(disk));
        finish_after(&what, scene, disk, &after);
        let end = Picture::of(&after);
        let still = end.seen_done(scene).unwrap_or_default();
        let kept = seen.iter().all(|(link, job)| still.get(link) == Some(job));
        let verdict = kept
            .then_some(())
            .ok_or_else(|| format!("seen before: {seen:?}"));
        demand_with(&what, &[disk, &after], verdict);
        if let Some(before) = promise {
            demand_with(&what, &[disk, &after], same_ends(scene, &before, &end));
        }
    }
    if process.is_dead() {
        return outlive(what, scene, disk, tally);
    }
    drop(process);
    finish(what, scene, disk);
}

/// The process was killed, the machine goes on: what it did not sync is still in doubt when another
/// one has finished its work.
fn outlive(what: &str, scene: &Scene, disk: &Disk, tally: &mut Tally) {
    let what = format!("{what}, then a power loss at the end");
    demand(&what, disk, complete(scene, disk));
    for crash in disk.crashes() {
        tally.crashes += 1;
        let after = disk.after(&crash);
        let outcome = complete(scene, &after);
        demand_with(&format!("{what}: {crash}"), &[disk, &after], outcome);
    }
}

/// What was told as the end before the crash is the end after it, unless another job superseded it.
fn same_ends(scene: &Scene, before: &Picture, end: &Picture) -> Verdict {
    if !end.has_submissions(scene) {
        return Err("what was submitted is gone".to_owned());
    }
    let end = end.records()?;
    for told in before.records()? {
        let is_it = |record: &&Record| {
            record.job_id == told.job_id
                && (record.state == told.state || record.superseded_by.is_some())
        };
        let ended = told.state.is_final() && told.state != JobState::Failed;
        if ended && !end.iter().any(|record| is_it(&record)) {
            return Err(format!("{told:?} was told, and then {end:?}"));
        }
    }
    Ok(())
}

/// The process that recovers is struck too.
fn strike_again(what: &str, scene: &Scene, first: &Disk, start: &Disk, tally: &mut Tally) {
    for step in 1.. {
        let disk = start.fork();
        let process = scene.start(&disk);
        process.fault_at(step, Fault::KillBefore);
        let _ = scene.drive(&process);
        if !process.is_dead() {
            break;
        }
        for crash in disk.crashes() {
            tally.second_strikes += 1;
            let what = format!("{what}, killed again at step {step}: {crash}");
            let after = disk.after(&crash);
            let verdict = Picture::of(&after).check_always(scene);
            demand_with(&what, &[first, &disk, &after], verdict);
            let outcome = complete(scene, &after);
            demand_with(&what, &[first, &disk, &after], outcome);
        }
    }
}

fn complete(scene: &Scene, disk: &Disk) -> Verdict {
    // What was written aside is stale by now.
    disk.age();
    let process = scene.start(disk);
    scene.drive(&process).map_err(|error| tell(&error))?;
    Picture::of(disk).check_end(scene)
}

fn finish(what: &str, scene: &Scene, disk: &Disk) {
    demand(what, disk, complete(scene, disk));
}

fn finish_after(what: &str, scene: &Scene, before: &Disk, disk: &Disk) {
    demand_with(what, &[before, disk], complete(scene, disk));
}

fn demand(what: &str, disk: &Disk, verdict: Verdict) {
    demand_with(what, &[disk], verdict);
}

fn demand_with(what: &str, disks: &[&Disk], verdict: Verdict) {
    let Err(broken) = verdict else {
        return;
    };
    let mut text = format!("{what}:\n** {broken}\n");
    for disk in disks {
        let _ = write!(text, "-- steps:\n{}\n-- disk:\n{disk}", disk.trace());
    }
    panic!("{text}");
}

/// For acts that need a second process: everything `other` does happens just before `step`.
pub fn interleave(name: &str, scene: &Scene, other: fn(&Scene, &Process)) {
    let start = scene.prepare();
    let steps = count_steps(name, scene, &start);
    for step in 1..=steps {
        let disk = start.fork();
        let process = scene.start(&disk);
        let second = scene.start(&disk);
        let (stage, actor) = (scene.clone(), second.clone());
        process.interrupt_at(step, move || other(&stage, &actor));
        let _ = (scene.act)(scene, &process);
        let what = format!("{name}: interrupted at step {step} of {steps}");
        demand(&what, &disk, Picture::of(&disk).check_always(scene));
        demand(&what, &disk, complete(scene, &disk));
    }
}

/// Kills process after process at the same step of its life; returns how often a drop was given up
/// as one that no worker survives.
pub fn strike_repeatedly(name: &str, scene: &Scene, times: u32) -> u32 {
    let start = scene.prepare();
    let steps = count_steps(name, scene, &start);
    let mut given_up = 0;
    for step in 1..=steps {
        let disk = start.fork();
        for _ in 0..times {
            let process = scene.start(&disk);
            process.fault_at(step, Fault::KillBefore);
            let _ = scene.drive(&process);
        }
        finish(
            &format!("{name}: killed {times} times at step {step}"),
            scene,
            &disk,
        );
        let records = Picture::of(&disk).records().unwrap_or_default();
        given_up += records
            .iter()
            .filter(|record| record.state == JobState::Failed)
            .count() as u32;
    }
    given_up
}
