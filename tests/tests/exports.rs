//! The export service, end to end: requests become VMs in an instance's queue, or say why not.
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper2kvm_tests::daemon::{Daemon, names};
use hyper2kvm_tests::dice::Dice;
use hyper2kvm_tests::exports::ExportSite;
use hyper2kvm_tests::images;
use hyper2kvm_tests::mount::Mount;
use queue::error::ErrorKind;
use queue::job::{Delivery, JobState, Phase, Priority, Record, Request};

fn top(site: &ExportSite) -> PathBuf {
    site.instance.top.path().to_path_buf()
}

/// A disk whose copy is all the same small, and goes on for long.
fn long(site: &ExportSite, name: &str) {
    let disk = top(site).join(format!("{name}-long.raw"));
    images::raw_disk(&disk, 16 << 30, &[(0, &images::noise(3, 4096))]);
    site.vm(name, &disk);
}

fn small(site: &ExportSite, name: &str) -> PathBuf {
    let disk = top(site).join(format!("{name}-small.raw"));
    images::raw_disk(&disk, 4 << 20, &[(0, &images::noise(9, 1 << 20))]);
    site.vm(name, &disk);
    disk
}

fn state_of(site: &ExportSite, vm: &str) -> Option<JobState> {
    site.record_of(vm).map(|record| record.state)
}

/// Until its disks are being fetched.
fn wait_until_exporting(site: &ExportSite, daemon: &mut Daemon, vm: &str) -> Record {
    let at_work = |record: &Record| record.phase == Phase::Export && record.progress.percent > 0.0;
    daemon.wait(60, "its disks are fetched", || {
        site.record_of(vm).is_some_and(|record| at_work(&record))
    });
    site.record_of(vm).unwrap()
}

#[test]
fn a_request_becomes_a_converted_vm() {
    let site = ExportSite::new("");
    let raw = images::ext4(&top(&site));
    let vmdk = images::vmdk(&raw, "streamOptimized", &top(&site).join("source"));
    site.vm("web-01", &vmdk);
    let mut converter = site.instance.start();
    let mut exporter = site.start();
    let mut request = site.request("web-01");
    request.options.priority = Priority::High;
    site.ask(&request);
    converter.wait(60, "the VM is converted", || {
        site.instance.link("web-01").exists() && site.instance.is_quiet()
    });
    exporter.wait(10, "the export is over", || site.is_quiet());
    images::judge(&raw, &site.instance.link("web-01"), "qcow2");

    let [export] = &site.records()[..] else {
        panic!("{:?}", site.records());
    };
    assert_eq!(export.state, JobState::Completed);
    assert_eq!(export.instance, "hypervisord");
    let [disk] = &export.disks[..] else {
        panic!("{export:?}");
    };
    assert_eq!(disk.output_bytes, vmdk.metadata().unwrap().len());
    assert!(disk.digest.as_ref().unwrap().starts_with("blake3:"));
    for phase in ["describe", "export"] {
        assert!(export.timings.contains_key(phase), "{export:?}");
    }
    // What a poller follows from one record to the other.
    let [conversion] = &site.instance.records()[..] else {
        panic!("{:?}", site.instance.records());
    };
    let delivery = Delivery {
        instance: "default".to_owned(),
        queue: site.instance.directories.queue.clone(),
        drop: conversion.drop.clone(),
    };
    assert_eq!(export.delivered, Some(delivery));
    assert_eq!(conversion.priority, Priority::High);
    assert_eq!(names(&site.directories.processed()), ["web-01.json"]);
    exporter.stop();
    converter.stop();
}

#[test]
fn what_cannot_be_exported_is_refused_with_the_cause() {
    let site = ExportSite::new("");
    site.make_queue();
    small(&site, "web-01");
    fs::create_dir(top(&site).join("elsewhere")).unwrap();
    fs::write(top(&site).join("elsewhere/x.raw"), "secret").unwrap();
    std::os::unix::fs::symlink(top(&site).join("elsewhere"), site.vms().join("link")).unwrap();
    let mut daemon = site.start();
    let asked = |vm: &str| serde_json::to_string(&site.request(vm)).unwrap();
    let version = r#"{"export_version": "1.0", "#;
    let cases = [
        ("disk.vmdk", "KDMV".to_owned(), "no export request"),
        ("list.json", "[]".to_owned(), "cannot be read"),
        ("old.json", asked("web-01").replace("1.0", "2.0"), "not 1.x"),
        (
            "server.json",
            format!(r#"{version}"server": "vc", "vm": "x"}}"#),
            "known are: store",
        ),
        (
            "provider.json",
            format!(r#"{version}"server": "store", "provider": "aws", "vm": "x"}}"#),
            "asks for provider",
        ),
        (
            "secret.json",
            format!(r#"{version}"server": "store", "vm": "x", "password": "geheim"}}"#),
            "holds a secret: password",
        ),
        ("outside.json", asked("../elsewhere"), "beneath the roots"),
        ("absolute.json", asked("/etc"), "beneath the roots"),
        ("link.json", asked("link"), "beneath the roots"),
        ("itself.json", asked("."), "beneath the roots"),
        (
            "instance.json",
            format!(r#"{version}"server": "store", "vm": "web-01", "instance": "../x"}}"#),
            "not an instance name",
        ),
    ];
    for (name, text, _) in &cases {
        site.put(name, text);
    }
    daemon.wait(60, "all of them failed", || {
        let failed = |record: &&Record| record.state == JobState::Failed;
        site.records().iter().filter(failed).count() == cases.len() && site.is_quiet()
    });
    for (name, _, about) in &cases {
        let told = site
            .records()
            .into_iter()
            .find(|record| record.drop == *name);
        let failure = told.unwrap().error.unwrap();
        assert!(failure.to_text().contains(about), "{name}: {failure:?}");
        assert!(failure.remedy.is_some() && !failure.to_text().contains("geheim"));
        assert!(names(&site.directories.errors()).contains(&(*name).to_owned()));
    }
    assert!(!daemon.log().contains("geheim"));
    daemon.stop();
}

/// One of a server's, one of a name, the urgent first.
#[test]
fn limits_names_and_priorities() {
    let site = ExportSite::new("concurrent_exports = 3\n");
    site.make_queue();
    let roots = site.vms();
    site.configure(&format!(
        "max_concurrent = 1\n[server.other]\nprovider = \"local\"\nroots = [{roots:?}]\n"
    ));
    for vm in ["low", "normal", "high", "twin-a", "twin-b"] {
        small(&site, vm);
    }
    let mut daemon = site.start();
    site.control(&Request::Pause);
    daemon.wait(10, "it pauses", || {
        names(&site.directories.control()).is_empty()
    });
    for (vm, priority) in [
        ("low", Priority::Low),
        ("normal", Priority::Normal),
        ("high", Priority::High),
    ] {
        let mut request = site.request(vm);
        request.options.priority = priority;
        site.ask(&request);
    }
    for vm in ["twin-a", "twin-b"] {
        let mut request = site.request(vm);
        request.server = "other".to_owned();
        request.name = Some("twin".to_owned());
        let text = serde_json::to_string(&request).unwrap();
        site.put(&format!("{vm}.json"), &text);
    }
    daemon.wait(10, "all are claimed", || site.records().len() == 5);
    site.control(&Request::Resume);
    let is_done = |record: &Record| record.state == JobState::Completed;
    daemon.wait(60, "all are exported", || {
        site.records().iter().all(is_done) && site.is_quiet()
    });
    let span = |vm: &str| {
        let record = site
            .records()
            .into_iter()
            .find(|r| r.drop == format!("{vm}.json"));
        let record = record.unwrap();
        (record.started_at.unwrap(), record.finished_at.unwrap())
    };
    for pair in [["high", "normal"], ["normal", "low"]] {
        let [first, second] = pair.map(span);
        assert!(first.1 <= second.0, "{pair:?}: {first:?} {second:?}");
    }
    let mut twins = ["twin-a", "twin-b"].map(span);
    twins.sort();
    assert!(twins[0].1 <= twins[1].0, "{twins:?}");
    assert_eq!(site.instance.drops().len(), 5);
    daemon.stop();
}

#[test]
fn a_cancelled_export_leaves_nothing_and_can_be_had_back() {
    let site = ExportSite::new("");
    site.make_queue();
    long(&site, "big");
    let mut daemon = site.start();
    site.ask(&site.request("big"));
    let job_id = wait_until_exporting(&site, &mut daemon, "big").job_id;
    site.control(&Request::Cancel { job_id });
    daemon.wait(20, "it is cancelled", || {
        state_of(&site, "big") == Some(JobState::Cancelled) && site.is_quiet()
    });
    assert!(site.instance.drops().is_empty());
    assert!(site.directories.output.join("default/big.error").exists());
    assert!(names(&site.directories.errors()).contains(&"big.json".to_owned()));

    fs::remove_dir_all(site.vms().join("big")).unwrap();
    small(&site, "big");
    site.control(&Request::Retry { job_id });
    daemon.wait(20, "it is exported after all", || {
        state_of(&site, "big") == Some(JobState::Completed) && site.is_quiet()
    });
    assert_eq!(site.instance.drops(), [job_id.to_string()]);
    assert!(!site.directories.output.join("default/big.error").exists());
    daemon.stop();
}

/// SIGTERM in the middle: the export goes back, is nobody's failure, and the next service does it.
#[test]
fn a_stop_in_the_middle_is_no_failure() {
    let site = ExportSite::new("");
    site.make_queue();
    long(&site, "big");
    let mut daemon = site.start();
    site.ask(&site.request("big"));
    wait_until_exporting(&site, &mut daemon, "big");
    daemon.stop();
    let record = site.record_of("big").unwrap();
    assert_eq!((record.state, record.attempts), (JobState::Queued, 0));
    assert_eq!(
        names(&site.instance.directories.incoming()),
        Vec::<String>::new()
    );
    fs::remove_dir_all(site.vms().join("big")).unwrap();
    small(&site, "big");
    let mut daemon = site.start();
    daemon.wait(20, "it is exported", || {
        state_of(&site, "big") == Some(JobState::Completed) && site.is_quiet()
    });
    daemon.stop();
}

#[test]
fn what_cannot_fit_is_not_begun_and_tried_again() {
    let site = ExportSite::new("[retry]\nretry_delay = 1\nbackoff_multiplier = 1.0\n");
    let queue = site.instance.directories.queue.clone();
    let mount = Mount::tmpfs(&queue, "16M");
    site.make_queue();
    let disk = top(&site).join("d.raw");
    images::raw_disk(&disk, 32 << 20, &[(0, &images::noise(8, 20 << 20))]);
    site.vm("big", &disk);
    let mut daemon = site.start();
    site.ask(&site.request("big"));
    let failed_once = |record: Record| {
        let kind = record.error.map(|failure| failure.kind);
        record.state == JobState::Queued && kind == Some(ErrorKind::NoSpace)
    };
    daemon.wait(20, "it does not fit", || {
        site.record_of("big").is_some_and(failed_once)
    });
    assert_eq!(
        names(&site.instance.directories.incoming()),
        Vec::<String>::new()
    );
    enlarge(&queue);
    daemon.wait(30, "it fits now", || {
        state_of(&site, "big") == Some(JobState::Completed)
    });
    daemon.stop();
    drop(mount);
}

fn enlarge(place: &Path) {
    images::run(
        "mount",
        "mount",
        &["-o", "remount,size=64M", images::text(place)],
    );
}

const KILLS: u32 = 40;
const VMS: usize = 6;

/// Real kills, at any moment of its start and its work; the converter runs all the time.
#[test]
fn kills_leave_nothing_half_and_nothing_twice() {
    let site =
        ExportSite::new("max_attempts = 100000\nconcurrent_exports = 2\nrescan_seconds = 1\n");
    let disk = top(&site).join("d.raw");
    images::raw_disk(&disk, 64 << 20, &[(0, &images::noise(8, 24 << 20))]);
    let mut dice = Dice::new();
    let mut converter = site.instance.start();
    let (mut kills, mut hits, mut round) = (0, 0, 0);
    while kills < KILLS {
        round += 1;
        let vms: Vec<String> = (0..VMS).map(|vm| format!("r{round}v{vm}")).collect();
        for vm in &vms {
            site.vm(vm, &disk);
            site.ask(&site.request(vm));
        }
        let is_done = || {
            vms.iter()
                .all(|vm| state_of(&site, vm) == Some(JobState::Completed))
        };
        while kills < KILLS && !is_done() {
            let mut daemon = site.launch();
            if kills % 2 == 0 {
                std::thread::sleep(Duration::from_millis(dice.roll(150)));
            } else {
                let incoming = site.instance.directories.incoming();
                let is_staged = || !names(&incoming).is_empty();
                daemon.wait(60, "an export is at work", || is_staged() || is_done());
                std::thread::sleep(Duration::from_millis(dice.roll(60)));
            }
            daemon.kill();
            kills += 1;
            hits += u32::from(!names(&site.instance.directories.incoming()).is_empty());
        }
        let mut daemon = site.start();
        daemon.wait(120, "every VM of the round is exported", || {
            is_done() && site.is_quiet()
        });
        daemon.stop();
        converter.wait(120, "every VM of the round is converted", || {
            vms.iter().all(|vm| site.instance.link(vm).exists()) && site.instance.is_quiet()
        });
        for vm in &vms {
            let conversions = site.instance.records().into_iter();
            let count = conversions.filter(|record| record.vm_name == *vm).count();
            assert_eq!(count, 1, "{vm} was delivered {count} times");
        }
        images::judge(&disk, &site.instance.link(&vms[0]), "qcow2");
    }
    println!("{kills} kills in {round} rounds; {hits} hit an export at work");
    assert!(
        hits * 10 > kills,
        "too few kills hit an export: {hits} of {kills}"
    );
    converter.stop();
}
