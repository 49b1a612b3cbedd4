//! Two converters on one queue, interleaved step by step: whatever the one does between any two
//! steps of the other, every drop ends once and nothing of a living worker is touched.
use hyper2kvm_tests::enumerate::interleave;
use hyper2kvm_tests::model::Process;
use hyper2kvm_tests::scene::{Dropped, Scene, directories, disk, dropped};
use queue::job::JobState::{self, Cancelled, Completed, Failed};
use queue::job::Request;
use queue::spool::recover;
use queue::spool::{DropKind, request};

const DONE: &[JobState] = &[Completed];

/// The other converter works off all it can get.
fn drive(scene: &Scene, other: &Process) {
    // What the interrupted one holds is busy: the other may well not come to an end.
    let _ = scene.drive(other);
}

/// The other converter only starts: it recovers what it takes for orphans.
fn sweep(scene: &Scene, other: &Process) {
    let swept = recover::sweep(&scene.open(other).unwrap(), &|_| false).unwrap();
    assert!(swept.errors.is_empty(), "{:?}", swept.errors);
}

/// The other converter claims and dies with what it claimed.
fn claim_and_die(scene: &Scene, other: &Process) {
    let spool = scene.open(other).unwrap();
    for dropped in &scene.drops {
        let _ = spool.claim(&dropped.drop);
    }
    other.kill();
}

fn all(name: &str, drops: Vec<Dropped>) {
    let scene = Scene::new(drops);
    interleave(&format!("{name}, drive"), &scene, drive);
    interleave(&format!("{name}, sweep"), &scene, sweep);
    interleave(&format!("{name}, claim and die"), &scene, claim_and_die);
}

#[test]
fn one_disk() {
    all("disk", vec![disk("vm1.vmdk", "", DONE)]);
}

#[test]
fn a_descriptor_with_extents() {
    let owned = ["vm1-s001.vmdk", "vm1-s002.vmdk"];
    all(
        "extents",
        vec![dropped(
            "vm1.vmdk",
            DropKind::Disk,
            "vm1.vmdk",
            &owned,
            "",
            DONE,
        )],
    );
}

#[test]
fn a_job_directory() {
    let owned = ["job/a.vmdk", "job/disks/b.vmdk"];
    let owner = "job/manifest.json";
    all(
        "directory",
        vec![dropped("job", DropKind::Directory, owner, &owned, "", DONE)],
    );
}

#[test]
fn a_manifest_and_a_disk_that_came_before() {
    let bare = Dropped {
        ends: vec![],
        ..disk("a.vmdk", "", DONE)
    };
    let owner = dropped(
        "m.json",
        DropKind::Manifest,
        "m.json",
        &[],
        "disk=a.vmdk",
        DONE,
    );
    all("manifest", vec![bare, owner]);
}

#[test]
fn two_drops_of_one_name() {
    // The last drop of a name wins: the first may be held up until the other is published.
    let first = disk("vm1.vmdk", "", &[Completed, Cancelled]);
    all("one name", vec![first, disk("vm1.img", "", DONE)]);
}

#[test]
fn a_failure() {
    all("failure", vec![disk("vm1.vmdk", "bad", &[Failed])]);
}

/// Both see the same request.
#[test]
fn a_retry() {
    let mut scene = Scene::new(vec![disk("vm1.vmdk", "bad-once", &[Completed])]);
    scene.before = |scene, process| {
        scene.deliver(process, &scene.drops[0]);
        scene.drive(process).unwrap();
        let job_id = scene.only_record(process).unwrap();
        request::submit_on(process, &directories(), &Request::Retry { job_id }).unwrap();
    };
    interleave("retry, drive", &scene, drive);
    interleave("retry, sweep", &scene, sweep);
}
