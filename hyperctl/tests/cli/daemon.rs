//! `daemon status` and `daemon list`, in all the ways they are typed.
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use queue::instance::CONFIG_DIR_VARIABLE;
use queue::job::record::{ActiveJob, DaemonState, timestamp};
use queue::job::{JobId, JobState, Phase};

use crate::fixture::{Fixture, Ran, program, replace};

fn active(vm: &str, percent: f64) -> ActiveJob {
    ActiveJob {
        job_id: JobId::new(),
        vm_name: vm.into(),
        phase: Phase::Convert,
        percent,
    }
}

#[test]
fn status_shows_a_running_daemon() {
    let fixture = Fixture::new();
    fixture.beat(|status| {
        status.queue_depth = 3;
        status.active = vec![active("web-01", 47.2)];
        status.totals.completed = 12;
    });
    let pid = std::process::id();
    for typed in [
        "daemon -op status",
        "daemon --op status",
        "daemon -op=status",
        "daemon status",
        "daemon -op status -instance default",
    ] {
        let ran = fixture.run(typed);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{typed}");
        for text in [
            "● default".to_owned(),
            "State: running\n".to_owned(),
            format!("PID: {pid} on "),
            "Uptime: 3h 12m".to_owned(),
            format!("Watch dir: {}", fixture.directories().queue.display()),
            format!("Output dir: {}", fixture.directories().output.display()),
            "Queue: 3 waiting".to_owned(),
            "Jobs: 1 of 2 running".to_owned(),
            "web-01               ━━━━━━━─────────  47% convert".to_owned(),
            "12 completed".to_owned(),
        ] {
            assert!(ran.out.contains(&text), "{typed}: {text:?} in {}", ran.out);
        }
    }
    let json = fixture.run("daemon -op status -json").json();
    assert_eq!(json[0]["state"], "running");
    assert_eq!(json[0]["responding"], true);
    assert_eq!(json[0]["active"][0]["vm_name"], "web-01");
    assert_eq!(json[0]["heartbeat"]["totals"]["completed"], 12);
    for typed in ["daemon -op list", "daemon list"] {
        let ran = fixture.run(typed);
        assert_eq!(ran.code, 0);
        assert_eq!(ran.out.lines().count(), 2, "{}", ran.out);
    }
    for wrong in [
        "daemon",
        "daemon -op restart",
        "daemon status -op list",
        "daemon -o status",
    ] {
        assert_eq!(fixture.run(wrong).code, 2, "{wrong}");
    }
}

#[test]
fn a_daemon_without_a_fresh_heartbeat_is_never_running() {
    let ago = |seconds| timestamp(SystemTime::now() - Duration::from_secs(seconds));
    let fixture = Fixture::new();
    let check = |text: &str, what: &str| {
        for (typed, code) in [("daemon -op status", 4), ("daemon -op list", 0)] {
            let ran = fixture.run(typed);
            assert_eq!(ran.code, code, "{what}: {ran:?}");
            assert!(!ran.out.contains("running\n"), "{what}: {}", ran.out);
        }
        let out = fixture.run("daemon status").out;
        assert!(out.contains(text), "{what}: {text:?} in {out}");
        let json = fixture.run("daemon status --json").json();
        assert_eq!(json[0]["responding"], false, "{what}");
        assert_ne!(json[0]["state"], "running", "{what}");
    };
    check("State: not running (no heartbeat yet)", "absent");
    fixture.beat(|status| status.updated_at = ago(185));
    check("State: not responding (last heartbeat 3m ago)", "stale");
    fixture.beat(|status| status.updated_at = ago(12));
    check(
        "State: not responding (last heartbeat 12s ago)",
        "just stale",
    );
    fixture.beat(|status| status.pid = i32::MAX as u32);
    check("State: not responding (its process is gone", "dead");
    fixture.beat(|status| {
        status.state = DaemonState::Stopping;
        status.updated_at = ago(185);
    });
    check("State: stopped (last heartbeat 3m ago)", "stopped");
    fixture.beat(|status| {
        status.updated_at = timestamp(SystemTime::now() + Duration::from_secs(7200));
    });
    check("not responding (last heartbeat 1h in the future", "future");
    replace(&fixture.directories().status(), "{\"pid\": 1, \"upd");
    check(
        "State: not responding (its heartbeat cannot be read)",
        "broken",
    );
    assert!(
        fixture
            .run("daemon status")
            .err
            .contains("status.json cannot be read")
    );
}

#[test]
fn the_queue_of_a_stopped_daemon_is_counted() {
    let fixture = Fixture::new();
    fixture.add("a", JobState::Queued);
    std::fs::write(fixture.directories().queue.join("b.ova"), "").unwrap();
    assert!(
        fixture
            .run("daemon status")
            .out
            .contains("Queue: 2 waiting")
    );
}

#[test]
fn other_states_are_shown_as_the_daemon_says() {
    let fixture = Fixture::new();
    for (state, word) in [
        (DaemonState::Paused, "paused"),
        (DaemonState::Draining, "draining"),
        (DaemonState::Stopping, "stopping"),
    ] {
        fixture.beat(|status| status.state = state);
        let ran = fixture.run("daemon status");
        assert_eq!(ran.code, 0);
        assert!(ran.out.contains(&format!("State: {word}\n")), "{}", ran.out);
    }
}

/// A configured instance, and a `systemctl` that does what `script` says.
fn with_systemctl(fixture: &Fixture, script: &str, args: &str) -> Ran {
    let bin = fixture.dir.path().join("bin");
    let config = fixture.dir.path().join("config");
    std::fs::create_dir_all(&bin).unwrap();
    std::fs::create_dir_all(&config).unwrap();
    std::fs::write(config.join("vsphere-prod.toml"), fixture.configuration()).unwrap();
    let systemctl = bin.join("systemctl");
    if !script.is_empty() {
        replace(&systemctl, &format!("#!/bin/sh\n{script}\n"));
        std::fs::set_permissions(&systemctl, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = program();
    command.env(CONFIG_DIR_VARIABLE, &config).env("PATH", &bin);
    command
        .args(args.split_whitespace())
        .output()
        .unwrap()
        .into()
}

#[test]
fn systemd_is_asked_where_there_is_one() {
    let fixture = Fixture::named("vsphere-prod");
    fixture.beat(|_| {});
    let args = "daemon -op status -instance vsphere-prod";
    let service = "hyper2kvm@vsphere-prod.service";
    let absent = with_systemctl(&fixture, "", args);
    assert_eq!(absent.code, 0, "{absent:?}");
    assert!(
        absent.out.contains(&format!("Service: {service} (-)")),
        "{}",
        absent.out
    );

    let active = format!("echo Id={service}; echo ActiveState=active; echo MainPID=7");
    let ran = with_systemctl(&fixture, &active, args);
    assert!(
        ran.out.contains(&format!("Service: {service} (active)")),
        "{}",
        ran.out
    );
    let list = with_systemctl(&fixture, &active, "daemon -op list -instance vsphere-prod");
    let words: Vec<&str> = list
        .out
        .lines()
        .nth(1)
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(words[..4], ["vsphere-prod", service, "active", "running"]);

    let fails = with_systemctl(&fixture, "echo Id=x; exit 1", args);
    assert!(fails.out.contains("(-)"), "{}", fails.out);
    // It hangs in the shell itself: PATH holds nothing else.
    let hangs = with_systemctl(&fixture, "while :; do :; done", args);
    assert!(hangs.code == 0 && hangs.out.contains("(-)"), "{hangs:?}");

    std::fs::remove_file(fixture.directories().status()).unwrap();
    let mute = with_systemctl(&fixture, &active, args);
    assert_eq!(mute.code, 4);
    assert!(
        mute.out
            .contains("State: not responding (no heartbeat yet)"),
        "{}",
        mute.out
    );
    assert!(mute.out.contains("PID: 7"), "{}", mute.out);
}

#[test]
fn a_wrong_configuration_hides_no_other_instance() {
    let fixture = Fixture::named("good");
    fixture.beat(|_| {});
    fixture.add("web", JobState::Queued);
    let config = fixture.dir.path().join("config");
    std::fs::create_dir(&config).unwrap();
    std::fs::write(config.join("good.toml"), fixture.configuration()).unwrap();
    std::fs::write(config.join("bad.toml"), "colour = 1\n").unwrap();
    let run = |args: &str| -> Ran {
        let mut command = program();
        command.env(CONFIG_DIR_VARIABLE, &config);
        let args = args.split_whitespace();
        command.args(args).output().unwrap().into()
    };
    for (args, told, code) in [
        ("daemon status", "● good", 2),
        ("daemon list", "good", 0),
        ("list", "web", 0),
        ("list --instance hypervisord", "", 0),
        ("status --vm web", "web", 0),
        ("stats", "● good", 0),
    ] {
        let ran = run(args);
        assert_eq!(ran.code, code, "{args}: {ran:?}");
        assert!(ran.out.contains(told), "{args}: {ran:?}");
        let note = "note: ";
        let is_told = ran.err.contains(note) && ran.err.contains("bad.toml, line 1, key colour");
        assert!(is_told, "{args}: {ran:?}");
    }
    assert_eq!(run("list --instance good").err, "");
    assert_eq!(run("list --instance bad").code, 2);
    std::fs::write(config.join("hypervisord.toml"), "colour = 1\n").unwrap();
    assert!(run("list").err.contains("hypervisord.toml, line 1"));
    assert!(run("list").out.contains("web"));
    assert_eq!(run("list --instance hypervisord").code, 2);
    // With nothing to show it is an error.
    std::fs::remove_file(config.join("good.toml")).unwrap();
    assert_eq!(run("daemon list").code, 2);
}
