//! The real daemon, a real producer: followed, aborted, killed, abandoned and taken up again.
use std::fs;
use std::io::Write;
use std::path::Path;

use hyper2kvm_tests::daemon::{Daemon, Site, names};
use hyper2kvm_tests::images;
use queue::job::{JobId, JobState, Phase, Record};
use queue::spool::growing::Growing;
use queue::spool::submit;

use super::growing::assert_same;
use super::samples;

const CONFIG: &str = "rescan_seconds = 1\nmax_concurrent_jobs = 1\ncheckpoint_mib = 1\n\
                      [retry]\nretry_delay = 1\nbackoff_multiplier = 1.0\n";

fn manifest(vm: &str, disks: &[&str]) -> String {
    let disk = |name: &&str| {
        serde_json::json!({"id": name.replace('.', "-"), "source_format": "vmdk", "bytes": 0,
            "local_path": name, "growing": true})
    };
    let disks: Vec<_> = disks.iter().map(disk).collect();
    serde_json::json!({"manifest_version": "1.0", "source": {"vm_name": vm}, "disks": disks})
        .to_string()
}

/// Publishes a job whose disks are still empty.
fn submit(site: &Site, vm: &str, disks: &[&str]) -> (JobId, Vec<Growing>) {
    let staged = submit::stage(&site.directories).unwrap();
    let growing = disks
        .iter()
        .map(|disk| staged.grow(disk).unwrap())
        .collect();
    fs::write(
        staged.directory().join("manifest.json"),
        manifest(vm, disks),
    )
    .unwrap();
    let job = staged.job();
    staged.publish().unwrap();
    (job, growing)
}

fn append(growing: &Growing, bytes: &[u8]) {
    growing.file().write_all(bytes).unwrap();
}

fn record_of(site: &Site, vm: &str) -> Option<Record> {
    let mut records = site.records().into_iter().rev();
    records.find(|record| record.vm_name == vm)
}

/// Waits until the converter has done nearly all of what came.
fn wait_for(daemon: &mut Daemon, site: &Site, vm: &str, bytes: usize) -> Record {
    let mut seen = None;
    daemon.wait(120, &format!("{bytes} bytes of {vm} are converted"), || {
        seen = record_of(site, vm).filter(|record| {
            record.state == JobState::Processing
                && record.progress.bytes_done + (2 << 20) >= bytes as u64
        });
        seen.is_some()
    });
    seen.unwrap()
}

fn wait_for_state(daemon: &mut Daemon, site: &Site, vm: &str, state: JobState) -> Record {
    let mut seen = None;
    daemon.wait(120, &format!("{vm} is {state:?}"), || {
        seen = record_of(site, vm).filter(|record| record.state == state);
        seen.is_some()
    });
    seen.unwrap()
}

fn finish(site: &Site, daemon: &mut Daemon, vm: &str) -> Record {
    let record = wait_for_state(daemon, site, vm, JobState::Completed);
    daemon.wait(30, "nothing is left", || site.is_quiet());
    record
}

/// What the daemon makes of the same bytes when they come as a whole.
fn at_once(site: &Site, daemon: &mut Daemon, bytes: &[u8], compare: &Path) {
    let path = site.top.path().join("whole.vmdk");
    fs::write(&path, bytes).unwrap();
    site.deliver(&path, "whole.vmdk");
    daemon.wait(120, "the whole disk is converted", || {
        site.link("whole").exists()
    });
    assert_same(&site.link("whole"), compare);
}

#[test]
fn followed_from_the_first_byte_to_the_last() {
    let site = Site::new(CONFIG);
    let mut daemon = site.start();
    let (bytes, raw) = (samples::stream(), site.top.path().join("guest.raw"));
    fs::write(&raw, samples::guest()).unwrap();
    let (job, growing) = submit(&site, "web 1", &["a.vmdk", "b.vmdk"]);
    daemon.wait(60, "the job waits for a beginning", || {
        record_of(&site, "web 1").is_some_and(|record| record.phase == Phase::Verify)
    });
    // Both begin; the first is converted while the second waits for more.
    append(&growing[1], &bytes[..100_000]);
    for end in [1, 600, bytes.len() / 3, bytes.len() * 2 / 3, bytes.len()] {
        let from = growing[0].file().metadata().unwrap().len() as usize;
        append(&growing[0], &bytes[from..end]);
        if end > 2 << 20 {
            let record = wait_for(&mut daemon, &site, "web 1", end);
            assert_eq!((record.phase, record.progress.disk), (Phase::Convert, 1));
            assert!(record.progress.bytes_total >= end as u64);
            assert!(!site.link("web 1").exists());
        }
    }
    // The last byte alone ends nothing.
    growing[0].declare_end(None).unwrap();
    daemon.wait(60, "the second disk is begun", || {
        record_of(&site, "web 1").is_some_and(|record| record.progress.disk == 2)
    });
    append(&growing[1], &bytes[100_000..]);
    let checksum = format!("blake3:{}", blake3::hash(&bytes).to_hex());
    growing[1].declare_end(Some(&checksum)).unwrap();
    let record = finish(&site, &mut daemon, "web 1");
    assert_eq!(record.progress.percent, 100.0);
    for image in ["web 1.qcow2", "web 1-disk2.qcow2"] {
        let image = site.directories.output.join("web 1").join(image);
        images::judge(&raw, &image, "qcow2");
        assert_same(&image, &site.link("web 1"));
    }
    at_once(&site, &mut daemon, &bytes, &site.link("web 1"));
    let archived = site.directories.processed().join(job.to_string());
    let expected = [
        "a.vmdk",
        "a.vmdk.end",
        "b.vmdk",
        "b.vmdk.end",
        "manifest.json",
    ];
    assert_eq!(names(&archived), expected);
    daemon.stop();
}

/// An appliance that looks for a system in vain would take longer than the conversion.
#[test]
fn what_arrived_is_looked_at_before_a_repair() {
    let site = Site::repairing(&format!("{CONFIG}[guest]\nfix = \"try\"\n"));
    let mut daemon = site.start();
    let (_, growing) = submit(&site, "web", &["a.vmdk"]);
    append(&growing[0], &samples::stream());
    daemon.wait(60, "it is followed", || {
        record_of(&site, "web").is_some_and(|record| record.phase == Phase::Convert)
    });
    growing[0].declare_end(None).unwrap();
    let record = finish(&site, &mut daemon, "web");
    let codes: Vec<&str> = record.findings.iter().map(|it| it.code.as_str()).collect();
    assert_eq!(codes, ["no_system"]);
    let repair = Phase::Repair.as_str();
    assert!(!record.timings.contains_key(repair), "{:?}", record.timings);
    daemon.stop();
}

#[test]
fn while_one_arrives_others_are_converted() {
    let site = Site::new(CONFIG);
    let mut daemon = site.start();
    let bytes = samples::stream();
    let (_, slow) = submit(&site, "slow", &["slow.vmdk"]);
    append(&slow[0], &bytes[..bytes.len() / 2]);
    wait_for(&mut daemon, &site, "slow", bytes.len() / 2);
    let (_, other) = submit(&site, "other", &["other.vmdk"]);
    append(&other[0], &bytes[..bytes.len() / 2]);
    wait_for(&mut daemon, &site, "other", bytes.len() / 2);
    // With a single slot, both are followed, and neither holds up the other or what is whole.
    append(&other[0], &bytes[bytes.len() / 2..]);
    other[0].declare_end(None).unwrap();
    wait_for_state(&mut daemon, &site, "other", JobState::Completed);
    at_once(&site, &mut daemon, &bytes, &site.link("other"));
    append(&slow[0], &bytes[bytes.len() / 2..]);
    slow[0].declare_end(None).unwrap();
    finish(&site, &mut daemon, "slow");
    assert_same(&site.link("slow"), &site.link("whole"));
}

#[test]
fn aborted_nothing_of_it_is_left() {
    let site = Site::new(CONFIG);
    let mut daemon = site.start();
    let bytes = samples::stream();
    let (_, growing) = submit(&site, "web", &["a.vmdk"]);
    append(&growing[0], &bytes[..bytes.len() / 2]);
    wait_for(&mut daemon, &site, "web", bytes.len() / 2);
    growing[0].declare_aborted("the lease timed out").unwrap();
    let record = wait_for_state(&mut daemon, &site, "web", JobState::Cancelled);
    let error = record.error.unwrap();
    assert!(
        error.message.contains("aborted: the lease timed out"),
        "{error:?}"
    );
    daemon.wait(30, "nothing is left", || site.is_quiet());
    let text = fs::read_to_string(site.error("web")).unwrap();
    assert!(
        text.lines().next().unwrap().contains("the lease timed out"),
        "{text}"
    );
    assert!(!site.link("web").exists() && !site.directories.output.join("web").exists());
    daemon.stop();
}

#[test]
fn killed_and_stopped_in_the_middle_it_goes_on() {
    let site = Site::new(CONFIG);
    let mut daemon = site.start();
    let bytes = samples::stream();
    let thirds = [bytes.len() / 3, bytes.len() * 2 / 3];
    let (_, growing) = submit(&site, "web", &["a.vmdk"]);
    append(&growing[0], &bytes[..thirds[0]]);
    wait_for(&mut daemon, &site, "web", thirds[0]);
    daemon.kill();
    // It goes on arriving meanwhile.
    append(&growing[0], &bytes[thirds[0]..thirds[1]]);
    let mut daemon = site.start();
    wait_for(&mut daemon, &site, "web", thirds[1]);
    daemon.stop();
    let mut daemon = site.start();
    let record = wait_for(&mut daemon, &site, "web", thirds[1]);
    assert!(record.progress.resumed_bytes > 0, "{:?}", record.log);
    append(&growing[0], &bytes[thirds[1]..]);
    growing[0].declare_end(None).unwrap();
    finish(&site, &mut daemon, "web");
    at_once(&site, &mut daemon, &bytes, &site.link("web"));
    daemon.stop();
}

#[test]
fn a_producer_that_died_finds_its_job_and_ends_it() {
    let site = Site::new(CONFIG);
    let mut daemon = site.start();
    let bytes = samples::stream();
    let (job, growing) = submit(&site, "web", &["a.vmdk"]);
    append(&growing[0], &bytes[..bytes.len() / 2]);
    wait_for(&mut daemon, &site, "web", bytes.len() / 2);
    drop(growing);
    let find = |job| Growing::find(&site.directories.queue, job, "a.vmdk").unwrap();
    assert!(find(JobId::new()).is_none());
    find(job)
        .unwrap()
        .declare_aborted("the exporter died")
        .unwrap();
    wait_for_state(&mut daemon, &site, "web", JobState::Cancelled);
    daemon.wait(30, "nothing is left", || site.is_quiet());
    assert!(find(job).is_none());

    // What it submits anew is a job like any other; found before it is claimed, too.
    daemon.stop();
    let (job, growing) = submit(&site, "web", &["a.vmdk"]);
    append(&growing[0], &bytes[..bytes.len() / 2]);
    drop(growing);
    let found = find(job).unwrap();
    append(&found, &bytes[bytes.len() / 2..]);
    found.declare_end(None).unwrap();
    let mut daemon = site.start();
    finish(&site, &mut daemon, "web");
    daemon.stop();
}

#[test]
fn a_silent_producer_may_come_back() {
    let site = Site::new(&format!(
        "incomplete_timeout = 1\n{CONFIG}max_retries = 99\n"
    ));
    let mut daemon = site.start();
    let bytes = samples::stream();
    let (_, growing) = submit(&site, "web", &["a.vmdk"]);
    append(&growing[0], &bytes[..bytes.len() / 2]);
    daemon.wait(60, "the silence is told", || {
        record_of(&site, "web").is_some_and(|record| record.error.is_some())
    });
    let error = record_of(&site, "web").unwrap().error.unwrap();
    assert_eq!(error.kind, queue::error::ErrorKind::Timeout);
    let half = bytes.len() / 2;
    let expected = format!("a.vmdk stopped arriving at {half} bytes");
    assert!(error.message.contains(&expected), "{error:?}");
    append(&growing[0], &bytes[bytes.len() / 2..]);
    growing[0].declare_end(None).unwrap();
    finish(&site, &mut daemon, "web");
    at_once(&site, &mut daemon, &bytes, &site.link("web"));
    daemon.stop();
}

#[test]
fn only_a_job_directory_can_grow() {
    let site = Site::new(CONFIG);
    let mut daemon = site.start();
    let path = site.top.path().join("web.json");
    fs::write(&path, manifest("web", &["a.vmdk"])).unwrap();
    site.deliver(&path, "web.json");
    let record = wait_for_state(&mut daemon, &site, "web", JobState::Failed);
    let error = record.error.unwrap();
    assert_eq!(error.kind, queue::error::ErrorKind::Invalid);
    assert!(
        error.message.contains("not in a job directory"),
        "{error:?}"
    );
    daemon.stop();
}
