//! `list`, `status`, `logs`, `stats`: what is read, and how little is trusted.
use std::time::{Duration, Instant};

use queue::instance::CONFIG_DIR_VARIABLE;
use queue::job::{JobId, JobState, Priority};
use serde_json::json;

use crate::fixture::{Fixture, Ran, failure, program, record, replace};

#[test]
fn list_shows_running_queued_new_and_finished_in_this_order() {
    let fixture = Fixture::running();
    fixture.add("done", JobState::Completed);
    fixture.add("broken", JobState::Failed);
    let mut late = record("late", JobState::Queued);
    late.priority = Priority::Low;
    late.queue_position = Some(1);
    let mut short = record("short", JobState::Queued);
    short.waits_for = vec!["short-disk2.vmdk".to_owned()];
    fixture.save(&late);
    fixture.add("soon", JobState::Queued);
    fixture.save(&short);
    fixture.add("busy", JobState::Processing);
    for drop in "fresh.ova .hidden.ova half.vmdk.part a-flat.vmdk README".split(' ') {
        std::fs::write(fixture.directories().queue.join(drop), "").unwrap();
    }
    std::fs::create_dir(fixture.directories().queue.join("a-job")).unwrap();
    std::fs::write(fixture.directories().queue.join("notes.json"), "{}").unwrap();
    let descriptor = "# Disk DescriptorFile\nRW 8 FLAT \"b-flat.vmdk\" 0\n";
    std::fs::write(fixture.directories().queue.join("b.vmdk"), descriptor).unwrap();

    let ran = fixture.run("list");
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let lines: Vec<Vec<&str>> = ran
        .out
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines[0], ["VM", "STATE", "AGE", "JOB", "DETAIL"]);
    let rows: Vec<String> = lines[1..]
        .iter()
        .map(|words| {
            let detail = words[4..].join(" ");
            format!("{} {} {} {detail}", words[0], words[1], words[2])
        })
        .collect();
    assert_eq!(
        rows,
        [
            "busy processing 3m convert 46%, 4s left",
            "short queued 3m waits for short-disk2.vmdk",
            "soon queued 3m #2",
            "late queued 3m #3 low",
            "a-job new - is a directory without a manifest.json",
            "b.vmdk new - names \"b-flat.vmdk\", which is not there",
            "fresh.ova new - is not complete yet",
            "notes.json new - is no manifest: it names no disks",
            "broken failed 1m grain 7 of web.vmdk is damaged: inflate failed",
            "done completed 1m 3.0 GiB",
        ]
    );

    let json = fixture.run("list --json").json();
    let list = json.as_array().unwrap();
    assert_eq!(list.len(), 10);
    assert_eq!(list[3]["vm_name"], "late");
    assert_eq!(list[3]["queue_position"], 3);
    assert!(list[3].get("log").is_none());
    assert_eq!(
        list[5],
        json!({"state": "new", "instance": "default", "drop": "b.vmdk",
            "reason": "names \"b-flat.vmdk\", which is not there"})
    );

    let failed = fixture.run("list --status failed,new --json").json();
    assert_eq!(failed.as_array().unwrap().len(), 5);
    let completed = fixture.run("list --status completed").out;
    assert!(!completed.contains("broken"));
}

#[test]
fn status_tells_everything_about_a_job() {
    let fixture = Fixture::running();
    let busy = fixture.add("busy", JobState::Processing);
    fixture.add("broken", JobState::Failed);
    fixture.add("done", JobState::Completed);
    let mut waits = record("waits", JobState::Queued);
    waits.error = Some(failure());
    waits.attempts = 2;
    let later = std::time::SystemTime::now() + Duration::from_secs(299);
    waits.not_before = Some(queue::job::record::timestamp(later));
    fixture.save(&waits);

    for (args, expected) in [
        (
            format!("status --job {busy}"),
            vec![
                "● busy (job-",
                "State: processing, convert",
                "46%",
                "disk 1 of 2, 1.2 GiB of 2.5 GiB",
                "310 MiB/s",
                "4s left",
                "Resumed: 600 MiB were done by an earlier attempt",
                "Source: busy.vmdk",
            ],
        ),
        (
            "status --vm broken".to_owned(),
            vec![
                "State: failed in 2m 0s",
                "Error: grain 7 of web.vmdk is damaged: inflate failed",
                "Remedy: copy the disk again",
                "Kind: corrupt",
            ],
        ),
        (
            "status --vm done".to_owned(),
            vec![
                "State: completed in 2m 0s",
                "Output: /out/done/done.qcow2",
                "done.qcow2, vmdk (streamOptimized), 20.0 GiB (1.0 GiB in, 3.0 GiB out)",
                "Timings: convert 1m 58s, publish 1.5s",
            ],
        ),
        (
            "status --vm waits".to_owned(),
            vec!["State: queued, retry in 4m", "Attempts: 2"],
        ),
    ] {
        let ran = fixture.run(&args);
        assert_eq!(ran.code, 0, "{ran:?}");
        for text in expected {
            assert!(ran.out.contains(text), "{text:?} in {}", ran.out);
        }
        assert!(!ran.out.contains('\x1b'), "no colours in a pipe");
    }
    let json = fixture.run("status --vm waits --json").json();
    assert_eq!(
        (json["state"].as_str(), &json["queue_position"]),
        (Some("queued"), &json!(1))
    );
    assert_eq!(json["log"][1], "waits: reading");
    let both = fixture.run("status --vm waits --vm done --json").json();
    assert_eq!(both[1]["vm_name"], "done");
}

#[test]
fn the_newest_job_of_a_vm_is_meant_and_a_drop_is_newer() {
    let fixture = Fixture::running();
    fixture.add("web", JobState::Completed);
    fixture.add("web", JobState::Failed);
    assert_eq!(
        fixture.run("status --vm web --json").json()["state"],
        "failed"
    );
    std::fs::write(fixture.directories().queue.join("web.vmdk"), "").unwrap();
    let json = fixture.run("status --vm web --json").json();
    assert_eq!(
        (json["state"].as_str(), json["drop"].as_str()),
        (Some("new"), Some("web.vmdk"))
    );
    assert!(
        fixture
            .run("status --vm web")
            .out
            .contains("new, not claimed yet")
    );
}

#[test]
fn what_is_not_there_is_said() {
    let fixture = Fixture::running();
    let id = JobId::new();
    for (args, code, message) in [
        (
            "status --vm ghost".to_owned(),
            2,
            "there is no job of a VM named \"ghost\"",
        ),
        (format!("status --job {id}"), 2, "there is no job-"),
        ("status --job nonsense".to_owned(), 2, "is not a job id"),
        ("logs --vm ghost".to_owned(), 2, "there is no job"),
        ("cancel --vm ghost".to_owned(), 2, "there is no job"),
        ("list --status lost".to_owned(), 2, "invalid value"),
        (
            "list --instance ../x".to_owned(),
            2,
            "is not an instance name",
        ),
        ("frobnicate".to_owned(), 2, "unrecognized"),
    ] {
        let ran = fixture.run(&args);
        assert_eq!(ran.code, code, "{args}: {ran:?}");
        assert!(ran.err.contains(message), "{args}: {}", ran.err);
    }
    let nowhere = [
        "list",
        "--watch-dir",
        "/nowhere",
        "--output-dir",
        "/nowhere",
    ];
    let ran = Ran::from(program().args(nowhere).output().unwrap());
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("/nowhere is not a directory"));
}

#[test]
fn broken_and_hostile_records_are_read_over() {
    let fixture = Fixture::running();
    let records = fixture.directories().records();
    let sane = fixture.add("sane", JobState::Queued);
    let path = |id: JobId| records.join(format!("{id}.json"));
    replace(&path(JobId::new()), "{\"job_id\": \"job-");
    replace(&path(JobId::new()), "");
    let other = serde_json::to_string(&record("liar", JobState::Queued)).unwrap();
    replace(&path(JobId::new()), &other);
    let fifo = path(JobId::new());
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::fs::File::create(path(JobId::new()))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    for name in ["job-../../x.json", "notes.txt", ".job.tmp"] {
        std::fs::write(records.join(name.replace('/', "_")), "x").unwrap();
    }
    let newer = JobId::new();
    let text = json!({
        "job_id": newer, "vm_name": "evil\u{1b}]0;owned\u{7}\nname", "state": "hibernating",
        "phase": "upload", "priority": "urgent", "progress": {"percent": -1e300},
        "created_at": "yesterday", "timings": {"convert": 1e300}, "pid": -1,
        "error": {"kind": "cosmic", "message": "a\u{1b}[2Jray"}, "outputs": ["/a\u{9b}b"],
    });
    replace(&path(newer), &text.to_string());

    let ran = fixture.run("list");
    assert_eq!(ran.code, 0);
    assert!(ran.out.contains(&sane.to_string()) && ran.out.contains("hibernating"));
    assert!(!ran.out.contains("liar") && !ran.out.contains(['\x1b', '\x07', '\u{9b}']));
    assert_eq!(ran.out.lines().count(), 3, "{}", ran.out);
    assert_eq!(ran.err.matches("note:").count(), 5, "{}", ran.err);

    let ran = fixture.run(&format!("status --job {newer}"));
    assert!(
        ran.out.contains("State: hibernating") && ran.out.contains("ray"),
        "{}",
        ran.out
    );
    assert!(!ran.out.contains(['\x1b', '\x07', '\u{9b}']));
    let json = fixture.run(&format!("status --json --job {newer}"));
    assert!(!json.out.contains(['\x1b', '\u{9b}']));
    assert_eq!(json.json()["state"], "hibernating");
    assert_eq!(json.json()["error"]["kind"], "cosmic");
    assert_eq!(
        fixture.run("stats --json").json()[0]["jobs"]["hibernating"],
        1
    );
}

#[test]
fn logs_print_the_tail() {
    let fixture = Fixture::running();
    let mut job = record("web", JobState::Completed);
    job.log = (1..=5).map(|line| format!("line {line}\x1b[2J")).collect();
    fixture.save(&job);
    let all = fixture.run("logs --vm web");
    assert_eq!((all.code, all.out.lines().count()), (0, 5));
    assert!(!all.out.contains('\x1b'));
    let tail = fixture.run("logs --vm web --tail 2");
    assert!(tail.out.starts_with("line 4") && tail.out.lines().count() == 2);
    let json = fixture.run("logs --vm web -n 1 --json").json();
    assert_eq!(json["log"], json!(["line 5\u{1b}[2J"]));
    assert_eq!(fixture.run("logs --vm web --tail 0").out, "");
}

#[test]
fn stats_add_up() {
    let fixture = Fixture::running();
    fixture.add("a", JobState::Completed);
    fixture.add("b", JobState::Completed);
    fixture.add("c", JobState::Failed);
    fixture.add("d", JobState::Queued);
    let ran = fixture.run("stats");
    for text in [
        "2 completed, 1 failed, 0 cancelled",
        "0 new, 1 queued",
        "Failures: 1 corrupt",
        "2.0 GiB in, 6.0 GiB out, 40.0 GiB virtual",
        "2m 0s per job",
        "Free: 412 GiB",
    ] {
        assert!(ran.out.contains(text), "{text:?} in {}", ran.out);
    }
    let json = fixture.run("stats --json").json();
    assert_eq!(json[0]["jobs"]["completed"], 2);
    assert_eq!(json[0]["source_bytes"], 2u64 << 30);
    assert_eq!(json[0]["rate_bytes_per_second"], (2u64 << 30) / 240);
}

#[test]
fn all_configured_instances_are_searched() {
    let config = tempfile::tempdir().unwrap();
    let (one, two) = (Fixture::named("one"), Fixture::named("two"));
    for (name, fixture) in [("one", &one), ("two", &two)] {
        let path = config.path().join(format!("{name}.toml"));
        std::fs::write(path, fixture.configuration()).unwrap();
    }
    let id = two.add("only-in-two", JobState::Completed);
    one.add("in-both", JobState::Queued);
    two.add("in-both", JobState::Queued);
    let run = |args: &str| -> Ran {
        let mut command = program();
        command
            .env(CONFIG_DIR_VARIABLE, config.path())
            .args(args.split_whitespace());
        command.output().unwrap().into()
    };

    assert_eq!(
        run("status --vm only-in-two --json").json()["instance"],
        "two"
    );
    assert_eq!(
        run(&format!("status --job {id} --json")).json()["instance"],
        "two"
    );
    assert_eq!(run("status --vm only-in-two --instance one").code, 2);
    let list = run("list");
    assert!(list.out.starts_with("INSTANCE"), "{}", list.out);
    let both = run("status --vm in-both --json");
    assert_eq!(both.json()["instance"], "two");
    assert!(both.err.contains("in-both is also in one"), "{}", both.err);
    let cancel = run("cancel --vm in-both");
    assert_eq!(cancel.code, 2);
    assert!(
        cancel.err.contains("choose one with --instance"),
        "{}",
        cancel.err
    );
    let cancel = run("cancel --vm in-both --instance one");
    assert_eq!(cancel.code, 4, "{cancel:?}");
    assert!(
        cancel.err.contains("systemctl start hyper2kvm@one.service"),
        "{}",
        cancel.err
    );
    assert_eq!(run("list --instance three").code, 2);

    std::fs::write(config.path().join("one.toml"), "watch_dri = 1\n").unwrap();
    let ran = run("list --instance one");
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("line 1, key watch_dri"), "{}", ran.err);
}

#[test]
fn ten_thousand_records_are_listed_at_once() {
    let fixture = Fixture::running();
    for number in 0..10_000 {
        fixture.add(&format!("vm-{number}"), JobState::Queued);
    }
    let begun = Instant::now();
    let ran = fixture.run("list");
    assert_eq!(ran.out.lines().count(), 10_001);
    assert!(ran.out.contains("#10000"));
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(60), "took {took:?}");
}

#[test]
fn help_is_complete() {
    let help = |args: &[&str]| Ran::from(program().args(args).output().unwrap());
    let top = help(&["--help"]);
    assert_eq!(top.code, 0);
    for command in [
        "convert", "daemon", "list", "status", "logs", "stats", "wait", "pause", "resume", "drain",
        "cancel", "retry", "priority",
    ] {
        assert!(
            top.out.contains(&format!("\n  {command} ")),
            "{command}: {}",
            top.out
        );
        let own = help(&[command, "--help"]);
        assert!(
            own.out.contains("--instance") && own.out.contains("--json"),
            "{command}"
        );
    }
    assert!(top.out.contains("4  the daemon is not there"));
}
