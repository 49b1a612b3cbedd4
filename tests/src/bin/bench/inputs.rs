//! The disks that are converted: real files in an ext4 file system on a disk of 8 GiB, and that
//! disk in every container, written by qemu-img.
//!
//! Each is built when it is first asked for, aside, so that a directory of inputs can be kept.
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::run;

const DISK_BYTES: u64 = 8 << 30;
const LEAST_BYTES: u64 = 800 << 20;
/// Where the files are taken from, and how much from each at most: texts, images and archives that
/// are compressed already, libraries, programs. What one lacks comes from the last.
const TREES: [(&str, u64); 4] = [
    ("/usr/share", 350 << 20),
    ("/usr/lib", 350 << 20),
    ("/usr/bin", 200 << 20),
    ("/usr", 900 << 20),
];
const ALL_BYTES: u64 = 900 << 20;
/// The large disk, and what is on it: pieces of the files, evenly spread.
const HUGE_BYTES: u64 = 8 << 40;
const HUGE_PIECES: u64 = 100;
const PIECE_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    Raw,
    Stream,
    Sparse,
    Flat,
    Vhdx,
    Vhd,
    Huge,
    HugeRaw,
}

pub struct Inputs {
    top: PathBuf,
}

impl Inputs {
    pub fn new(top: &Path) -> Result<Self> {
        fs::create_dir_all(top)?;
        let top = top.to_path_buf();
        Ok(Self { top })
    }

    /// The file to convert, in a directory of its own.
    pub fn get(&self, input: Input) -> Result<PathBuf> {
        let (name, file) = match input {
            Input::Raw => ("raw", "files.raw"),
            Input::Stream => ("stream", "files.vmdk"),
            Input::Sparse => ("sparse", "files.vmdk"),
            Input::Flat => ("flat", "files.vmdk"),
            Input::Vhdx => ("vhdx", "files.vhdx"),
            Input::Vhd => ("vhd", "files.vhd"),
            Input::Huge => ("huge", "huge.vhdx"),
            Input::HugeRaw => ("huge-raw", "huge.raw"),
        };
        let directory = self.top.join(name);
        if !directory.exists() {
            eprintln!("building the input {name} in {}", self.top.display());
            let aside = self.top.join(format!("{name}.part"));
            if aside.exists() {
                fs::remove_dir_all(&aside)?;
            }
            fs::create_dir(&aside)?;
            self.build(input, &aside.join(file))
                .with_context(|| format!("build the input {name}"))?;
            fs::rename(&aside, &directory)?;
        }
        Ok(directory.join(file))
    }

    /// The raw disk that an input was made of.
    pub fn content(&self, input: Input) -> Result<PathBuf> {
        self.get(match input {
            Input::Huge => Input::HugeRaw,
            _ => Input::Raw,
        })
    }

    fn build(&self, input: Input, target: &Path) -> Result<()> {
        let (format, options) = match input {
            Input::Raw => return files(target),
            Input::HugeRaw => return self.huge(target),
            Input::Stream => ("vmdk", "subformat=streamOptimized"),
            Input::Sparse => ("vmdk", "subformat=monolithicSparse"),
            Input::Flat => ("vmdk", "subformat=monolithicFlat"),
            Input::Vhdx | Input::Huge => ("vhdx", "subformat=dynamic"),
            Input::Vhd => ("vpc", "subformat=dynamic,force_size=on"),
        };
        contain(&self.content(input)?, format, options, target)
    }

    fn huge(&self, target: &Path) -> Result<()> {
        let files = File::open(self.get(Input::Raw)?)?;
        let file = File::create(target)?;
        file.set_len(HUGE_BYTES)?;
        let mut piece = vec![0; PIECE_BYTES];
        let mut from = 0;
        for number in 0..HUGE_PIECES {
            // Of the files, not of what the file system left free.
            while piece.iter().filter(|byte| **byte != 0).count() < PIECE_BYTES / 8 {
                files.read_exact_at(&mut piece, from)?;
                from += PIECE_BYTES as u64;
            }
            file.write_all_at(&piece, (number * (HUGE_BYTES / HUGE_PIECES)) & !0xfff)?;
            piece.fill(0);
        }
        Ok(())
    }
}

pub fn contain(raw: &Path, format: &str, options: &str, target: &Path) -> Result<()> {
    run(Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", format, "-o", options])
        .arg(raw)
        .arg(target))
}

/// An ext4 file system that holds files of this machine.
fn files(target: &Path) -> Result<()> {
    let tree = target.with_extension("tree");
    fs::create_dir(&tree)?;
    let mut all_bytes = 0;
    for (number, (directory, most_bytes)) in TREES.iter().enumerate() {
        let mut left_bytes = (*most_bytes).min(ALL_BYTES - all_bytes);
        let before = left_bytes;
        let place = tree.join(number.to_string());
        gather(Path::new(directory), &place, &mut left_bytes)?;
        all_bytes += before - left_bytes;
    }
    ensure!(
        all_bytes >= LEAST_BYTES,
        "/usr holds only {} MiB of files: at least {} are needed",
        all_bytes >> 20,
        LEAST_BYTES >> 20
    );
    run(Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .arg(&tree)
        .arg(target)
        .arg(format!("{}M", DISK_BYTES >> 20)))?;
    Ok(fs::remove_dir_all(&tree)?)
}

/// Copies regular files, by name in order, while they fit into `left_bytes`.
fn gather(from: &Path, to: &Path, left_bytes: &mut u64) -> Result<()> {
    let mut entries: Vec<_> = match fs::read_dir(from) {
        Ok(entries) => entries.collect::<io::Result<_>>()?,
        // A file system image is not to fail for somebody's private directory.
        Err(_) => return Ok(()),
    };
    entries.sort_by_key(fs::DirEntry::file_name);
    fs::create_dir_all(to)?;
    for entry in entries {
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            gather(&path, &copy, left_bytes)?;
        } else if metadata.is_file() && metadata.len() <= *left_bytes {
            *left_bytes -= fs::copy(&path, &copy).unwrap_or(0);
        }
    }
    Ok(())
}
