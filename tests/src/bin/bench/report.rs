//! The table: printed row by row, and written as BENCHMARKS.md with the machine that it is of.
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::speed::{CLOSE_ROUNDS, Outcome, ROUNDS, Target, Work};

const MIB: f64 = 1_048_576.0;
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../BENCHMARKS.md");
const HEADINGS: [&str; 9] = [
    "to qcow2 from",
    "× qemu-img",
    "target",
    "reached",
    "seconds (theirs)",
    "CPU s (theirs)",
    "peak MiB (theirs)",
    "size (theirs)",
    "÷ copy",
];

/// A result that is not compared.
pub struct Line {
    pub what: String,
    pub result: String,
    pub target: &'static str,
}

pub struct Report {
    machine: Vec<(&'static str, String)>,
    rows: Vec<[String; HEADINGS.len()]>,
    lines: Vec<Line>,
}

impl Report {
    /// `scratch` is where the results are written.
    pub fn new(scratch: &Path) -> Result<Self> {
        Ok(Self {
            machine: machine(scratch)?,
            rows: Vec::new(),
            lines: Vec::new(),
        })
    }

    pub fn begin(&self) {
        for (what, value) in &self.machine {
            println!("{what}: {value}");
        }
        println!("{}", line(&HEADINGS.map(str::to_owned)));
    }

    pub fn add(&mut self, work: &Work, outcome: Outcome) {
        let row = row(work, &outcome);
        println!("{}", line(&row));
        self.rows.push(row);
    }

    pub fn add_lines(&mut self, lines: Vec<Line>) {
        for Line {
            what,
            result,
            target,
        } in &lines
        {
            println!("| {what:<36} | {result:>14} | {target:>10} |");
        }
        self.lines.extend(lines);
    }

    pub fn write(&self) -> Result<()> {
        fs::write(FILE, self.text()?).with_context(|| format!("write {FILE}"))
    }

    fn text(&self) -> Result<String> {
        let mut text = String::from("# Benchmarks\n\nThe latest run of `make bench`.\n\n");
        for (what, value) in &self.machine {
            writeln!(text, "- {what}: {value}")?;
        }
        write!(text, "\n{}\n|", line(&HEADINGS.map(str::to_owned)))?;
        HEADINGS.iter().for_each(|_| text.push_str("---|"));
        text.push('\n');
        for row in &self.rows {
            writeln!(text, "{}", line(row))?;
        }
        write!(
            text,
            "\nThe disk is an ext4 file system of 8 GiB with 900 MiB of the files of /usr: texts, \
             programs, and what is compressed already. Times are medians of {ROUNDS} rounds, \
             of {CLOSE_ROUNDS} for streamOptimized → compressed and VHD, whose ratios lie near \
             their targets; in each, qemu-img and hyper2kvm took turns, with everything synced \
             before and after, and the sources in the page cache. × qemu-img is the median of the \
             rounds' own ratios. ÷ copy is our time divided by that of `cp --sparse=always` of \
             the result: the same bytes read from the page cache and written through it, looked \
             at by nobody; \
             where no target speaks of it, it was measured in the first round only. \
             The results were checked with `qemu-img check`, and compared by `qemu-img compare` \
             with the raw disk that their sources were made of.\n\n"
        )?;
        text.push_str("| the queue | result | target |\n|---|---|---|\n");
        for Line {
            what,
            result,
            target,
        } in &self.lines
        {
            writeln!(text, "| {what} | {result} | {target} |")?;
        }
        text.push_str(
            "\nThe download is hyperexport's, of a streamOptimized VMDK from the simulator on this \
             host, which needs its own share of the cores: MB per CPU second is what a core of the \
             exporter does, with decrypting, SHA-256, BLAKE3 and writing. To a tmpfs no disk is in \
             the way. curl and sha256sum compute one hash.\n",
        );
        Ok(text)
    }
}

fn line(cells: &[String]) -> String {
    format!("| {} |", cells.join(" | "))
}

fn row(work: &Work, outcome: &Outcome) -> [String; HEADINGS.len()] {
    let both = |ours: String, theirs: Option<String>| match theirs {
        Some(theirs) => format!("{ours} ({theirs})"),
        None => ours,
    };
    let seconds = |seconds: f64| format!("{seconds:.2}");
    let mib = |bytes: u64| format!("{:.0}", bytes as f64 / MIB);
    let theirs = outcome.theirs.as_ref();
    let missed = missed(&work.target, outcome);
    let reached = if missed.is_empty() {
        "yes".to_owned()
    } else {
        format!("no: {}", missed.join(", "))
    };
    [
        work.what.to_owned(),
        outcome
            .ratio
            .map_or("–".to_owned(), |ratio| format!("{ratio:.1}")),
        wanted(&work.target),
        reached,
        both(
            seconds(outcome.ours.seconds),
            theirs.map(|theirs| seconds(theirs.seconds)),
        ),
        both(
            seconds(outcome.ours.cpu_seconds),
            theirs.map(|theirs| seconds(theirs.cpu_seconds)),
        ),
        both(
            mib(outcome.ours.peak_bytes),
            theirs.map(|theirs| mib(theirs.peak_bytes)),
        ),
        both(mib(outcome.our_bytes), outcome.their_bytes.map(mib)),
        format!("{:.2} of {:.2} s", outcome.copies, outcome.copy.seconds),
    ]
}

fn wanted(target: &Target) -> String {
    let parts = [
        target.ratio.map(|ratio| format!("≥ {ratio:.1} ×")),
        target.copies.map(|copies| format!("≤ {copies:.1} ÷ copy")),
        target.size.map(|_| "no larger".to_owned()),
        target.seconds.map(|seconds| format!("< {seconds} s")),
        target.peak_mib.map(|mib| format!("< {mib} MiB")),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn missed(target: &Target, outcome: &Outcome) -> Vec<&'static str> {
    let size = |bytes: u64| outcome.our_bytes as f64 / bytes as f64;
    let above = |value: Option<f64>, most: Option<f64>| match (value, most) {
        (value, Some(most)) => value.is_none_or(|value| value > most),
        (_, None) => false,
    };
    let below = target
        .ratio
        .is_some_and(|least| outcome.ratio.is_none_or(|ratio| ratio < least));
    let peak_mib = outcome.ours.peak_bytes as f64 / MIB;
    let misses = [
        (below, "ratio"),
        (above(Some(outcome.copies), target.copies), "copy"),
        (above(outcome.their_bytes.map(size), target.size), "size"),
        (above(Some(outcome.ours.seconds), target.seconds), "time"),
        (above(Some(peak_mib), target.peak_mib), "memory"),
    ];
    misses
        .into_iter()
        .filter(|(is_missed, _)| *is_missed)
        .map(|(_, what)| what)
        .collect()
}

fn machine(scratch: &Path) -> Result<Vec<(&'static str, String)>> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let memory = fs::read_to_string("/proc/meminfo")?;
    let kib: f64 = field(&memory, "MemTotal")
        .split_whitespace()
        .next()
        .and_then(|number| number.parse().ok())
        .context("MemTotal of /proc/meminfo")?;
    let scratch = scratch.to_string_lossy();
    let file_system = output("df", &["--output=fstype", &scratch])?;
    let project = env!("CARGO_MANIFEST_DIR");
    let git = ["-C", project, "describe", "--always", "--dirty"];
    let qemu_img = output("qemu-img", &["--version"])?;
    Ok(vec![
        (
            "CPU",
            format!(
                "{}, {} cores",
                field(&cpus, "model name"),
                std::thread::available_parallelism()?
            ),
        ),
        ("memory", format!("{:.0} GiB", kib / (1 << 20) as f64)),
        ("kernel", output("uname", &["-r"])?.trim().to_owned()),
        (
            "file system of the results",
            file_system.lines().last().unwrap_or_default().to_owned(),
        ),
        (
            "compared with",
            qemu_img.lines().next().unwrap_or_default().to_owned(),
        ),
        ("date", output("date", &["-u", "+%F"])?.trim().to_owned()),
        ("commit", output("git", &git)?.trim().to_owned()),
    ])
}

/// The value of the first line `name: value`.
fn field<'a>(text: &'a str, name: &str) -> &'a str {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map_or("", |(_, value)| value.trim())
}

fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("run {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
