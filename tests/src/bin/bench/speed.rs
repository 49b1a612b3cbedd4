//! Conversions against the installed qemu-img, in turn: what each row is, and how it is run.
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use hyper2kvm_tests::mount::Mount;

use crate::inputs::{Input, Inputs};
use crate::measure::{Measure, measure, median};
use crate::run;

/// What both programs are asked for, and what is to be reached.
pub struct Work {
    pub name: &'static str,
    pub what: &'static str,
    input: Input,
    place: Place,
    ours: &'static [&'static str],
    /// Of `qemu-img convert`; `None`: not compared.
    theirs: Option<&'static [&'static str]>,
    rounds: usize,
    pub target: Target,
}

/// Each row's rounds, and those of a row whose ratio lies near its target.
pub const ROUNDS: usize = 5;
pub const CLOSE_ROUNDS: usize = 9;

/// Where source and result are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Scratch,
    /// A file system of this kind on a loop device.
    Loop(&'static str),
}

/// What is to be reached; `None`: nothing was said about it.
#[derive(Default, Clone, Copy)]
pub struct Target {
    /// Their time divided by ours, at least.
    pub ratio: Option<f64>,
    /// Our time divided by that of a plain copy of the result, at most.
    pub copies: Option<f64>,
    /// The size of our result divided by that of theirs, at most.
    pub size: Option<f64>,
    pub seconds: Option<f64>,
    pub peak_mib: Option<f64>,
}

const fn ratio(ratio: f64) -> Target {
    Target {
        ratio: Some(ratio),
        copies: None,
        size: None,
        seconds: None,
        peak_mib: None,
    }
}

const fn work(name: &'static str, what: &'static str, input: Input, target: Target) -> Work {
    Work {
        name,
        what,
        input,
        place: Place::Scratch,
        ours: &[],
        theirs: Some(&["-W", "-m", "16", "-t", "writeback"]),
        rounds: ROUNDS,
        target,
    }
}

pub const WORKS: [Work; 11] = [
    Work {
        theirs: Some(&["-t", "writeback"]),
        ..work("stream", "streamOptimized", Input::Stream, ratio(4.5))
    },
    Work {
        ours: &["--compress", "zlib"],
        theirs: Some(&["-c", "-W", "-m", "16", "-t", "writeback"]),
        rounds: CLOSE_ROUNDS,
        ..work(
            "packed",
            "streamOptimized → compressed",
            Input::Stream,
            ratio(20.0),
        )
    },
    work("sparse", "monolithicSparse", Input::Sparse, ratio(1.8)),
    work("vhdx", "VHDX", Input::Vhdx, ratio(1.8)),
    Work {
        rounds: CLOSE_ROUNDS,
        ..work("vhd", "VHD", Input::Vhd, ratio(1.8))
    },
    work("flat", "monolithicFlat", Input::Flat, AT_THE_LIMIT),
    work("raw", "raw", Input::Raw, AT_THE_LIMIT),
    Work {
        ours: &["--compress", "zstd"],
        theirs: Some(&[
            "-c",
            "-o",
            "compression_type=zstd",
            "-W",
            "-m",
            "16",
            "-t",
            "writeback",
        ]),
        ..work(
            "zstd",
            "monolithicFlat → zstd",
            Input::Flat,
            Target {
                size: Some(1.0),
                ..ratio(1.5)
            },
        )
    },
    Work {
        place: Place::Loop("xfs"),
        ..work("xfs", "raw on XFS", Input::Raw, ratio(50.0))
    },
    Work {
        place: Place::Loop("btrfs"),
        ..work("btrfs", "raw on btrfs", Input::Raw, ratio(50.0))
    },
    Work {
        theirs: None,
        ..work(
            "huge",
            "VHDX of 8 TiB with 100 MiB",
            Input::Huge,
            Target {
                ratio: None,
                seconds: Some(2.0),
                peak_mib: Some(128.0),
                ..ratio(0.0)
            },
        )
    },
];

const AT_THE_LIMIT: Target = Target {
    copies: Some(1.1),
    ..ratio(1.0)
};

/// The medians of a row's rounds.
pub struct Outcome {
    pub ours: Measure,
    pub theirs: Option<Measure>,
    /// Of the times of each round, theirs divided by ours.
    pub ratio: Option<f64>,
    /// `cp --sparse=always` of our result.
    pub copy: Measure,
    /// Our time divided by that of the copy.
    pub copies: f64,
    pub our_bytes: u64,
    pub their_bytes: Option<u64>,
}

/// What is measured with, and where.
pub struct Bench<'a> {
    pub hyper2kvm: &'a Path,
    pub inputs: &'a Inputs,
    pub scratch: &'a Path,
}

/// One round: theirs, ours and a plain copy of ours, where a target or the first round asks for it.
struct Round {
    theirs: Option<Measure>,
    ours: Measure,
    copy: Option<Measure>,
}

impl Bench<'_> {
    /// Runs `work` in rounds; the first result is compared with the disk of the input.
    pub fn run(&self, work: &Work) -> Result<Outcome> {
        let mut source = self.inputs.get(work.input)?;
        let mount;
        let mut place = self.scratch;
        if let Place::Loop(kind) = work.place {
            let image = self.scratch.join(format!("{kind}.img"));
            mount = Mount::formatted(kind, &image, 6 << 30, &self.scratch.join(kind));
            // The mount holds on to the file.
            fs::remove_file(&image)?;
            place = mount.path();
            let copy = place.join("files.raw");
            run(&mut plain_copy(&source, &copy))?;
            source = copy;
        }
        warm(source.parent().context("the input's directory")?)?;
        let (ours, theirs) = (place.join("ours.qcow2"), place.join("theirs.qcow2"));
        let mut rounds = Vec::with_capacity(work.rounds);
        let (mut our_bytes, mut their_bytes) = (0, None);
        for number in 0..work.rounds {
            let mut round = self.round(work, &source, place, (&ours, &theirs))?;
            if number == 0 || work.target.copies.is_some() {
                round.copy = Some(copy(&ours, place)?);
            }
            rounds.push(round);
            if number == 0 {
                judge(&self.inputs.content(work.input)?, &ours)?;
                our_bytes = fs::metadata(&ours)?.len();
                their_bytes = match work.theirs {
                    Some(_) => Some(fs::metadata(&theirs)?.len()),
                    None => None,
                };
            }
            for result in [&ours, &theirs].into_iter().filter(|path| path.exists()) {
                fs::remove_file(result)?;
            }
        }
        Ok(Outcome {
            ours: middle(rounds.iter().map(|round| round.ours)),
            theirs: work
                .theirs
                .map(|_| middle(rounds.iter().filter_map(|round| round.theirs))),
            ratio: work.theirs.map(|_| {
                let theirs = |round: &Round| Some(round.theirs?.seconds / round.ours.seconds);
                median(rounds.iter().filter_map(theirs))
            }),
            copy: middle(rounds.iter().filter_map(|round| round.copy)),
            copies: median(
                rounds
                    .iter()
                    .filter_map(|round| Some(round.ours.seconds / round.copy?.seconds)),
            ),
            our_bytes,
            their_bytes,
        })
    }

    fn round(
        &self,
        work: &Work,
        source: &Path,
        place: &Path,
        (ours, theirs): (&Path, &Path),
    ) -> Result<Round> {
        let qemu_img = |options: &[&str]| {
            let mut command = Command::new("qemu-img");
            command.args(["convert", "-O", "qcow2"]).args(options);
            measure(command.arg(source).arg(theirs), place)
        };
        let their_measure = work.theirs.map(qemu_img).transpose()?;
        let mut command = Command::new(self.hyper2kvm);
        command.arg("convert").args(work.ours).arg(source);
        let our_measure = measure(command.arg("--output").arg(ours), place)?;
        Ok(Round {
            theirs: their_measure,
            ours: our_measure,
            copy: None,
        })
    }
}

/// Measures a plain copy of `ours`, which is in the page cache as the sources are.
fn copy(ours: &Path, place: &Path) -> Result<Measure> {
    read(ours)?;
    let copy = place.join("copy.qcow2");
    let measured = measure(&mut plain_copy(ours, &copy), place)?;
    fs::remove_file(&copy)?;
    Ok(measured)
}

/// The disk's limit: every byte is read and written, none is looked at.
fn plain_copy(from: &Path, to: &Path) -> Command {
    let mut command = Command::new("cp");
    command.args(["--sparse=always", "--reflink=never"]);
    command.arg(from).arg(to);
    command
}

/// Sources are in the page cache for both programs.
fn warm(directory: &Path) -> Result<()> {
    let is_file = |path: &PathBuf| path.is_file();
    let entries: Vec<_> = fs::read_dir(directory)?.collect::<io::Result<_>>()?;
    for path in entries.iter().map(fs::DirEntry::path).filter(is_file) {
        read(&path)?;
        File::open(&path)?.sync_all()?;
    }
    Ok(())
}

/// Into the page cache: a copy into a pipe or file would skip the reading where it can.
fn read(path: &Path) -> Result<()> {
    run(Command::new("cp").arg(path).arg("/dev/null"))
}

fn judge(content: &Path, ours: &Path) -> Result<()> {
    run(Command::new("qemu-img").arg("check").arg(ours))?;
    run(Command::new("qemu-img")
        .arg("compare")
        .args(["-f", "raw", "-F", "qcow2"])
        .arg(content)
        .arg(ours))
}

/// The median of each quantity by itself.
fn middle(measures: impl Iterator<Item = Measure> + Clone) -> Measure {
    Measure {
        seconds: median(measures.clone().map(|measure| measure.seconds)),
        cpu_seconds: median(measures.clone().map(|measure| measure.cpu_seconds)),
        peak_bytes: median(measures.map(|measure| measure.peak_bytes as f64)) as u64,
    }
}
