//! The requests: what is written, what counts as their effect, and how they fail.
use std::time::{Duration, SystemTime};

use queue::error::ErrorKind;
use queue::job::record::{DaemonState, timestamp};
use queue::job::{DefineState, Definition, Failure, JobId, JobState, Priority, Request};

use crate::fixture::{Fixture, beat, change, failure};

#[test]
fn pause_resume_and_drain_wait_for_the_state() {
    let fixture = Fixture::running();
    let served = fixture.serve(|spool, request| {
        let state = match request {
            Request::Pause => DaemonState::Paused,
            Request::Resume => DaemonState::Running,
            _ => DaemonState::Draining,
        };
        beat(spool, |status| status.state = state);
        Ok(())
    });
    for (command, told) in [
        ("pause", "default: paused\n"),
        ("resume", "default: running\n"),
        ("drain", "default: draining, idle\n"),
    ] {
        let ran = fixture.run(command);
        assert_eq!((ran.code, ran.out.as_str()), (0, told), "{ran:?}");
    }
    let json = fixture.run("pause --json").json();
    assert_eq!(
        (&json["request"], &json["status"]["state"]),
        (&"pause".into(), &"paused".into())
    );
    let taken = served.end();
    assert_eq!(
        taken,
        [
            Request::Pause,
            Request::Resume,
            Request::Drain,
            Request::Pause
        ]
    );
    assert!(fixture.spool.requests().unwrap().is_empty());
}

#[test]
fn drain_waits_for_what_is_claimed() {
    let fixture = Fixture::running();
    let job = fixture.add("web", JobState::Processing);
    let mut command = fixture.command("drain");
    let served = fixture.serve(move |spool, request| {
        let depth = 5;
        if *request == Request::Drain {
            beat(spool, |status| {
                status.state = DaemonState::Draining;
                status.queue_depth = depth;
            });
        } else {
            change(spool, job, |record| record.state = JobState::Completed);
        }
        Ok(())
    });
    let child = command
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    crate::fixture::until(|| {
        let status = std::fs::read_to_string(fixture.directories().status()).unwrap();
        status.contains("draining").then_some(())
    });
    // Anything but a drain ends the job; what is not claimed keeps waiting.
    queue::spool::request::submit(fixture.directories(), &Request::Resume).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(fixture.read(job).state, JobState::Completed);
    drop(served);
}

#[test]
fn cancel_waits_for_the_record() {
    let fixture = Fixture::running();
    let id = fixture.add("web", JobState::Processing);
    let newer = fixture.add("web", JobState::Completed);
    let served = fixture.serve(move |spool, request| {
        let Request::Cancel { job_id } = request else {
            panic!("{request:?}");
        };
        change(spool, *job_id, |record| record.state = JobState::Cancelled);
        Ok(())
    });
    let ran = fixture.run("cancel --vm web");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.starts_with("web: cancelled"), "{}", ran.out);
    assert_eq!(served.end(), [Request::Cancel { job_id: id }]);
    let ran = fixture.run(&format!("cancel --job {newer}"));
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains("is completed: there is nothing to cancel"),
        "{}",
        ran.err
    );
}

#[test]
fn a_job_that_ends_first_is_not_cancelled() {
    let fixture = Fixture::running();
    fixture.add("web", JobState::Processing);
    let _served = fixture.serve(|spool, request| {
        if let Request::Cancel { job_id } = request {
            change(spool, *job_id, |record| record.state = JobState::Completed);
        }
        Ok(())
    });
    let ran = fixture.run("cancel --vm web");
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains("it ended before it could be cancelled"),
        "{}",
        ran.err
    );
}

#[test]
fn retry_waits_until_the_job_has_left_its_end() {
    let fixture = Fixture::running();
    let queued = fixture.add("back", JobState::Failed);
    let again = fixture.add("again", JobState::Failed);
    let served = fixture.serve(move |spool, request| {
        let Request::Retry { job_id } = request else {
            panic!("{request:?}");
        };
        change(spool, *job_id, |record| {
            if record.vm_name == "again" {
                record.attempts += 1;
                record.finished_at = Some(timestamp(SystemTime::now()));
            } else {
                record.state = JobState::Queued;
            }
        });
        Ok(())
    });
    let ran = fixture.run(&format!("retry --job {queued}"));
    assert_eq!(
        (ran.code, ran.out.starts_with("back: queued, #1")),
        (0, true),
        "{ran:?}"
    );
    let ran = fixture.run("retry --vm again --json");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.json()["job"]["attempts"], 2);
    assert_eq!(
        served.end(),
        [
            Request::Retry { job_id: queued },
            Request::Retry { job_id: again }
        ]
    );
    fixture.add("fine", JobState::Completed);
    let ran = fixture.run("retry --vm fine");
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains("only a failed job is tried again"),
        "{}",
        ran.err
    );
}

#[test]
fn retry_all_failed_waits_for_each() {
    let fixture = Fixture::running();
    let ran = fixture.run("retry --all-failed");
    assert_eq!((ran.code, ran.out.as_str()), (0, "no job has failed\n"));
    let failed = [
        fixture.add("a", JobState::Failed),
        fixture.add("b", JobState::Failed),
    ];
    fixture.add("c", JobState::Completed);
    let served = fixture.serve(move |spool, request| {
        assert_eq!(*request, Request::RetryAllFailed);
        for id in failed {
            change(spool, id, |record| record.state = JobState::Queued);
        }
        Ok(())
    });
    let ran = fixture.run("retry --all-failed");
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "2 of 2 jobs tried again\n"),
        "{ran:?}"
    );
    assert_eq!(served.end().len(), 1);
}

#[test]
fn priority_changes_the_order() {
    let fixture = Fixture::running();
    fixture.add("first", JobState::Queued);
    let id = fixture.add("second", JobState::Queued);
    let served = fixture.serve(|spool, request| {
        if let Request::SetPriority { job_id, priority } = request {
            change(spool, *job_id, |record| record.priority = *priority);
        }
        Ok(())
    });
    let ran = fixture.run("priority high --vm second");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.out, "second: queued, #1 high, priority high\n");
    let request = Request::SetPriority {
        job_id: id,
        priority: Priority::High,
    };
    assert_eq!(served.end(), [request]);
}

#[test]
fn a_refusal_is_shown_and_left() {
    let fixture = Fixture::running();
    fixture.add("web", JobState::Failed);
    let _served = fixture.serve(|_, _| {
        Err(Failure {
            kind: ErrorKind::Invalid,
            message: "the source is gone\u{1b}[2J".into(),
            remedy: Some("drop it again".into()),
            chain: vec!["not found".into()],
        })
    });
    let ran = fixture.run("retry --vm web");
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains("the source is gone\u{fffd}[2J: not found"),
        "{}",
        ran.err
    );
    assert!(
        ran.err.contains("drop it again") && !ran.err.contains('\x1b'),
        "{}",
        ran.err
    );
    let left: Vec<_> = std::fs::read_dir(fixture.directories().control())
        .unwrap()
        .collect();
    assert_eq!(left.len(), 1);
}

#[test]
fn nothing_is_asked_of_a_daemon_that_is_not_there() {
    let fixture = Fixture::new();
    let running = fixture.add("web", JobState::Processing);
    let failed = fixture.add("bad", JobState::Failed);
    let stale = timestamp(SystemTime::now() - Duration::from_secs(185));
    for (heartbeat, why) in [(None, "not running (no heartbeat"), (Some(stale), "3m ago")] {
        if let Some(time) = heartbeat {
            fixture.beat(|status| status.updated_at = time);
        }
        for args in [
            "pause".to_owned(),
            "resume".to_owned(),
            "drain".to_owned(),
            format!("cancel --job {running}"),
            format!("retry --job {failed}"),
            "retry --all-failed".to_owned(),
            format!("priority low --job {running}"),
        ] {
            let ran = fixture.run(&args);
            assert_eq!(ran.code, 4, "{args}: {ran:?}");
            assert!(ran.err.contains(why), "{args}: {}", ran.err);
            assert!(
                ran.err.contains("start it: hyper2kvm daemon --watch-dir"),
                "{}",
                ran.err
            );
            assert!(fixture.spool.requests().unwrap().is_empty(), "{args}");
        }
    }
}

#[test]
fn a_request_without_effect_times_out() {
    let fixture = Fixture::running();
    let ran = fixture.run("pause --timeout 300ms");
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.err.contains("has not taken"), "{}", ran.err);
    let (_, request) = fixture.spool.requests().unwrap().remove(0);
    assert_eq!(request.unwrap(), Request::Pause);

    let fixture = Fixture::running();
    let id: JobId = fixture.add("web", JobState::Processing);
    let _served = fixture.serve(|_, _| Ok(()));
    let ran = fixture.run(&format!("cancel --job {id} --timeout 300ms"));
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.err.contains("has taken the request"), "{}", ran.err);
}

#[test]
fn what_showed_before_is_not_the_effect() {
    let fixture = Fixture::new();
    fixture.beat(|status| status.state = DaemonState::Paused);
    let _served = fixture.serve(|_, _| Err(failure()));
    let ran = fixture.run("pause");
    assert_eq!(ran.code, 1, "{ran:?}");
}

#[test]
fn import_tells_what_libvirt_answered() {
    let fixture = Fixture::running();
    let free = fixture.add("free", JobState::Completed);
    let taken = fixture.add("taken", JobState::Completed);
    fixture.add("waiting", JobState::Queued);
    let served = fixture.serve(move |spool, request| {
        let Request::Import { job_id } = *request else {
            panic!("{request:?}");
        };
        let mut definition = Definition {
            state: DefineState::Defined,
            uri: "qemu:///system".to_owned(),
            message: None,
            remedy: None,
        };
        if job_id == taken {
            definition.state = DefineState::NameTaken;
            definition.message = Some("another domain\u{1b}[2J is there".to_owned());
            definition.remedy = Some("rename it".to_owned());
        }
        change(spool, job_id, |record| record.libvirt = Some(definition));
        Ok(())
    });
    let ran = fixture.run("import --vm free");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.out, "free: defined at qemu:///system\n");
    let ran = fixture.run("import --vm taken");
    assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{ran:?}");
    assert!(ran.err.contains("taken is not defined: another domain"));
    assert!(ran.err.contains("rename it") && !ran.err.contains('\u{1b}'));
    let ran = fixture.run("import --vm taken --json");
    assert_eq!(ran.json()["job"]["libvirt"]["state"], "name_taken");
    assert_eq!(ran.code, 1);
    let shown = fixture.run("status --vm taken").out;
    assert!(
        shown.contains("the name is taken at qemu:///system"),
        "{shown}"
    );
    let ran = fixture.run("import --vm waiting");
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("only a published VM"), "{}", ran.err);
    let of = |job_id| Request::Import { job_id };
    assert_eq!(served.end(), [of(free), of(taken), of(taken)]);
}
