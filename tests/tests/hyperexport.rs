//! hyperexport with a real converter's daemon: stopped, running, failing, too slow.
use std::fs;
use std::process::{Child, Output, Stdio};

use hyper2kvm_tests::daemon::{Daemon, Site, names};
use hyper2kvm_tests::images;
use hyper2kvm_tests::proxy::{Harm, rule};
use hyper2kvm_tests::vsphere::{Scene, expect, said, signal};
use nix::sys::signal::Signal;
use queue::job::{JobState, Record, Request};
use queue::spool::request;

const CONFIG: &str = "rescan_seconds = 1\n[guest]\nfix = \"off\"\n";
const WARNING: &str = "hyper2kvm@test.service is not running";

/// Everything that is published of a VM and tells of no time, by name.
fn published(site: &Site, vm: &str) -> Vec<(String, Vec<u8>)> {
    let directory = site.directories.output.join(vm);
    let files = names(&directory).into_iter();
    let files = files.filter(|name| name != "metadata.json");
    files
        .map(|name| (name.clone(), fs::read(directory.join(name)).unwrap()))
        .collect()
}

/// Without the daemon it warns and converts itself, with it the VM is submitted: the same result.
fn assert_same_both_ways(site: &Site, vm: &str, export: impl Fn() -> Output) {
    let output = export();
    expect(&output, 0, WARNING);
    let link = site.link(vm);
    let answer = format!("{vm}: {}\n", link.display());
    assert_eq!(said(&output).0, answer);
    assert!(link.is_symlink());
    assert!(site.records().is_empty());
    let directly = published(site, vm);
    assert!(directly.iter().any(|(name, _)| name == "domain.xml"));

    // It takes the place of what was made without.
    let daemon = site.start();
    let output = export();
    expect(&output, 0, "");
    let (out, err) = said(&output);
    assert!(!err.contains(WARNING), "{err}");
    let result = site.directories.output.join(vm).join(format!("{vm}.qcow2"));
    assert!(out.contains(result.to_str().unwrap()), "{out}");
    assert_eq!(site.count(JobState::Completed), 1);
    assert!(link.is_symlink());
    let submitted = published(site, vm);
    assert_eq!(submitted.len(), directly.len());
    for ((name, submitted), (other, directly)) in submitted.iter().zip(&directly) {
        assert_eq!(name, other);
        assert!(submitted == directly, "{name} differs");
    }
    daemon.stop();
    assert!(names(&site.directories.incoming()).is_empty());
}

#[test]
fn a_local_vm_is_the_same_with_and_without_the_daemon() {
    let site = Site::new(CONFIG);
    let vm = site.top.path().join("web");
    let raw = images::ext4(site.top.path());
    images::vmdk(&raw, "streamOptimized", &vm);
    assert_same_both_ways(&site, "web", || {
        site.hyperexport().arg("--vm").arg(&vm).output().unwrap()
    });
    images::judge(&raw, &site.link("web"), "qcow2");
}

#[test]
fn a_vm_of_a_server_is_the_same_with_and_without_the_daemon() {
    let scene = Scene::new(Vec::new());
    let site = Site::new(CONFIG);
    assert_same_both_ways(&site, "web", || {
        let mut command = site.hyperexport();
        command.args(scene.server()).args(["--vm", "web"]);
        command.output().unwrap()
    });
    for (name, disk) in [("web.qcow2", "a.raw"), ("web-disk2.qcow2", "b.raw")] {
        let result = site.directories.output.join("web").join(name);
        images::judge(&scene.path(disk), &result, "qcow2");
    }
    scene.simulator.assert_clean();
}

#[test]
fn what_the_daemon_says_of_a_failure_is_shown() {
    let site = Site::new(CONFIG);
    let vm = site.top.path().join("web");
    let raw = images::ext4(site.top.path());
    let disk = images::vmdk(&raw, "streamOptimized", &vm);
    let mut bytes = fs::read(&disk).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4096].fill(0x55);
    fs::write(&disk, bytes).unwrap();
    let daemon = site.start();
    let output = site.hyperexport().arg("--vm").arg(&vm).output().unwrap();
    expect(&output, 1, "");
    let error = fs::read_to_string(site.error("web")).unwrap();
    let (out, err) = said(&output);
    assert!(err.ends_with(&error), "{error:?} is not the end of {err:?}");
    assert_eq!(out, "");
    assert_eq!(site.count(JobState::Failed), 1);
    daemon.stop();
}

/// The shortest time there is to wait is a minute.
#[test]
fn who_has_waited_long_enough_is_told_how_to_follow() {
    let site = Site::new(CONFIG);
    let vm = site.top.path().join("web");
    let raw = images::edges(site.top.path());
    images::vmdk(&raw, "streamOptimized", &vm);
    let mut daemon = site.start();
    request::submit(&site.directories, &Request::Pause).unwrap();
    daemon.wait(20, "it is paused", || {
        let status = fs::read_to_string(site.directories.status());
        status.is_ok_and(|status| status.contains("\"paused\""))
    });
    let mut command = site.hyperexport();
    command.args(["--hyper2kvm-daemon-timeout", "1"]);
    let output = command.arg("--vm").arg(&vm).output().unwrap();
    expect(&output, 3, "did not end within 1 minutes; its job goes on");
    let (out, err) = said(&output);
    assert!(err.contains("is paused"), "{err}");
    assert!(err.contains("hyperctl "), "{err}");
    assert_eq!(out, "");

    request::submit(&site.directories, &Request::Resume).unwrap();
    daemon.wait(60, "it is converted after all", || {
        site.link("web").exists() && site.is_quiet()
    });
    images::judge(&raw, &site.link("web"), "qcow2");
    daemon.stop();
}

/// In the second half of the disk of `live`.
const MIDDLE: usize = 5_000_000;

/// `live` is being exported and converted, and its download is held.
fn streaming(site: &Site, scene: &Scene, daemon: &mut Daemon) -> (Child, Record) {
    let mut command = site.hyperexport();
    command.args(scene.server()).args(["--vm", "live"]);
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let mut seen = None;
    daemon.wait(60, "what came is converted", || {
        seen = site.records().pop().filter(|record| {
            // The converter holds back what does not fill a batch.
            record.state == JobState::Processing
                && record.progress.bytes_done + (3 << 20) >= MIDDLE as u64
        });
        seen.is_some()
    });
    assert!(!site.link("live").exists());
    (child, seen.unwrap())
}

#[test]
fn a_vm_of_a_server_is_converted_while_it_is_downloaded() {
    let scene = Scene::new(vec![rule("GET /nfc/", 1, Harm::Hold(MIDDLE))]);
    let site = Site::new(CONFIG);
    let mut daemon = site.start();
    let (child, conversion) = streaming(&site, &scene, &mut daemon);
    scene.proxy.release();
    let output = child.wait_with_output().unwrap();
    expect(&output, 0, "");
    images::judge(&scene.path("b.raw"), &site.link("live"), "qcow2");
    let record = site.records().pop().unwrap();
    assert_eq!(record.job_id, conversion.job_id);
    let log = record.log.join("\n");
    assert!(log.contains("is converted while it arrives"), "{log}");
    assert!(!log.contains("again"), "{log}");
    scene.simulator.assert_clean();
    let state = site.top.path().join("state/hyperexport/debts");
    assert!(names(&state).is_empty());
    daemon.stop();
}

/// However it ends in the middle: nobody waits, and nothing is left behind.
#[test]
fn what_is_streamed_ends_with_its_export_and_the_other_way_round() {
    enum End {
        Interrupted,
        Killed,
        ConversionCancelled,
    }
    for (end, cause) in [
        (End::Interrupted, "the export was interrupted"),
        (End::Killed, "hyperexport died"),
        (End::ConversionCancelled, "cancelled by request"),
    ] {
        let scene = Scene::new(vec![rule("GET /nfc/", 1, Harm::Hold(MIDDLE))]);
        let site = Site::new(CONFIG);
        let mut daemon = site.start();
        let (child, conversion) = streaming(&site, &scene, &mut daemon);
        let job_id = conversion.job_id;
        match end {
            End::Interrupted => signal(&child, Signal::SIGTERM),
            End::Killed => signal(&child, Signal::SIGKILL),
            End::ConversionCancelled => {
                request::submit(&site.directories, &Request::Cancel { job_id }).unwrap();
            }
        }
        let output = child.wait_with_output().unwrap();
        match end {
            End::Interrupted => expect(&output, 1, cause),
            End::Killed => {
                let mut next = site.hyperexport();
                let next = next.args(scene.server()).args(["--list", "live"]);
                expect(&next.output().unwrap(), 0, "");
            }
            End::ConversionCancelled => expect(&output, 1, "the job was cancelled"),
        }
        scene.simulator.assert_clean();
        daemon.wait(60, "the conversion is over", || site.is_quiet());
        let records = site.records();
        assert_eq!((records.len(), records[0].job_id), (1, job_id));
        assert_eq!(records[0].state, JobState::Cancelled);
        let told = records[0].error.as_ref().unwrap().to_text();
        assert!(told.contains(cause), "{told}");
        assert!(!site.link("live").exists());
        let archived = site.directories.errors().join(&conversion.drop);
        let left = fs::metadata(archived.join("live-disk1.vmdk")).unwrap();
        assert_eq!(left.len(), 0);
        let debts = site.top.path().join("state/hyperexport/debts");
        assert!(names(&debts).is_empty());
        assert!(names(&site.directories.incoming()).is_empty());
        daemon.stop();
    }
}

/// A server without ranges: what broke cannot be gone on with.
#[test]
fn what_cannot_be_streamed_is_exported_whole() {
    let scene = Scene::new(vec![rule("GET /nfc/", 1, Harm::Cut(3_000_000))]);
    let site = Site::new(CONFIG);
    let daemon = site.start();
    let mut command = site.hyperexport();
    command.args(scene.server()).args(["--vm", "live"]);
    let output = command.output().unwrap();
    expect(&output, 0, "exporting without streaming");
    images::judge(&scene.path("b.raw"), &site.link("live"), "qcow2");
    let ends = [JobState::Cancelled, JobState::Completed];
    assert_eq!(ends.map(|state| site.count(state)), [1, 1]);
    scene.simulator.assert_clean();
    daemon.stop();
}
