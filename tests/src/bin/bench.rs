//! `make bench`: latency, load, idleness and speed of the built daemon, each beside its target.
//!
//! Needs a release build and a quiet machine; says so if it is given neither. Judges nothing:
//! it measures and prints.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use hyper2kvm_tests::daemon::{Daemon, Site, names, wait};
use hyper2kvm_tests::images::{self, text};
use queue::job::JobState;

const CLAIMS: usize = 200;
const TINY: usize = 10_000;
const FEW: usize = 1_000;
const IDLE: Duration = Duration::from_secs(20);
const ROUNDS: usize = 5;

fn main() {
    if cfg!(debug_assertions) {
        println!("this is a debug build: figures mean nothing; use `make bench`");
    }
    println!("{:<52} {:>14}   target", "measure", "figure");
    idle();
    latency();
    load();
    speed();
}

fn row(measure: &str, figure: &str, target: &str) {
    println!("{measure:<52} {figure:>14}   {target}");
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

/// A small sparse VMDK.
fn tiny(dir: &Path) -> PathBuf {
    let raw = images::raw_disk(
        &dir.join("tiny.raw"),
        1 << 20,
        &[(0, &images::noise(1, 4096))],
    );
    images::vmdk(&raw, "monolithicSparse", &dir.join("tiny"))
}

/// From the rename into the queue to the drop's disappearance from it, seen by watching closely.
fn latency() {
    let site = Site::new("rescan_seconds = 3600\n");
    let file = tiny(site.top.path());
    let mut daemon = site.start();
    let mut times = Vec::with_capacity(CLAIMS);
    for number in 0..CLAIMS {
        let drop = site.directories.queue.join(format!("vm{number}.vmdk"));
        let unfinished = drop.with_extension("vmdk.part");
        fs::copy(&file, &unfinished).unwrap();
        let begun = Instant::now();
        fs::rename(&unfinished, &drop).unwrap();
        while fs::symlink_metadata(&drop).is_ok() {
            assert!(begun.elapsed() < Duration::from_secs(60), "not claimed");
            std::hint::spin_loop();
        }
        times.push(begun.elapsed());
        // An idle daemon is what a producer meets.
        let link = site.link(&format!("vm{number}"));
        daemon.wait(60, "a tiny VM is done", || link.exists() && site.is_quiet());
    }
    daemon.stop();
    times.sort_unstable();
    row(
        "rename-in to claim, median of 200",
        &milliseconds(times[CLAIMS / 2]),
        "<= 20 ms",
    );
    row(
        "rename-in to claim, 99th percentile",
        &milliseconds(times[CLAIMS * 99 / 100]),
        "-",
    );
}

fn load() {
    let site = Site::new("rescan_seconds = 3600\nmax_concurrent_jobs = 2\n");
    let file = tiny(site.top.path());
    let mut daemon = site.start();
    let done = |at_least: usize| {
        let records = names(&site.directories.processed()).len();
        records >= at_least
    };
    let begun = Instant::now();
    let mut delivered = 0;
    let mut peaks = Vec::new();
    for (count, limit_seconds) in [(FEW, 600), (TINY, 3600)] {
        for number in delivered..count {
            site.deliver(&file, &format!("vm{number:05}.vmdk"));
        }
        delivered = count;
        daemon.wait(limit_seconds, "the tiny VMs are done", || {
            std::thread::sleep(Duration::from_millis(100));
            done(count)
        });
        peaks.push((begun.elapsed(), peak_kibibytes(&daemon)));
    }
    daemon.wait(60, "all is quiet", || site.is_quiet());
    assert_eq!(site.count(JobState::Completed), TINY);
    daemon.stop();
    let rate = TINY as f64 / peaks[1].0.as_secs_f64();
    row(
        "10,000 tiny VMs through one daemon",
        &format!("{rate:.0} jobs/s"),
        "-",
    );
    row(
        "peak memory after 1,000",
        &format!("{} KiB", peaks[0].1),
        "-",
    );
    let growth = peaks[1].1 as f64 / peaks[0].1 as f64;
    row(
        "peak memory after 10,000",
        &format!("{} KiB", peaks[1].1),
        "flat",
    );
    row(
        "  of that after 1,000",
        &format!("{growth:.2} x"),
        "<= 1.2 x",
    );
}

/// VmHWM of /proc/PID/status: the most resident memory so far.
fn peak_kibibytes(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn idle() {
    let site = Site::new("");
    let file = tiny(site.top.path());
    let mut daemon = site.start();
    site.deliver(&file, "vm.vmdk");
    daemon.wait(60, "a tiny VM is done", || {
        site.link("vm").exists() && site.is_quiet()
    });
    let before = processor_ticks(&daemon);
    // Nothing may happen: there is no condition to wait for.
    wait(IDLE, || false);
    let ticks = processor_ticks(&daemon) - before;
    daemon.stop();
    let share = ticks as f64 / ticks_per_second() / IDLE.as_secs_f64() * 100.0;
    row(
        "processor time of an idle daemon over 20 s",
        &format!("{share:.2} %"),
        "<= 0.5 %",
    );
}

/// utime and stime of /proc/PID/stat, fields 14 and 15.
fn processor_ticks(daemon: &Daemon) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
    let fields = stat.rsplit_once(')').unwrap().1;
    fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse::<u64>().unwrap())
        .sum()
}

fn ticks_per_second() -> f64 {
    let variable = nix::unistd::SysconfVar::CLK_TCK;
    nix::unistd::sysconf(variable).unwrap().unwrap() as f64
}

/// The daemon's engine against qemu-img, both up to fsync, in pairs on the same source.
fn speed() {
    let top = tempfile::tempdir().unwrap();
    let dir = top.path();
    let raw = typical(dir);
    let source = images::vmdk(&raw, "streamOptimized", &dir.join("source"));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let target = |who: &str| dir.join(format!("{who}-{round}.qcow2"));
        theirs.push(timed(qemu(&source, &target("theirs")), &target("theirs")));
        let mut command = Command::new(hyper2kvm_tests::daemon::program());
        command
            .args(["convert", "--no-fix", text(&source), "--output"])
            .arg(target("ours"));
        ours.push(timed(command, &target("ours")));
        if round == 0 {
            images::judge(&raw, &target("ours"), "qcow2");
        }
        for who in ["ours", "theirs"] {
            fs::remove_file(target(who)).unwrap();
        }
    }
    let mut ratios: Vec<f64> = ours
        .iter()
        .zip(&theirs)
        .map(|(o, t)| o.as_secs_f64() / t.as_secs_f64())
        .collect();
    ratios.sort_by(f64::total_cmp);
    ours.sort_unstable();
    theirs.sort_unstable();
    let middle = ROUNDS / 2;
    row(
        "streamOptimized to qcow2, hyper2kvm, 1 GiB",
        &milliseconds(ours[middle]),
        "-",
    );
    row(
        "streamOptimized to qcow2, qemu-img, 1 GiB",
        &milliseconds(theirs[middle]),
        "-",
    );
    row(
        "  ratio, median of 5 pairs",
        &format!("{:.2}", ratios[middle]),
        "<= 1",
    );
}

fn qemu(source: &Path, target: &Path) -> Command {
    let mut command = Command::new("qemu-img");
    command.args([
        "convert",
        "-f",
        "vmdk",
        "-O",
        "qcow2",
        text(source),
        text(target),
    ]);
    command
}

/// The time until the command is done and its output is on the disk.
fn timed(mut command: Command, target: &Path) -> Duration {
    let begun = Instant::now();
    let output = command.output().expect("qemu-img and hyper2kvm can be run");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    fs::File::open(target).unwrap().sync_all().unwrap();
    begun.elapsed()
}

/// 1 GiB, half of it used: text that compresses, noise that does not.
fn typical(dir: &Path) -> PathBuf {
    let text = b"a line of a log file, of which there are many on every disk\n".repeat(1 << 17);
    let mut pieces: Vec<(u64, Vec<u8>)> = Vec::new();
    for number in 0..32u64 {
        let offset = number * (32 << 20);
        pieces.push((offset, images::noise(number + 1, 8 << 20)));
        pieces.push((offset + (12 << 20), text.clone()));
    }
    let pieces: Vec<(u64, &[u8])> = pieces.iter().map(|(at, bytes)| (*at, &bytes[..])).collect();
    images::raw_disk(&dir.join("typical.raw"), 1 << 30, &pieces)
}
