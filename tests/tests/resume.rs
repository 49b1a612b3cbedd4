//! Real interruptions: a daemon is killed or stopped far into a conversion; the next one goes on
//! where it durably was, and the result is the same to the byte.
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use hyper2kvm_tests::daemon::{Daemon, Site, names, program};
use hyper2kvm_tests::images;
use queue::job::{JobState, Record};

/// Slow enough that a look at the record hits every tenth of the way.
const CONFIG: &str = "checkpoint_mib = 4\ncompress = \"zlib\"\ncompress_level = 9\n\
                      rescan_seconds = 1\nmax_concurrent_jobs = 1\n";

/// Real content, of this size: this very program, again and again.
fn real_disk(path: &Path, size_bytes: u64) -> PathBuf {
    let program = fs::read(std::env::current_exe().unwrap()).unwrap();
    let file = File::create(path).unwrap();
    let mut offset = 0;
    while offset < size_bytes {
        let length = (size_bytes - offset).min(program.len() as u64) as usize;
        file.write_all_at(&program[..length], offset).unwrap();
        offset += length as u64;
    }
    path.to_path_buf()
}

fn record_of(site: &Site, vm: &str) -> Option<Record> {
    let mut records = site.records().into_iter();
    records.find(|record| record.vm_name == vm)
}

/// Waits until the record tells of so many percent.
fn wait_for(daemon: &mut Daemon, site: &Site, vm: &str, percent: f64) -> Record {
    let mut seen = None;
    daemon.wait(300, &format!("{vm} is at {percent} %"), || {
        seen = record_of(site, vm).filter(|record| {
            record.state == JobState::Processing && record.progress.percent >= percent
        });
        seen.is_some()
    });
    seen.unwrap()
}

/// All bytes that a process has read.
fn read_bytes(daemon: &Daemon) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/io", daemon.pid())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.unwrap().parse().unwrap()
}

/// Two images, or a first difference.
fn assert_same(left: &Path, right: &Path) {
    images::run(
        "diffutils",
        "cmp",
        &[images::text(left), images::text(right)],
    );
}

fn finish(site: &Site, daemon: &mut Daemon, vm: &str) -> Record {
    daemon.wait(300, &format!("{vm} is done"), || {
        site.link(vm).exists() && site.is_quiet()
    });
    let record = record_of(site, vm).unwrap();
    assert_eq!(record.state, JobState::Completed);
    record
}

/// The only source that is claimed.
fn claimed(site: &Site, name: &str) -> PathBuf {
    let jobs = names(&site.directories.processing());
    let [job] = &jobs[..] else {
        panic!("{jobs:?}");
    };
    site.directories
        .processing()
        .join(job)
        .join("source")
        .join(name)
}

#[test]
fn killed_at_four_fifths_the_rest_is_a_fifth() {
    let site = Site::new(CONFIG);
    let size = 160 << 20;
    let raw = real_disk(&site.top.path().join("disk.raw"), size);
    site.deliver(&raw, "vm1.raw");
    let mut daemon = site.start();
    let killed = wait_for(&mut daemon, &site, "vm1", 80.0);
    assert!(killed.progress.rate_bytes_per_second > 0 && killed.progress.eta_seconds.is_some());
    assert_eq!((killed.progress.disk, killed.progress.disks), (1, 1));
    daemon.kill();

    let mut daemon = site.start();
    let record = finish(&site, &mut daemon, "vm1");
    let worked = read_bytes(&daemon);
    let resumed = record.disks[0].resumed_bytes;
    println!(
        "killed at {} %; {} % resumed; the second run read {} % of the source",
        killed.progress.percent,
        resumed * 100 / size,
        worked * 100 / size,
    );
    assert!(resumed * 10 >= size * 7, "only {resumed} of {size} bytes");
    assert!(
        worked * 10 <= size * 3,
        "{worked} of {size} bytes were read again"
    );
    assert_eq!(record.progress.resumed_bytes, resumed);
    assert_eq!(record.attempts, 2);
    let metadata = site.directories.output.join("vm1/metadata.json");
    let metadata: serde_json::Value = serde_json::from_slice(&fs::read(metadata).unwrap()).unwrap();
    assert_eq!(metadata["attempts"], 2);
    assert_eq!(metadata["disks"][0]["resumed_bytes"], resumed);
    let mut published = names(&site.directories.output.join("vm1"));
    published.retain(|name| {
        !matches!(
            &name[..],
            "domain.xml" | "metadata.json" | "change-report.json"
        )
    });
    assert_eq!(published, ["vm1.qcow2"]);

    site.deliver(&raw, "vm2.raw");
    let whole = finish(&site, &mut daemon, "vm2");
    daemon.stop();
    assert_eq!((whole.attempts, whole.disks[0].resumed_bytes), (1, 0));
    assert_same(&site.link("vm1"), &site.link("vm2"));
    images::judge(&raw, &site.link("vm1"), "qcow2");
    let link = site.link("vm1");
    images::run(
        "hyper2kvm",
        images::text(program()),
        &["verify", images::text(&link)],
    );
}

#[test]
fn a_source_that_changed_starts_over() {
    let site = Site::new(CONFIG);
    let raw = real_disk(&site.top.path().join("disk.raw"), 96 << 20);
    site.deliver(&raw, "vm1.raw");
    let mut daemon = site.start();
    wait_for(&mut daemon, &site, "vm1", 50.0);
    daemon.kill();
    assert!(
        names(&site.directories.staging())
            .iter()
            .any(|name| name.ends_with(".journal"))
    );
    for path in [&claimed(&site, "vm1.raw"), &raw] {
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(b"changed behind our back", 70_000)
            .unwrap();
    }
    let mut daemon = site.start();
    let record = finish(&site, &mut daemon, "vm1");
    assert!(daemon.log().contains("starts over"), "{}", daemon.log());
    daemon.stop();
    assert_eq!(record.disks[0].resumed_bytes, 0);
    images::judge(&raw, &site.link("vm1"), "qcow2");
}

/// A stop is a checkpoint; and of several disks those that are finished are not done again.
#[test]
fn stopped_at_the_third_disk_it_goes_on_there() {
    let site = Site::new(&CONFIG.replace("checkpoint_mib = 4", "checkpoint_mib = 1024"));
    let top = site.top.path();
    let raws: Vec<PathBuf> = [24 << 20, 16 << 20, 64 << 20]
        .into_iter()
        .enumerate()
        .map(|(number, size)| real_disk(&top.join(format!("disk{number}.raw")), size))
        .collect();
    let job = site.directories.queue.join(".incoming/unfinished");
    fs::create_dir_all(&job).unwrap();
    let mut disks = Vec::new();
    for raw in &raws {
        let name = raw.file_name().unwrap().to_str().unwrap();
        fs::copy(raw, job.join(name)).unwrap();
        disks.push((name.to_owned(), fs::metadata(raw).unwrap().len()));
    }
    let disks: Vec<(&str, u64)> = disks.iter().map(|(name, size)| (&**name, *size)).collect();
    fs::write(job.join("vm.ovf"), images::ovf(&disks)).unwrap();
    let mut daemon = site.start();
    let files = disks.iter().map(|(name, _)| *name);
    for name in ["vm.ovf"].into_iter().chain(files) {
        fs::rename(job.join(name), site.directories.queue.join(name)).unwrap();
    }
    // 40 of 104 MiB are the first two.
    let stopped = wait_for(&mut daemon, &site, "web-01", 60.0);
    assert_eq!((stopped.progress.disk, stopped.progress.disks), (3, 3));
    daemon.stop();
    assert_eq!(record_of(&site, "web-01").unwrap().state, JobState::Queued);

    let mut daemon = site.start();
    let record = finish(&site, &mut daemon, "web-01");
    let worked = read_bytes(&daemon);
    daemon.stop();
    assert_eq!(record.attempts, 1, "a stop is nobody's failure");
    let all = 104 << 20;
    assert!(
        worked * 100 <= all * 50,
        "{worked} of {all} bytes were read again"
    );
    assert_eq!(record.disks[0].resumed_bytes, 24 << 20);
    assert_eq!(record.disks[1].resumed_bytes, 16 << 20);
    assert!(record.disks[2].resumed_bytes > 16 << 20);
    for (raw, disk) in raws.iter().zip(&record.disks) {
        let image = site.directories.output.join("web-01").join(&disk.name);
        images::judge(raw, &image, "qcow2");
    }
}
