//! hyperexport with a real converter's daemon: stopped, running, failing, too slow.
use std::fs;
use std::process::Output;

use hyper2kvm_tests::daemon::{Site, names};
use hyper2kvm_tests::images;
use hyper2kvm_tests::vsphere::{Scene, expect, said};
use queue::job::{JobState, Request};
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
