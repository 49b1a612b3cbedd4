//! `make bench`: latency, load and speed, measured here and printed beside their targets.
//!
//! Builds its own inputs beneath a temporary directory (TMPDIR chooses where), starts the daemon
//! that was built beside it, and compares with the installed qemu-img in the same run.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

const LATENCY_SAMPLES: usize = 200;
const FEW: usize = 1_000;
const MANY: usize = 10_000;
const IDLE_SECONDS: u64 = 20;
const PAIRS: usize = 5;
/// The longest wait for anything.
const LIMIT: Duration = Duration::from_secs(1800);

fn main() -> Result<()> {
    let programs = std::env::current_exe()?;
    let programs = programs
        .parent()
        .context("the program's directory")?
        .to_path_buf();
    let top = tempfile::tempdir()?;
    println!("{:<44} {:>14} {:>14}", "measured", "result", "target");
    let tiny = tiny_disk(top.path())?;
    latency(&programs, &top.path().join("latency"), &tiny)?;
    load(&programs, &top.path().join("load"), &tiny)?;
    speed(&programs, top.path())
}

fn row(what: &str, result: String, target: &str) {
    println!("{what:<44} {result:>14} {target:>14}");
}

/// A daemon on directories of its own; killed when dropped.
struct Daemon {
    child: Child,
    queue: PathBuf,
    output: PathBuf,
}

impl Daemon {
    fn start(programs: &Path, top: &Path) -> Result<Self> {
        fs::create_dir_all(top)?;
        let config = top.join("bench.toml");
        let cores = std::thread::available_parallelism()?;
        fs::write(&config, format!("max_concurrent_jobs = {cores}\n"))?;
        let (queue, output) = (top.join("queue"), top.join("output"));
        let child = Command::new(programs.join("hyper2kvm"))
            .arg("daemon")
            .args(["--log-level", "error"])
            .arg("--config")
            .arg(&config)
            .arg("--watch-dir")
            .arg(&queue)
            .arg("--output-dir")
            .arg(&output)
            .arg("--work-dir")
            .arg(top.join("work"))
            .stdin(Stdio::null())
            .spawn()
            .context("start hyper2kvm: build it with `make build` first")?;
        let daemon = Self {
            child,
            queue,
            output,
        };
        let heartbeat = daemon.output.join(".daemon/status.json");
        until("the daemon's heartbeat", || heartbeat.exists())?;
        Ok(daemon)
    }

    /// VmHWM: the most memory it ever held, in KiB.
    fn peak_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let number = line.and_then(|line| line.split_whitespace().nth(1));
        Ok(number.context("VmHWM")?.parse()?)
    }

    /// CPU time so far, in clock ticks of 10 ms.
    fn cpu_ticks(&self) -> Result<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap_or("")
            .split_whitespace()
            .collect();
        let field = |index: usize| fields.get(index).and_then(|text| text.parse::<u64>().ok());
        Ok(field(11).context("utime")? + field(12).context("stime")?)
    }

    fn results(&self) -> usize {
        let Ok(entries) = fs::read_dir(&self.output) else {
            return 0;
        };
        entries
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().ends_with(".qcow2"))
            .count()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !is_so() {
        ensure!(begun.elapsed() < LIMIT, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    let status = status.with_context(|| format!("run {:?}", command.get_program()))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

fn qemu_img_vmdk(raw: &Path, vmdk: &Path) -> Result<()> {
    run(Command::new("qemu-img")
        .args(["convert", "-O", "vmdk", "-o", "subformat=streamOptimized"])
        .arg(raw)
        .arg(vmdk))
}

/// A streamOptimized VMDK of 1 MiB with two grains of data.
fn tiny_disk(top: &Path) -> Result<PathBuf> {
    let (raw, vmdk) = (top.join("tiny.raw"), top.join("tiny.vmdk"));
    let mut content: Vec<u8> = (0..131_072_u32)
        .flat_map(|n| (n.wrapping_mul(0x9e37) >> 3).to_le_bytes())
        .take(131_072)
        .collect();
    content.resize(1 << 20, 0);
    fs::write(&raw, content)?;
    qemu_img_vmdk(&raw, &vmdk)?;
    Ok(vmdk)
}

/// From the rename into an idle daemon's queue to the claim: the drop leaves the directory.
fn latency(programs: &Path, top: &Path, tiny: &Path) -> Result<()> {
    let daemon = Daemon::start(programs, top)?;
    let mut millis = Vec::with_capacity(LATENCY_SAMPLES);
    for number in 0..LATENCY_SAMPLES {
        let aside = top.join("aside.vmdk");
        fs::copy(tiny, &aside)?;
        let drop = daemon.queue.join(format!("vm-{number}.vmdk"));
        let begun = Instant::now();
        fs::rename(&aside, &drop)?;
        until("a claim", || fs::symlink_metadata(&drop).is_err())?;
        millis.push(begun.elapsed().as_secs_f64() * 1000.0);
        let link = daemon.output.join(format!("vm-{number}.qcow2"));
        until("a result", || link.exists())?;
    }
    millis.sort_by(f64::total_cmp);
    let at = |part: f64| millis[((millis.len() - 1) as f64 * part) as usize];
    row(
        "rename-in to claim, median of 200",
        format!("{:.1} ms", at(0.5)),
        "<= 20 ms",
    );
    row(
        "rename-in to claim, 99th of 100",
        format!("{:.1} ms", at(0.99)),
        "",
    );
    let before = daemon.cpu_ticks()?;
    std::thread::sleep(Duration::from_secs(IDLE_SECONDS));
    let used = (daemon.cpu_ticks()? - before) as f64 / 100.0;
    let share = used * 100.0 / IDLE_SECONDS as f64;
    row("idle CPU over 20 s", format!("{share:.2} %"), "~ 0");
    Ok(())
}

/// Ten thousand tiny VMs through one daemon.
fn load(programs: &Path, top: &Path, tiny: &Path) -> Result<()> {
    let daemon = Daemon::start(programs, top)?;
    let drops = top.join("drops");
    fs::create_dir(&drops)?;
    for number in 0..MANY {
        fs::copy(tiny, drops.join(format!("vm-{number}.vmdk")))?;
    }
    let begun = Instant::now();
    let drop_in = |numbers: std::ops::Range<usize>| -> Result<()> {
        for number in numbers {
            let name = format!("vm-{number}.vmdk");
            fs::rename(drops.join(&name), daemon.queue.join(&name))?;
        }
        Ok(())
    };
    drop_in(0..FEW)?;
    until_results(&daemon, FEW)?;
    let few_kib = daemon.peak_kib()?;
    drop_in(FEW..MANY)?;
    until_results(&daemon, MANY)?;
    let rate = MANY as f64 / begun.elapsed().as_secs_f64();
    let many_kib = daemon.peak_kib()?;
    row(
        "10,000 tiny VMs through one daemon",
        format!("{rate:.0} jobs/s"),
        "",
    );
    row(
        "peak memory at 1,000",
        format!("{:.1} MiB", few_kib as f64 / 1024.0),
        "",
    );
    let flat = format!("{:.1} MiB", many_kib as f64 / 1024.0);
    row("peak memory at 10,000", flat, "flat");
    Ok(())
}

fn until_results(daemon: &Daemon, count: usize) -> Result<()> {
    let begun = Instant::now();
    while daemon.results() < count {
        ensure!(
            begun.elapsed() < LIMIT,
            "only {} of {count} results",
            daemon.results()
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// One large streamOptimized VMDK of real files, against qemu-img, in turn, both synced.
fn speed(programs: &Path, top: &Path) -> Result<()> {
    let (raw, vmdk) = (top.join("files.raw"), top.join("files.vmdk"));
    let tree = top.join("tree");
    fs::create_dir(&tree)?;
    for dir in ["/usr/lib/x86_64-linux-gnu", "/usr/share"] {
        run(Command::new("sh")
            .args([
                "-c",
                "cp -a --reflink=auto \"$1\" \"$2\" || true",
                "sh",
                dir,
            ])
            .arg(&tree)
            .stderr(Stdio::null()))?;
    }
    let used = Command::new("du").args(["-sm"]).arg(&tree).output()?.stdout;
    let used_mib: u64 = String::from_utf8_lossy(&used)
        .split_whitespace()
        .next()
        .and_then(|text| text.parse().ok())
        .context("du")?;
    run(Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .arg(&tree)
        .arg(&raw)
        .arg(format!("{}M", used_mib * 3 / 2 + 512)))?;
    fs::remove_dir_all(&tree)?;
    qemu_img_vmdk(&raw, &vmdk)?;
    fs::remove_file(&raw)?;
    let mut ratios = Vec::with_capacity(PAIRS);
    for _ in 0..PAIRS {
        let target = top.join("theirs.qcow2");
        let theirs = timed(
            Command::new("qemu-img")
                .args(["convert", "-O", "qcow2", "-t", "writeback"])
                .arg(&vmdk)
                .arg(&target),
        )?;
        fs::remove_file(&target)?;
        let target = top.join("ours.qcow2");
        let ours = timed(
            Command::new(programs.join("hyper2kvm"))
                .arg("convert")
                .arg(&vmdk)
                .arg("--output")
                .arg(&target),
        )?;
        fs::remove_file(&target)?;
        ratios.push(theirs / ours);
    }
    ratios.sort_by(f64::total_cmp);
    let what = format!("streamOptimized, {used_mib} MiB of files, vs qemu-img");
    row(&what, format!("{:.1} x", ratios[PAIRS / 2]), ">= 4.5 x");
    Ok(())
}

/// Seconds until the command has ended and everything is on disk.
fn timed(command: &mut Command) -> Result<f64> {
    run(&mut Command::new("sync"))?;
    let begun = Instant::now();
    run(command)?;
    run(&mut Command::new("sync"))?;
    Ok(begun.elapsed().as_secs_f64())
}
