//! A download of 1 GiB: from its last byte to the published image, converted while it arrives and
//! converted afterwards.
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hyper2kvm_tests::stream::{GRAIN_BYTES, StreamWriter};
use queue::instance::Directories;
use queue::spool::growing::Growing;
use queue::spool::submit;

use crate::load::{Daemon, row, until};
use crate::report::Line;

const STREAM_BYTES: u64 = 1 << 30;
/// What the network brings.
const BYTES_PER_SECOND: u64 = 300 << 20;
const CHUNK_BYTES: usize = 1 << 20;
/// After so much, what came is made durable.
const SYNC_BYTES: u64 = 64 << 20;
const ROUNDS: usize = 3;
/// Programs and libraries: what a system disk mostly holds.
const TREES: [&str; 2] = ["/usr/bin", "/usr/lib"];

pub fn streaming(programs: &Path, top: &Path) -> Result<Vec<Line>> {
    fs::create_dir_all(top)?;
    let stream = top.join("stream.vmdk");
    build(&stream)?;
    let daemon = Daemon::start(programs, &top.join("daemon"))?;
    let mut seconds = [Vec::new(), Vec::new()];
    for number in 0..ROUNDS {
        for (grows, seconds) in [true, false].into_iter().zip(&mut seconds) {
            seconds.push(download(&daemon, &stream, number, grows)?);
        }
    }
    let rows = [
        ("1 GiB at 300 MiB/s: last byte to result, streamed", "≤ 3 s"),
        ("1 GiB at 300 MiB/s: last byte to result, afterwards", ""),
    ];
    let lines = rows
        .into_iter()
        .zip(seconds)
        .map(|((what, target), seconds)| {
            let mut sorted = seconds;
            sorted.sort_by(f64::total_cmp);
            let median = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
            row(what, format!("{median:.2} s"), target)
        });
    Ok(lines.collect())
}

/// Appends the stream to a disk of a job, at the speed of the network; then how long it takes.
fn download(daemon: &Daemon, stream: &Path, number: usize, grows: bool) -> Result<f64> {
    let name = format!("vm-{number}-{grows}");
    let directories = Directories {
        queue: daemon.queue.clone(),
        output: daemon.output.clone(),
        work: daemon.queue.join("../work"),
    };
    let staged = submit::stage(&directories)?;
    let disk = staged.grow("disk.vmdk")?;
    let manifest = serde_json::json!({"manifest_version": "1.0", "source": {"vm_name": name},
        "disks": [{"id": "a", "source_format": "vmdk", "bytes": STREAM_BYTES,
            "local_path": "disk.vmdk", "growing": grows}]});
    fs::write(
        staged.directory().join("manifest.json"),
        manifest.to_string(),
    )?;
    let last_byte = if grows {
        staged.publish()?;
        append(&disk, stream)?;
        let last_byte = Instant::now();
        disk.declare_end(None)?;
        last_byte
    } else {
        append(&disk, stream)?;
        let last_byte = Instant::now();
        staged.publish()?;
        last_byte
    };
    let link = daemon.output.join(format!("{name}.qcow2"));
    until("the image", || link.exists())?;
    let seconds = last_byte.elapsed().as_secs_f64();
    fs::remove_dir_all(daemon.output.join(&name))?;
    fs::remove_dir_all(directories.processed())?;
    fs::create_dir(directories.processed())?;
    Ok(seconds)
}

fn append(disk: &Growing, stream: &Path) -> Result<()> {
    let mut source = File::open(stream)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let (mut sent, mut synced) = (0u64, 0u64);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        loop {
            let count = source.read(&mut chunk)?;
            if count == 0 {
                return Ok(());
            }
            disk.file()
                .write_all(chunk.get(..count).unwrap_or_default())?;
            sent += count as u64;
            if sent - synced >= SYNC_BYTES {
                synced = sent;
                scope.spawn(|| disk.sync());
            }
            let due = Duration::from_secs_f64(sent as f64 / BYTES_PER_SECOND as f64);
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
        }
    })
}

/// Real files, one behind the other, as grains, until the stream is as long as it is to be.
pub fn build(path: &Path) -> Result<()> {
    let mut files = Vec::new();
    for tree in TREES {
        collect(Path::new(tree), &mut files)?;
    }
    let mut out = std::io::BufWriter::new(File::create(path)?);
    let mut writer = StreamWriter::new(&mut out, 64 << 30).level(1);
    let mut grain = Vec::with_capacity(GRAIN_BYTES);
    let mut index = 0;
    for file in files.iter().cycle() {
        let Ok(file) = File::open(file) else {
            continue;
        };
        loop {
            let room = (GRAIN_BYTES - grain.len()) as u64;
            if (&file).take(room).read_to_end(&mut grain)? == 0 {
                break;
            }
            if grain.len() == GRAIN_BYTES {
                writer.grain(index, &grain);
                index += 1;
                grain.clear();
            }
        }
        if writer.length_bytes() >= STREAM_BYTES {
            break;
        }
    }
    writer.finish();
    out.flush()?;
    let length = fs::metadata(path)?.len();
    anyhow::ensure!(length >= STREAM_BYTES, "the stream has only {length} bytes");
    Ok(())
}

/// The regular files beneath a directory, in the order of their names.
fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut entries: Vec<_> = entries.collect::<std::io::Result<_>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let kind = entry.file_type()?;
        if kind.is_dir() {
            // What may not be read is not needed.
            let _ = collect(&entry.path(), files);
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}
