//! `make bench`: latency, load and speed, measured here and printed beside their targets.
//!
//! `bench [--inputs DIR] [ROW…]`: without rows all of them, and BENCHMARKS.md is written. Builds
//! its own inputs (TMPDIR chooses where) or uses and keeps those in DIR, starts the daemon that was
//! built beside it, and compares with the installed qemu-img in the same run.
mod download;
mod inputs;
mod load;
mod measure;
mod report;
mod speed;
mod streaming;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::inputs::Inputs;
use crate::report::Report;
use crate::speed::{Bench, WORKS};

/// The rows that are no conversions.
const LATENCY: &str = "latency";
const LOAD: &str = "load";
const STREAMING: &str = "streaming";
const DOWNLOAD: &str = "download";

struct Arguments {
    inputs: Option<PathBuf>,
    /// Empty: all.
    rows: Vec<String>,
}

fn main() -> Result<()> {
    let arguments = arguments()?;
    let wanted = |name: &str| {
        let rows = &arguments.rows;
        rows.is_empty() || rows.iter().any(|row| row == name)
    };
    let programs = std::env::current_exe()?;
    let programs = programs.parent().context("the program's directory")?;
    let top = tempfile::tempdir()?;
    let inputs = match &arguments.inputs {
        Some(directory) => Inputs::new(directory)?,
        None => Inputs::new(&top.path().join("inputs"))?,
    };
    let bench = Bench {
        hyper2kvm: &programs.join("hyper2kvm"),
        inputs: &inputs,
        scratch: top.path(),
    };
    let mut report = Report::new(top.path())?;
    report.begin();
    for work in WORKS.iter().filter(|work| wanted(work.name)) {
        report.add(work, bench.run(work).context(work.what)?);
    }
    let tiny = load::tiny_disk(top.path())?;
    if wanted(LATENCY) {
        let lines = load::latency(programs, &top.path().join(LATENCY), &tiny)?;
        report.add_lines(lines);
    }
    if wanted(LOAD) {
        report.add_lines(load::load(programs, &top.path().join(LOAD), &tiny)?);
    }
    if wanted(STREAMING) {
        let lines = streaming::streaming(programs, &top.path().join(STREAMING))?;
        report.add_lines(lines);
    }
    if wanted(DOWNLOAD) {
        let lines = download::download(programs, &top.path().join(DOWNLOAD))?;
        report.add_lines(lines);
    }
    if arguments.rows.is_empty() {
        report.write()?;
    }
    Ok(())
}

fn arguments() -> Result<Arguments> {
    let mut arguments = Arguments {
        inputs: None,
        rows: Vec::new(),
    };
    let mut given = std::env::args().skip(1);
    while let Some(argument) = given.next() {
        if argument == "--inputs" {
            let directory = given.next().context("--inputs needs a directory")?;
            arguments.inputs = Some(directory.into());
            continue;
        }
        let names = WORKS
            .iter()
            .map(|work| work.name)
            .chain([LATENCY, LOAD, STREAMING, DOWNLOAD]);
        if !names.clone().any(|name| name == argument) {
            let names: Vec<_> = names.collect();
            bail!("there is no row {argument:?}: {}", names.join(", "));
        }
        arguments.rows.push(argument);
    }
    Ok(arguments)
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    let status = status.with_context(|| format!("run {:?}", command.get_program()))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
