//! Crash enumeration: every transition of the queue, struck at every step, on every disk that a
//! crash may leave. See `model` for what may be lost, `invariants` for what must hold.
use hyper2kvm_tests::enumerate::{Tally, enumerate};
use hyper2kvm_tests::scene::{Dropped, Scene, disk, dropped};
use queue::job::JobState::{self, Cancelled, Completed, Failed};
use queue::spool::DropKind;

const DONE: &[JobState] = &[Completed];

fn run(name: &str, drops: Vec<Dropped>, adapt: impl FnOnce(&mut Scene)) -> Tally {
    let mut scene = Scene::new(drops);
    adapt(&mut scene);
    enumerate(name, &scene)
}

#[test]
fn a_disk() {
    run("disk", vec![disk("vm1.vmdk", "", DONE)], |_| {});
}

#[test]
fn a_descriptor_with_extents() {
    let owned = ["vm1-s001.vmdk", "vm1-s002.vmdk"];
    let drop = dropped("vm1.vmdk", DropKind::Disk, "vm1.vmdk", &owned, "", DONE);
    run("extents", vec![drop], |_| {});
}

#[test]
fn a_job_directory() {
    let owned = ["job/a.vmdk", "job/disks/b.vmdk"];
    let drop = dropped(
        "job",
        DropKind::Directory,
        "job/manifest.json",
        &owned,
        "",
        DONE,
    );
    run("directory", vec![drop], |_| {});
}

#[test]
fn a_failure() {
    run("failure", vec![disk("vm1.vmdk", "bad", &[Failed])], |_| {});
}

#[test]
fn a_cancelled_job() {
    let ends = [Cancelled, Completed];
    run(
        "cancel running",
        vec![disk("vm1.vmdk", "", &ends)],
        |scene| {
            scene.act = |scene, process| scene.begin_first(process)?.1.cancel().map(|_| ());
        },
    );
}
