//! One view per VM over the records of hypervisord and of the instance.
use std::time::Duration;

use queue::job::{JobId, JobState, Phase, Priority, Request};
use serde_json::json;

use crate::fixture::{Both, change, failure, record};
use crate::follow::Running;

/// A VM at each step, each named after it; the id of `converts`' conversion.
fn at_every_step(both: &Both) -> JobId {
    both.exports
        .save(&both.export("busy", JobState::Processing));
    both.exports.save(&both.export("asked", JobState::Queued));
    let mut elsewhere = both.export("elsewhere", JobState::Processing);
    elsewhere.target = Some("vsphere-prod".into());
    both.exports.save(&elsewhere);
    let waits = both
        .exports
        .save(&both.export("waits", JobState::Completed));
    let dropped = both.instance.directories().queue.join(waits.to_string());
    std::fs::create_dir(&dropped).unwrap();
    std::fs::write(dropped.join("manifest.json"), "{\"disks\": []}").unwrap();
    both.exports
        .save(&both.export("moving", JobState::Completed));
    let (_, converts) = both.add("converts", JobState::Processing);
    both.add("done", JobState::Completed);
    both.exports.save(&both.export("broken", JobState::Failed));
    both.instance.add("plain", JobState::Processing);
    let request =
        json!({"export_version": "1.0", "server": "vc.example.com", "vm": "/dc/vm/fresh"});
    let spool = &both.exports.directories().queue;
    std::fs::write(spool.join("x.json"), request.to_string()).unwrap();
    converts
}

#[test]
fn list_has_one_row_for_each_vm() {
    let both = Both::running();
    at_every_step(&both);
    let ran = both.run("list");
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let row = |vm: &str| -> String {
        let mut rows = ran.out.lines().filter(|line| {
            let mut words = line.split_whitespace();
            words.nth(1) == Some(vm)
        });
        let words: Vec<&str> = rows.next().unwrap().split_whitespace().collect();
        assert_eq!(rows.next(), None, "{vm}: {}", ran.out);
        let detail = words.get(5..).unwrap_or_default().join(" ");
        format!("{} {} {detail}", words[0], words[2])
    };
    for (vm, expected) in [
        ("busy", "default processing exporting 46%, 4s left"),
        ("asked", "default queued export #1"),
        (
            "elsewhere",
            "vsphere-prod processing exporting 46%, 4s left",
        ),
        (
            "waits",
            "default queued exported, is not claimed yet (default)",
        ),
        ("moving", "default queued exported, in the queue of default"),
        ("converts", "default processing converting 46%, 4s left"),
        ("done", "default completed 3.0 GiB"),
        (
            "broken",
            "default failed export: grain 7 of web.vmdk is damaged: inflate failed",
        ),
        ("plain", "default processing convert 46%, 4s left"),
        ("fresh", "hypervisord new is not claimed yet"),
    ] {
        assert_eq!(row(vm), expected);
    }
    assert_eq!(ran.out.lines().count(), 11, "{}", ran.out);
}

#[test]
fn list_shows_both_records_as_json() {
    let both = Both::running();
    let converts = at_every_step(&both);
    let list = both.run("list --json").json();
    let of = |vm: &str| {
        let mut found = list.as_array().unwrap().iter();
        found.find(|row| row["vm_name"] == vm).unwrap().clone()
    };
    let joined = of("converts");
    assert_eq!(joined["step"], "converting");
    assert_eq!(joined["job_id"], json!(converts));
    assert_eq!(joined["export"]["state"], "completed");
    assert_eq!(joined["conversion"]["progress"]["percent"], 46.9);
    assert!(joined["export"].get("log").is_none());
    assert_eq!(of("busy")["job_id"], of("busy")["export"]["job_id"]);
    assert_eq!(of("busy")["conversion"], json!(null));
    // A plain conversion is its record, as ever.
    assert_eq!(of("plain").get("export"), None);
    assert_eq!(of("plain")["attempts"], 1);

    let queued = both.run("list --status queued --json").json();
    assert_eq!(queued.as_array().unwrap().len(), 3);
    let exports = both.run("list --instance hypervisord --json").json();
    assert!(!exports.to_string().contains("plain"), "{exports}");
    assert_eq!(exports.as_array().unwrap().len(), 9);
    let instance = both.run("list --instance default --json").json();
    assert!(!instance.to_string().contains("elsewhere"), "{instance}");
    let out = both.run("status --vm elsewhere").out;
    assert!(out.contains("To: instance vsphere-prod"), "{out}");
}

#[test]
fn status_takes_either_id_and_tells_every_step() {
    let both = Both::running();
    let (export, conversion) = both.add("web", JobState::Completed);
    change(&both.instance.spool, conversion, |job| {
        job.timings.insert("repair".into(), 7.0);
    });
    let mut shown = Vec::new();
    for which in [
        "--vm web".to_owned(),
        format!("--job {export}"),
        format!("--job {conversion}"),
    ] {
        let ran = both.run(&format!("status {which}"));
        assert_eq!(ran.code, 0, "{ran:?}");
        shown.push(ran.out);
    }
    assert!(shown.iter().all(|out| *out == shown[0]), "{shown:?}");
    for text in [
        "State: done, exported in 2m 0s, converted in 2m 0s",
        "Steps: ✔ exported  ✔ queued  ✔ converted  ✔ repaired  ✔ done",
        "Output: /out/web/web.qcow2",
        &format!("Export: {export}: completed in 2m 0s"),
        &format!("Conversion: {conversion}: completed in 2m 0s"),
    ] {
        assert!(shown[0].contains(text), "{text:?} in {}", shown[0]);
    }
    let json = both.run(&format!("status --job {export} --json")).json();
    assert_eq!(json["state"], "completed");
    assert_eq!(json["step"], "done");
    assert_eq!(json["outputs"], json!(["/out/web/web.qcow2"]));
    assert_eq!(json["export"]["log"][0], "web: claimed");
    assert_eq!(json["conversion"]["log"][0], "web: claimed");

    let mut failed = both.export("sad", JobState::Failed);
    failed.error = Some(failure());
    both.exports.save(&failed);
    let out = both.run("status --vm sad").out;
    assert!(out.contains("State: export failed after 2m 0s"), "{out}");
    assert!(out.contains("Steps: ✘ exported  ○ queued"), "{out}");
    assert!(out.contains("Remedy: copy the disk again"), "{out}");
}

#[test]
fn a_vm_is_followed_from_one_daemon_to_the_other() {
    let both = Both::running();
    let export = both.export("web", JobState::Processing);
    both.exports.save(&export);
    let mut running = Running::of(&mut both.command("status --vm web --follow"));
    assert_eq!(
        running.line(),
        "web: exporting 46% (disk 1 of 2, 1.2 GiB of 2.5 GiB, 310 MiB/s, 4s left)"
    );
    let (completed, queue) = (JobState::Completed, &both.instance.directories().queue);
    let mut delivered = both.export("web", completed);
    let drop = queue.join("job-directory");
    std::fs::create_dir(&drop).unwrap();
    std::fs::write(drop.join("manifest.json"), "{}").unwrap();
    delivered.job_id = export.job_id;
    delivered.delivered.as_mut().unwrap().drop = "job-directory".into();
    both.exports.save(&delivered);
    assert_eq!(
        running.line(),
        "web: exported, queued, is not claimed yet (default)"
    );
    std::fs::remove_dir_all(&drop).unwrap();
    let mut conversion = record("web", JobState::Processing);
    conversion.drop = "job-directory".into();
    both.instance.save(&conversion);
    let mut line = running.line();
    // Between the claim and its record nothing is seen for a moment.
    if line == "web: exported, queued, in the queue of default" {
        line = running.line();
    }
    assert!(line.starts_with("web: converting 46%"), "{line}");
    change(&both.instance.spool, conversion.job_id, |job| {
        job.phase = Phase::Repair;
    });
    assert!(running.line().starts_with("web: repairing 46%"));
    change(&both.instance.spool, conversion.job_id, |job| {
        job.phase = Phase::Publish;
        job.timings.insert("repair".into(), 7.0);
    });
    assert!(running.line().starts_with("web: repaired 46%"));
    change(&both.instance.spool, conversion.job_id, |job| {
        let ended = record("web", completed);
        (job.state, job.outputs) = (ended.state, ended.outputs);
        job.finished_at = ended.finished_at;
    });
    assert_eq!(
        running.end(),
        (
            0,
            vec![
                "✔ web: done, exported in 2m 0s, converted in 2m 0s".to_owned(),
                "  /out/web/web.qcow2".to_owned()
            ]
        )
    );
    assert_eq!(both.run(&format!("wait --job {}", export.job_id)).code, 0);
}

#[test]
fn what_vanished_from_the_queue_is_not_done() {
    let both = Both::running();
    both.exports.save(&both.export("web", JobState::Completed));
    let ran = both.run("wait --vm web --timeout 500ms");
    assert_eq!(ran.code, 3, "{ran:?}");
    let ran = both.run("cancel --vm web");
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("handed over to default"), "{}", ran.err);
}

#[test]
fn requests_go_to_the_daemon_whose_job_is_alive() {
    let both = Both::running();
    let exporting = both.export("exporting", JobState::Processing);
    both.exports.save(&exporting);
    let (_, converting) = both.add("converting", JobState::Processing);
    let failed = both.exports.save(&both.export("failed", JobState::Failed));
    let take = |spool: &queue::spool::Spool, request: &Request| {
        match request {
            Request::Cancel { job_id } => {
                change(spool, *job_id, |job| job.state = JobState::Cancelled);
            }
            Request::Retry { job_id } => {
                change(spool, *job_id, |job| job.state = JobState::Queued);
            }
            Request::SetPriority { job_id, priority } => {
                change(spool, *job_id, |job| job.priority = *priority);
            }
            other => panic!("{other:?}"),
        }
        Ok(())
    };
    let (exports, instance) = (both.exports.serve(take), both.instance.serve(take));
    for args in [
        "priority high --vm exporting".to_owned(),
        format!("cancel --job {}", exporting.job_id),
        "cancel --vm converting".to_owned(),
        "retry --vm failed".to_owned(),
    ] {
        let ran = both.run(&args);
        assert_eq!(ran.code, 0, "{args}: {ran:?}");
    }
    let job_id = exporting.job_id;
    assert_eq!(
        exports.end(),
        [
            Request::SetPriority {
                job_id,
                priority: Priority::High
            },
            Request::Cancel { job_id },
            Request::Retry { job_id: failed },
        ]
    );
    let cancel = Request::Cancel { job_id: converting };
    assert_eq!(instance.end(), [cancel]);
}

#[test]
fn logs_are_those_of_both() {
    let both = Both::running();
    let (export, conversion) = both.add("web", JobState::Completed);
    change(&both.exports.spool, export, |job| {
        job.log = vec!["found it".into(), "fetched it".into()];
    });
    change(&both.instance.spool, conversion, |job| {
        job.log = vec!["read it".into()];
    });
    let ran = both.run("logs --vm web");
    assert_eq!(ran.out, "found it\nfetched it\nread it\n");
    assert_eq!(
        both.run("logs --vm web --tail 2").out,
        "fetched it\nread it\n"
    );
    assert_eq!(
        both.run(&format!("logs --job {export} -n 1")).out,
        "fetched it\n"
    );
    let json = both.run("logs --vm web --json").json();
    assert_eq!(json["job_ids"], json!([export, conversion]));
    assert_eq!(json["job_id"], json!(conversion));
}

#[test]
fn hypervisord_is_shown_beside_the_instances() {
    let both = Both::running();
    let list = both.run("daemon -op list");
    assert_eq!(list.code, 0);
    let names: Vec<&str> = list
        .out
        .lines()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(names, ["NAME", "default", "hypervisord"]);
    assert!(list.out.contains("hypervisord.service"), "{}", list.out);
    let status = both.run("daemon -op status -instance hypervisord");
    assert_eq!((status.code, status.err.as_str()), (0, ""));
    assert!(status.out.contains("● hypervisord"), "{}", status.out);
    assert!(!status.out.contains("default"), "{}", status.out);
    let stats = both.run("stats --json").json();
    assert_eq!(stats[1]["instance"], "hypervisord");

    // Where there never was one, none is shown.
    let alone = crate::fixture::Fixture::running();
    assert!(!alone.run("daemon list").out.contains("hypervisord"));
    both.exports.beat(|status| {
        let ago = std::time::SystemTime::now() - Duration::from_secs(185);
        status.updated_at = queue::job::record::timestamp(ago);
    });
    assert_eq!(both.run("daemon status").code, 4);
}
