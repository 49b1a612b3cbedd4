//! The queue: how soon a drop is claimed, what an idle daemon costs, ten thousand VMs.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::inputs::contain;
use crate::report::Line;

const LATENCY_SAMPLES: usize = 200;
const FEW: usize = 1_000;
const MANY: usize = 10_000;
const IDLE_SECONDS: u64 = 20;
/// The longest wait for anything.
const LIMIT: Duration = Duration::from_secs(1800);

/// A daemon on directories of its own; killed when dropped.
pub struct Daemon {
    child: Child,
    pub queue: PathBuf,
    pub output: PathBuf,
}

impl Daemon {
    pub fn start(programs: &Path, top: &Path) -> Result<Self> {
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

pub fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !is_so() {
        ensure!(begun.elapsed() < LIMIT, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// A streamOptimized VMDK of 1 MiB with two grains of data.
pub fn tiny_disk(top: &Path) -> Result<PathBuf> {
    let (raw, vmdk) = (top.join("tiny.raw"), top.join("tiny.vmdk"));
    let mut content: Vec<u8> = (0..131_072_u32)
        .flat_map(|n| (n.wrapping_mul(0x9e37) >> 3).to_le_bytes())
        .take(131_072)
        .collect();
    content.resize(1 << 20, 0);
    fs::write(&raw, content)?;
    contain(&raw, "vmdk", "subformat=streamOptimized", &vmdk)?;
    Ok(vmdk)
}

/// From the rename into an idle daemon's queue to the claim: the drop leaves the directory.
pub fn latency(programs: &Path, top: &Path, tiny: &Path) -> Result<Vec<Line>> {
    let daemon = Daemon::start(programs, top)?;
    let mut millis = Vec::with_capacity(LATENCY_SAMPLES);
    for number in 0..LATENCY_SAMPLES {
        let aside = top.join("aside.vmdk");
        fs::copy(tiny, &aside)?;
        let drop = daemon.queue.join(format!("vm{number:05}.vmdk"));
        let begun = Instant::now();
        fs::rename(&aside, &drop)?;
        until("a claim", || fs::symlink_metadata(&drop).is_err())?;
        millis.push(begun.elapsed().as_secs_f64() * 1000.0);
        let link = daemon.output.join(format!("vm{number:05}.qcow2"));
        until("a result", || link.exists())?;
    }
    millis.sort_by(f64::total_cmp);
    let at = |part: f64| millis[((millis.len() - 1) as f64 * part) as usize];
    let before = daemon.cpu_ticks()?;
    std::thread::sleep(Duration::from_secs(IDLE_SECONDS));
    let used = (daemon.cpu_ticks()? - before) as f64 / 100.0;
    let share = used * 100.0 / IDLE_SECONDS as f64;
    Ok(vec![
        row(
            "rename-in to claim, median of 200",
            format!("{:.1} ms", at(0.5)),
            "≤ 20 ms",
        ),
        row(
            "rename-in to claim, 99th of 100",
            format!("{:.1} ms", at(0.99)),
            "",
        ),
        row("idle CPU over 20 s", format!("{share:.2} %"), "~ 0"),
    ])
}

/// Ten thousand tiny VMs through one daemon.
pub fn load(programs: &Path, top: &Path, tiny: &Path) -> Result<Vec<Line>> {
    let daemon = Daemon::start(programs, top)?;
    let drops = top.join("drops");
    fs::create_dir(&drops)?;
    for number in 0..MANY {
        fs::copy(tiny, drops.join(format!("vm{number:05}.vmdk")))?;
    }
    let begun = Instant::now();
    let drop_in = |numbers: std::ops::Range<usize>| -> Result<()> {
        for number in numbers {
            let name = format!("vm{number:05}.vmdk");
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
    let mib = |kib: u64| format!("{:.1} MiB", kib as f64 / 1024.0);
    Ok(vec![
        row(
            "10,000 tiny VMs through one daemon",
            format!("{rate:.0} jobs/s"),
            "",
        ),
        row("peak memory at 1,000", mib(few_kib), ""),
        row("peak memory at 10,000", mib(many_kib), "flat"),
    ])
}

pub fn row(what: &str, result: String, target: &'static str) -> Line {
    Line {
        what: what.to_owned(),
        result,
        target,
    }
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
