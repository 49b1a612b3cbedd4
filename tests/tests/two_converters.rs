//! Two converters on one queue, one of them killed half-way: each job is done once.
use hyper2kvm_tests::daemon::{Site, names};
use hyper2kvm_tests::images;
use queue::job::JobState;

const JOBS: usize = 100;

#[test]
fn each_job_is_done_once() {
    let site = Site::new("rescan_seconds = 1\nmax_concurrent_jobs = 2\nmax_attempts = 9\n");
    let top = site.top.path();
    let raw = images::raw_disk(
        &top.join("small.raw"),
        3 << 20,
        &[(0, &images::noise(7, 2 << 20))],
    );
    let file = images::vmdk(&raw, "monolithicSparse", &top.join("source"));
    let (mut first, second) = (site.start(), site.start());
    let vms: Vec<String> = (0..JOBS).map(|number| format!("vm{number:03}")).collect();
    for vm in &vms {
        site.deliver(&file, &format!("{vm}.vmdk"));
    }
    first.wait(120, "half of the jobs are done", || {
        site.count(JobState::Completed) >= JOBS / 2
    });
    second.kill();
    first.wait(180, "all jobs are done", || {
        site.count(JobState::Completed) == JOBS && site.is_quiet()
    });
    first.stop();

    let records = site.records();
    assert_eq!(records.len(), JOBS, "one record per job");
    let pids: std::collections::BTreeSet<u32> = records.iter().map(|record| record.pid).collect();
    assert_eq!(pids.len(), 2, "both daemons worked");
    let again: Vec<_> = records
        .iter()
        .filter(|record| record.attempts != 1)
        .collect();
    assert!(
        again.len() <= 2,
        "only what the killed one was at is begun again: {again:?}"
    );
    // A second copy of a drop would have been archived under a longer name.
    let archived: Vec<String> = vms.iter().map(|vm| format!("{vm}.vmdk")).collect();
    assert_eq!(names(&site.directories.processed()), archived);
    assert!(site.drops().is_empty());
    for vm in &vms {
        assert!(!site.error(vm).exists());
        images::judge(&raw, &site.link(vm), "qcow2");
    }
}
