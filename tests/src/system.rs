//! Disks that are systems to whoever looks at them, and no more: partitions with the files that
//! tell a root. They are made without root and without an appliance, by mke2fs and qemu-img.
#![allow(clippy::unwrap_used, clippy::panic)] // a panic is how a test fails
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::images::{qemu_img, raw_disk, run, text};

/// Where the first partition begins.
const FIRST_BYTES: u64 = 1 << 20;
const SECTOR_BYTES: u64 = 512;

/// What a repair wants beneath / and /boot, and the file system itself.
pub const ROOM_MIB: u32 = 80;

/// What makes a directory the root of a Debian, besides its fstab.
const ROOT: [(&str, &str); 4] = [
    ("etc/os-release", "ID=debian\nVERSION_ID=\"12\"\n"),
    ("etc/hosts", "127.0.0.1 localhost\n"),
    ("bin/README", ""),
    ("boot/README", ""),
];

/// A file system with these files: `<path>.ext4`.
pub fn ext4(path: &Path, size_mib: u32, files: &[(&str, &str)]) -> PathBuf {
    let tree = path.with_extension("tree");
    for (name, contents) in files {
        let file = tree.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, contents).unwrap();
    }
    let made = path.with_extension("ext4");
    let (from, to) = (text(&tree), text(&made));
    let size = format!("{size_mib}M");
    let arguments = ["-q", "-t", "ext4", "-m", "0", "-d", from, to, &size];
    run("e2fsprogs", "mke2fs", &arguments);
    made
}

/// A root with this fstab, room for a repair, and further files.
pub fn root(path: &Path, fstab: &str, files: &[(&str, &str)]) -> PathBuf {
    ext4(
        path,
        ROOM_MIB,
        &[&ROOT[..], &[("etc/fstab", fstab)], files].concat(),
    )
}

/// The file as the contents of a LUKS volume that this key opens: `<path>.luks`.
pub fn luks(path: &Path, key: &str) -> PathBuf {
    let made = path.with_extension("luks");
    let secret = secret(path, key);
    let options = "key-secret=key,iter-time=10";
    let (from, to) = (text(path), text(&made));
    let mut command = Command::new("timeout");
    command.args(["120", "qemu-img", "convert", "--object", &secret]);
    command.args(["-f", "raw", "-O", "luks", "-o", options, from, to]);
    // What the key may cost is measured first: on a busy machine, now and then, to no time at all.
    for _ in 0..100 {
        let output = command.output().expect("timeout(1) of coreutils");
        let errors = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            return made;
        }
        assert!(errors.contains("accurate CPU usage"), "qemu-img: {errors}");
    }
    panic!("qemu-img cannot measure what a key costs");
}

/// The contents of a LUKS volume: `<path>.open`.
pub fn unlocked(path: &Path, key: &str) -> PathBuf {
    let made = path.with_extension("open");
    let secret = secret(path, key);
    let image = format!("driver=luks,key-secret=key,file.filename={}", text(path));
    let object = ["convert", "--object", &secret, "--image-opts"];
    qemu_img(&[&object[..], &["-O", "raw", &image, text(&made)]].concat());
    made
}

fn secret(path: &Path, key: &str) -> String {
    let file = path.with_extension("key");
    fs::write(&file, key).unwrap();
    format!("secret,id=key,file={}", text(&file))
}

/// A disk with an MBR whose partitions these files are.
pub fn disk(path: &Path, partitions: &[&Path]) -> PathBuf {
    let mut table = Vec::new();
    let mut pieces = Vec::new();
    let mut end_bytes = FIRST_BYTES;
    for partition in partitions {
        let contents = fs::read(partition).unwrap();
        let sector = |bytes: u64| u32::try_from(bytes / SECTOR_BYTES).unwrap().to_le_bytes();
        let length_bytes = contents.len() as u64;
        table.extend([0, 0, 0, 0, 0x83, 0, 0, 0]);
        table.extend([sector(end_bytes), sector(length_bytes)].concat());
        pieces.push((end_bytes, contents));
        end_bytes += length_bytes.next_multiple_of(FIRST_BYTES);
    }
    let disk = raw_disk(path, end_bytes, &[(446, &table), (510, &[0x55, 0xaa])]);
    let file = fs::File::options().write(true).open(&disk).unwrap();
    // Holes stay holes.
    for (start, contents) in pieces {
        for (block, at) in contents.chunks(1 << 16).zip((start..).step_by(1 << 16)) {
            if block.iter().any(|byte| *byte != 0) {
                file.write_all_at(block, at).unwrap();
            }
        }
    }
    disk
}

/// A partition of a converted image as a file of its own: `<directory>/partition-<number>`.
pub fn partition(image: &Path, number: usize, dir: &Path) -> PathBuf {
    let whole = dir.join("whole.raw");
    qemu_img(&["convert", "-O", "raw", text(image), text(&whole)]);
    let bytes = fs::read(&whole).unwrap();
    let entry = &bytes[446 + 16 * (number - 1)..][..16];
    let sectors = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
    let place = |at: usize| usize::try_from(u64::from(sectors(at)) * SECTOR_BYTES).unwrap();
    let made = dir.join(format!("partition-{number}"));
    fs::write(&made, &bytes[place(8)..][..place(12)]).unwrap();
    made
}

/// A file of an ext4 file system.
pub fn read(file_system: &Path, path: &str) -> String {
    let command = format!("cat {path}");
    let output = run("e2fsprogs", "debugfs", &["-R", &command, text(file_system)]);
    String::from_utf8(output.stdout).unwrap()
}

/// What blkid(8) says of a volume: its `UUID`.
pub fn uuid(volume: &Path) -> String {
    let arguments = ["-p", "-o", "value", "-s", "UUID", text(volume)];
    let output = run("util-linux", "blkid", &arguments);
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
