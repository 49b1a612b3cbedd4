//! `convert`: the request that is dropped, what is followed, and every way in which it ends.
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use queue::job::{JobState, Priority, Record};

use crate::fixture::{Both, Fixture, Ran, change, failure, record, until};
use crate::follow::Running;

const ASK: &str = "convert --vm /dc/vm/web-01 --vcenter vc.example.com";

#[test]
fn a_vm_goes_from_the_request_to_its_qcow2() {
    let both = Both::running();
    let args = format!("{ASK} --priority high --instance default");
    let mut running = Running::of(both.command(&args).stderr(Stdio::null()));
    let (export, request) = both.claim();
    assert_eq!(request.server, "vc.example.com");
    assert_eq!(
        (request.vm.as_str(), request.instance.as_str()),
        ("/dc/vm/web-01", "default")
    );
    assert_eq!(request.options.priority, Priority::High);
    assert!(running.line().starts_with("web-01: exporting 46%"));
    let mut conversion = record("web-01", JobState::Completed);
    conversion.drop = export.job_id.to_string();
    both.instance.save(&conversion);
    both.exports.save(&Record {
        job_id: export.job_id,
        ..delivered(&both, &export)
    });
    let (code, rest) = running.end();
    assert_eq!(code, 0);
    assert_eq!(
        rest.last().unwrap(),
        "  /out/web-01/web-01.qcow2",
        "{rest:?}"
    );
}

fn delivered(both: &Both, export: &Record) -> Record {
    let mut completed = both.export(&export.vm_name, JobState::Completed);
    completed.drop.clone_from(&export.drop);
    completed.delivered.as_mut().unwrap().drop = export.job_id.to_string();
    completed
}

#[test]
fn what_fails_ends_with_its_cause() {
    let both = Both::running();
    let running = Running::of(both.command(ASK).stderr(Stdio::null()));
    let (export, _) = both.claim();
    change(&both.exports.spool, export.job_id, |job| {
        job.state = JobState::Failed;
        job.error = Some(failure());
    });
    let (code, lines) = running.end();
    assert_eq!(code, 1);
    let text = lines.join("\n");
    assert!(
        text.contains("✘ web-01: export failed: grain 7 of web.vmdk"),
        "{text}"
    );
    assert!(text.ends_with("  copy the disk again"), "{text}");

    let running = Running::of(both.command(&format!("{ASK} --json")).stderr(Stdio::null()));
    let (export, _) = both.claim();
    let mut conversion = record("web-01", JobState::Failed);
    conversion.drop = export.job_id.to_string();
    both.instance.save(&conversion);
    both.exports.save(&Record {
        job_id: export.job_id,
        ..delivered(&both, &export)
    });
    let (code, lines) = running.end();
    assert_eq!(code, 1);
    let last: serde_json::Value = serde_json::from_str(lines.last().unwrap()).unwrap();
    assert_eq!(
        (&last["state"], &last["step"]),
        (&"failed".into(), &"converting".into())
    );
    assert_eq!(last["error"]["remedy"], "copy the disk again");
}

#[test]
fn nothing_is_dropped_where_nobody_takes_it() {
    let both = Both::new();
    both.instance.beat(|_| {});
    let ran = both.run(ASK);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(
        ran.err
            .contains("the export service hypervisord is not running"),
        "{}",
        ran.err
    );
    assert!(
        ran.err.contains("systemctl start hypervisord.service"),
        "{}",
        ran.err
    );
    both.exports.beat(|_| {});
    for (args, cause) in [
        (
            "convert --vm a --vcenter nowhere",
            "there is no server nowhere in ",
        ),
        (
            "convert --vm a --provider vsphere",
            "several servers are vsphere",
        ),
        (
            "convert --vm a --vcenter esx --instance ghost",
            "there is no instance ghost",
        ),
        (
            "convert --vm a --vcenter esx --instance hypervisord",
            "not an instance",
        ),
        ("convert --vm a", "--vcenter"),
        ("convert --vm a --vcenter esx --password x", "--password"),
    ] {
        let ran = both.run(args);
        assert_eq!(ran.code, 2, "{args}: {ran:?}");
        assert!(ran.err.contains(cause), "{args}: {}", ran.err);
    }
    assert_eq!(both.requests().len(), 0);
}

#[test]
fn a_server_is_known_by_name_address_or_provider() {
    let both = Both::running();
    for (args, server) in [
        ("--vcenter esx", "esx"),
        ("--vcenter 10.0.0.7", "esx"),
        ("--provider local", "disks"),
        (
            "--server vc.example.com --provider vsphere",
            "vc.example.com",
        ),
    ] {
        let ran = both.run(&format!("convert --vm web {args} --no-follow --json"));
        assert_eq!(ran.code, 0, "{args}: {ran:?}");
        let (_, request) = both.claim();
        assert_eq!(request.server, server, "{args}");
        let told = ran.json();
        assert_eq!(told["request"]["server"], server);
        assert!(
            told["drop"].as_str().unwrap().starts_with("web.job-"),
            "{told}"
        );
    }
}

#[test]
fn following_may_end_before_the_work() {
    let both = Both::running();
    let ran = both.run(&format!("{ASK} --detach"));
    let on = "web-01: requested; follow it: hyperctl status --vm web-01 --follow\n";
    assert_eq!((ran.code, ran.out.as_str()), (0, on), "{ran:?}");
    // What was said is so: the request is found by its VM.
    let status = both.run("status --vm web-01");
    assert!(status.out.contains("new, not claimed yet"), "{status:?}");

    let ran = both.run(&format!("{ASK} --timeout 300ms"));
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(
        ran.err.contains("timed out; the work goes on"),
        "{}",
        ran.err
    );
    assert_eq!(both.requests().len(), 2, "requests are not withdrawn");
}

#[test]
fn ctrl_c_ends_the_following_alone() {
    let both = Both::running();
    let mut command = both.command(ASK);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (export, _) = both.claim();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    kill(pid, Signal::SIGINT).unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 130, "{ran:?}");
    assert!(
        ran.err.contains("no longer followed; the work goes on"),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("hyperctl status --"), "{}", ran.err);
    assert_eq!(both.exports.read(export.job_id).state, JobState::Processing);
    assert!(both.exports.spool.requests().unwrap().is_empty());
}

#[test]
fn a_bar_shows_the_stage_on_a_terminal() {
    let both = Both::running();
    let (mut child, mut master) = crate::terminal::start(&mut both.command(ASK), 80);
    let (export, _) = both.claim();
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains("46%") {
        let count = std::io::Read::read(&mut master, &mut buffer).unwrap();
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    change(&both.exports.spool, export.job_id, |job| {
        job.state = JobState::Cancelled
    });
    text.push_str(&crate::terminal::rest(master));
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let plain = console::strip_ansi_codes(&text);
    assert!(
        plain.contains("web-01 ━━━━━━━━━───────────  46% exporting  310 MiB/s"),
        "{plain}"
    );
    assert!(plain.contains("✘ web-01: export cancelled"), "{plain}");
}

#[test]
fn an_instance_that_is_away_is_told_before() {
    let both = Both::new();
    both.exports.beat(|_| {});
    let ran = both.run(&format!("{ASK} --detach"));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.err.contains("the daemon of default is not running"),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("waits in its queue"), "{}", ran.err);
    until(|| both.requests().pop());
    // The export service alone: nothing of it is in the way of an instance's own view.
    let alone = Fixture::running();
    assert_eq!(alone.run("list").code, 0);
}
