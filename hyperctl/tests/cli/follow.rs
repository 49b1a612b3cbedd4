//! `status --follow`, `logs --follow`, `wait`: jobs are seen to their end.
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime};

use queue::job::record::timestamp;
use queue::job::{JobState, Phase};
use serde_json::Value;

use crate::fixture::{Fixture, Ran, change, failure, record};

/// hyperctl in the background, its output read line by line.
pub struct Running {
    pub child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Running {
    fn start(fixture: &Fixture, args: &str) -> Self {
        Self::of(fixture.command(args).stderr(Stdio::null()))
    }

    pub fn of(command: &mut std::process::Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    pub fn line(&mut self) -> String {
        self.lines.next().unwrap().unwrap()
    }

    pub fn end(mut self) -> (i32, Vec<String>) {
        let rest = self.lines.map(Result::unwrap).collect();
        (self.child.wait().unwrap().code().unwrap(), rest)
    }
}

#[test]
fn status_follow_tells_each_change_once() {
    let fixture = Fixture::running();
    let id = fixture.add("web", JobState::Queued);
    let mut running = Running::start(&fixture, "status --vm web --follow");
    assert_eq!(running.line(), "web: queued, #1");
    change(&fixture.spool, id, |job| {
        job.state = JobState::Processing;
        job.phase = Phase::Convert;
        job.progress = record("web", JobState::Processing).progress;
    });
    assert_eq!(
        running.line(),
        "web: processing, convert 46% (disk 1 of 2, 1.2 GiB of 2.5 GiB, 310 MiB/s, 4s left)"
    );
    change(&fixture.spool, id, |job| {
        *job = queue::job::Record {
            job_id: id,
            ..record("web", JobState::Completed)
        };
    });
    let (code, rest) = running.end();
    assert_eq!(code, 0);
    assert_eq!(rest, ["✔ web: completed in 2m 0s", "  /out/web/web.qcow2"]);
}

#[test]
fn status_follow_ends_with_the_cause() {
    let fixture = Fixture::running();
    let id = fixture.add("web", JobState::Processing);
    let mut running = Running::start(&fixture, &format!("status --job {id} -f --json"));
    let first: Value = serde_json::from_str(&running.line()).unwrap();
    assert_eq!(first["state"], "processing");
    change(&fixture.spool, id, |job| {
        job.state = JobState::Failed;
        job.error = Some(failure());
    });
    let (code, rest) = running.end();
    assert_eq!((code, rest.len()), (1, 1));
    let last: Value = serde_json::from_str(&rest[0]).unwrap();
    assert_eq!(last["error"]["remedy"], "copy the disk again");

    let ran = fixture.run("status --vm web --follow");
    assert_eq!(ran.code, 1);
    let damaged = "failed: grain 7 of web.vmdk is damaged: inflate failed\n  copy the disk again\n";
    assert!(ran.out.ends_with(damaged), "{}", ran.out);
}

#[test]
fn several_jobs_are_followed_to_the_last() {
    let fixture = Fixture::running();
    fixture.add("good", JobState::Completed);
    let id = fixture.add("slow", JobState::Processing);
    let mut running = Running::start(&fixture, "status --vm good --vm slow --follow");
    assert!(running.line().starts_with("✔ good"));
    assert_eq!(running.line(), "  /out/good/good.qcow2");
    assert!(running.line().starts_with("slow: processing"));
    change(&fixture.spool, id, |job| job.state = JobState::Cancelled);
    let (code, rest) = running.end();
    assert_eq!(code, 1, "{rest:?}");
    assert!(rest[0].starts_with("✘ slow: cancelled"));
}

#[test]
fn a_drop_is_followed_from_before_its_claim() {
    let fixture = Fixture::running();
    fixture.add("web", JobState::Completed);
    let drop = fixture.directories().queue.join("web.vmdk");
    std::fs::write(&drop, "").unwrap();
    let mut running = Running::start(&fixture, "status --vm web --follow");
    let id = fixture.add("web", JobState::Processing);
    std::fs::remove_file(&drop).unwrap();
    assert!(running.line().starts_with("web: processing"));
    change(&fixture.spool, id, |job| job.state = JobState::Failed);
    assert_eq!(running.end().0, 1);
}

#[test]
fn wait_tells_how_it_ended() {
    let fixture = Fixture::running();
    fixture.add("good", JobState::Completed);
    fixture.add("bad", JobState::Failed);
    let ran = fixture.run("wait --vm good");
    assert_eq!(ran.code, 0);
    assert!(ran.out.starts_with("✔ good: completed"), "{}", ran.out);
    let ran = fixture.run("wait --vm good --vm bad --json");
    assert_eq!(
        (ran.code, ran.json()[1]["state"].as_str()),
        (1, Some("failed"))
    );
    fixture.add("slow", JobState::Processing);
    let ran = fixture.run("wait --vm slow --timeout 300ms");
    assert_eq!((ran.code, ran.out.as_str()), (3, ""), "{ran:?}");
    let ran = fixture.run("wait --vm future --timeout 300ms");
    assert_eq!(ran.code, 3);
    assert!(ran.err.contains("no job of this VM yet"), "{}", ran.err);
    let running = Running::start(&fixture, "wait --vm future");
    fixture.add("future", JobState::Completed);
    assert_eq!(running.end().0, 0);
}

#[test]
fn following_ends_when_nobody_is_there_to_finish() {
    let fixture = Fixture::new();
    fixture.add("web", JobState::Processing);
    fixture.beat(|status| {
        status.updated_at = timestamp(SystemTime::now() - Duration::from_secs(185));
    });
    let children = [
        "status --vm web --follow",
        "wait --vm web",
        "logs --vm web --follow",
    ]
    .map(|args| {
        let mut command = fixture.command(args);
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        (args, child.unwrap())
    });
    for (args, child) in children {
        let ran = Ran::from(child.wait_with_output().unwrap());
        assert_eq!(ran.code, 4, "{args}: {ran:?}");
        let reason = "not responding (last heartbeat 3m ago)";
        assert!(ran.err.contains(reason), "{}", ran.err);
    }
    // A job that has ended needs no daemon.
    fixture.add("done", JobState::Completed);
    assert_eq!(fixture.run("wait --vm done").code, 0);
}

#[test]
fn logs_follow_prints_new_lines_to_the_end() {
    let fixture = Fixture::running();
    let id = fixture.add("web", JobState::Processing);
    let mut running = Running::start(&fixture, "logs --vm web --follow --tail 1");
    assert_eq!(running.line(), "web: reading");
    change(&fixture.spool, id, |job| {
        job.log.remove(0);
        job.log.push("web: writing".into());
    });
    assert_eq!(running.line(), "web: writing");
    change(&fixture.spool, id, |job| {
        job.state = JobState::Completed;
        job.log.push("web: done".into());
    });
    assert_eq!(running.end(), (0, vec!["web: done".to_owned()]));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let fixture = Fixture::running();
    for number in 0..2000 {
        fixture.add(&format!("vm-{number}"), JobState::Queued);
    }
    let mut running = Running::start(&fixture, "list");
    running.line();
    drop(running.lines);
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
}
