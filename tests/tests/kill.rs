//! Real kills: a working daemon gets SIGKILL at random moments with twenty VMs in its queue, again
//! and again; then every VM has exactly one sound result and nothing is left behind.
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hyper2kvm_tests::daemon::{Site, names, wait};
use hyper2kvm_tests::dice::Dice;
use hyper2kvm_tests::images;
use queue::job::JobState;

const KILLS: u32 = 200;
const VMS: usize = 20;

/// A source and the raw disk that it holds.
struct Source {
    raw: PathBuf,
    file: PathBuf,
}

fn sources(dir: &Path) -> Vec<Source> {
    let raws = [images::ext4(dir), images::edges(dir)];
    let mut sources = Vec::new();
    for (number, raw) in raws.iter().enumerate() {
        for subformat in ["streamOptimized", "monolithicSparse"] {
            let file = images::vmdk(raw, subformat, &dir.join(format!("{number}-{subformat}")));
            sources.push(Source {
                raw: raw.clone(),
                file,
            });
        }
    }
    sources
}

#[test]
fn two_hundred_kills_lose_nothing() {
    // A job must not be given up however often it is hit; asides of killed daemons are young.
    let site = Site::new("max_attempts = 100000\nmax_concurrent_jobs = 2\nrescan_seconds = 1\n");
    let sources = sources(site.top.path());
    let mut dice = Dice::new();
    let (mut kills, mut hits, mut round) = (0, 0, 0);
    while kills < KILLS {
        round += 1;
        let vms: Vec<String> = (0..VMS)
            .map(|number| format!("vm{round}n{number:02}"))
            .collect();
        for (number, vm) in vms.iter().enumerate() {
            site.deliver(&sources[number % sources.len()].file, &format!("{vm}.vmdk"));
        }
        while kills < KILLS && !vms.iter().all(|vm| site.link(vm).exists()) {
            let mut daemon = site.launch();
            let is_done = || vms.iter().all(|vm| site.link(vm).exists());
            // At any moment of its start and its work, and more often while something is staged.
            if kills % 2 == 0 {
                std::thread::sleep(Duration::from_millis(dice.roll(400)));
            } else {
                let is_staged = || !names(&site.directories.staging()).is_empty();
                daemon.wait(60, "a job is at work", || is_staged() || is_done());
                std::thread::sleep(Duration::from_millis(dice.roll(10)));
            }
            daemon.kill();
            kills += 1;
            hits += u32::from(!names(&site.directories.staging()).is_empty());
        }
        let mut daemon = site.start();
        daemon.wait(120, "every VM of the round is done", || {
            vms.iter().all(|vm| site.link(vm).exists()) && site.is_quiet()
        });
        daemon.stop();
        for (number, vm) in vms.iter().enumerate() {
            images::judge(
                &sources[number % sources.len()].raw,
                &site.link(vm),
                "qcow2",
            );
        }
        check(&site, &vms);
    }
    println!("{kills} kills in {round} rounds of {VMS} VMs; {hits} hit a job at work");
    assert!(
        hits * 10 > kills,
        "too few kills hit a job at work: {hits} of {kills}"
    );
}

fn check(site: &Site, vms: &[String]) {
    let records = site.records();
    let archived = names(&site.directories.processed());
    assert!(site.drops().is_empty(), "{:?}", site.drops());
    assert!(site.is_quiet());
    assert_eq!(names(&site.directories.errors()), Vec::<String>::new());
    for vm in vms {
        assert!(!site.error(vm).exists(), "{vm}.error");
        let told: Vec<_> = records
            .iter()
            .filter(|record| record.vm_name == *vm)
            .collect();
        assert!(
            matches!(told[..], [only] if only.state == JobState::Completed),
            "{vm}: {told:?}"
        );
        let copies = archived
            .iter()
            .filter(|name| name.starts_with(vm.as_str()))
            .count();
        assert_eq!(copies, 1, "{vm} in {archived:?}");
    }
}

/// A stopped daemon gives its job back, and the next one finishes it: nobody's failure.
#[test]
fn a_stop_in_the_middle_is_no_failure() {
    let site = Site::new("rescan_seconds = 1\n");
    let raw = images::edges(site.top.path());
    let file = images::vmdk(&raw, "streamOptimized", &site.top.path().join("source"));
    for number in 0..4 {
        site.deliver(&file, &format!("vm{number}.vmdk"));
    }
    let all_done = || (0..4).all(|number| site.link(&format!("vm{number}")).exists());
    let begun = Instant::now();
    while !all_done() {
        assert!(begun.elapsed() < Duration::from_secs(480));
        let daemon = site.start();
        wait(Duration::from_millis(200), || {
            !names(&site.directories.staging()).is_empty()
        });
        daemon.stop();
        // What is kept has a journal.
        let staged = names(&site.directories.staging());
        let journals = staged.iter().filter(|name| name.ends_with(".journal"));
        assert_eq!(journals.count() * 2, staged.len(), "{staged:?}");
        // Let one finish a job.
        let mut daemon = site.start();
        let done = site.count(JobState::Completed);
        daemon.wait(60, "one more job is done", || {
            all_done() || site.count(JobState::Completed) > done
        });
        daemon.stop();
    }
    let mut daemon = site.start();
    daemon.wait(30, "all is quiet", || site.is_quiet());
    daemon.stop();
    assert_eq!(site.count(JobState::Completed), 4);
    assert!(
        site.records().iter().all(|record| record.attempts == 1),
        "{:?}",
        site.records()
    );
}
