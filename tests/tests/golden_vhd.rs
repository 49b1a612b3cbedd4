//! VHDs that qemu-img wrote, in every form it has: the guest sees the same, qemu-img is the judge.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a panic is how a test fails
use std::path::{Path, PathBuf};

use converter::convert::Plan;
use hyper2kvm_tests::engine::{copy, fails, first_disk};
use hyper2kvm_tests::images::{self, qemu_img, text};
use hyper2kvm_tests::vhdx;

/// Converts `owner` and returns the content digest.
fn converts(owner: &Path, target: &Path) -> String {
    let report = copy(owner, target, &Plan::default()).unwrap_or_else(|error| fails(&error));
    report.digest.unwrap()
}

/// Writes `raw` as `container` (qemu-img's word) with `options` to `path`.
fn write(raw: &Path, container: &str, options: &str, path: &Path) {
    let (raw, path) = (text(raw), text(path));
    let from = ["convert", "-f", "raw", "-O", container];
    qemu_img(&[&from[..], &["-o", options, raw, path]].concat());
}

/// Both judges: the target is sound, and it has the size and the bytes of the source.
fn same(container: &str, source: &Path, target: &Path) {
    let size = |format: &str, path: &Path| {
        let info = qemu_img(&["info", "-f", format, "--output=json", text(path)]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        info.get("virtual-size").unwrap().as_u64().unwrap()
    };
    assert_eq!(size(container, source), size("qcow2", target));
    qemu_img(&["check", "-q", "-f", "qcow2", text(target)]);
    let formats = ["-f", container, "-F", "qcow2"];
    let files = [text(source), text(target)];
    qemu_img(&[&["compare", "-q"], &formats[..], &files[..]].concat());
}

/// A raw disk's forms in `container`: all judged, all with the raw disk's digest if it keeps
/// the size.
fn every_form(
    raw: fn(&Path) -> PathBuf,
    container: &str,
    extension: &str,
    forms: &[(&str, &str, bool)],
) {
    let dir = tempfile::tempdir().unwrap();
    let raw = raw(dir.path());
    let digest = converts(&raw, &dir.path().join("raw.qcow2"));
    for (number, (options, kind, keeps_size)) in forms.iter().enumerate() {
        let path = dir.path().join(format!("{number}.{extension}"));
        write(&raw, container, options, &path);
        assert_eq!(first_disk(&path).format, format!("{extension} ({kind})"));
        let target = dir.path().join(format!("{number}.qcow2"));
        let found = converts(&path, &target);
        same(container, &path, &target);
        if *keeps_size {
            assert_eq!(found, digest, "{options}");
            images::judge(&raw, &target, "qcow2");
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::remove_file(&target).unwrap();
    }
}

/// Options of qemu-img's `vpc`, the kind, whether the size is kept: without `force_size` it is
/// rounded up to whole cylinders.
const VHD: [(&str, &str, bool); 4] = [
    ("subformat=dynamic,force_size=on", "dynamic", true),
    ("subformat=fixed,force_size=on", "fixed", true),
    ("subformat=dynamic", "dynamic", false),
    ("subformat=fixed", "fixed", false),
];

#[test]
fn vhd_data_at_the_edges() {
    every_form(images::edges, "vpc", "vhd", &VHD);
}

#[test]
fn vhd_file_system_with_files() {
    every_form(images::ext4, "vpc", "vhd", &VHD[..2]);
}

#[test]
fn vhd_all_zeros() {
    every_form(images::all_zero, "vpc", "vhd", &VHD);
}

#[test]
fn vhd_of_one_sector() {
    every_form(images::one_sector, "vpc", "vhd", &VHD[..2]);
}

const VHDX: [(&str, &str, bool); 4] = [
    ("subformat=dynamic", "dynamic", true),
    ("subformat=fixed", "fixed", true),
    (
        "subformat=dynamic,block_size=1M,log_size=2M,block_state_zero=off",
        "dynamic",
        true,
    ),
    ("subformat=dynamic,block_size=256M", "dynamic", true),
];

#[test]
fn vhdx_data_at_the_edges() {
    every_form(images::edges, "vhdx", "vhdx", &VHDX);
}

#[test]
fn vhdx_file_system_with_files() {
    every_form(images::ext4, "vhdx", "vhdx", &VHDX[..2]);
}

#[test]
fn vhdx_all_zeros() {
    every_form(images::all_zero, "vhdx", "vhdx", &VHDX);
}

#[test]
fn vhdx_of_one_sector() {
    every_form(images::one_sector, "vhdx", "vhdx", &VHDX[..2]);
}

/// More blocks than one chunk: the bitmap entries between theirs are stepped over.
fn two_chunks(dir: &Path) -> PathBuf {
    let size = (5 << 30) + 512;
    let (data, sector) = (images::noise(7, 3_000_000), images::noise(8, 512));
    let places: [(u64, &[u8]); 3] = [(0, &sector), (4 << 30, &data), (size - 512, &sector)];
    images::raw_disk(&dir.join("chunks.raw"), size, &places)
}

#[test]
fn vhdx_of_two_chunks() {
    every_form(two_chunks, "vhdx", "vhdx", &VHDX[2..3]);
}

/// QEMU replays the same log by writing it into the file; afterwards it sees what we saw before.
#[test]
fn vhdx_with_a_log_to_replay() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.vhdx");
    let option = "block_size=1M";
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "vhdx",
        "-o",
        option,
        text(&path),
        "20M",
    ]);
    let write = ["-f", "vhdx", "-c", "write -P 7 3M 1000k", text(&path)];
    images::run("qemu-utils", "qemu-io", &write);
    vhdx::lose_the_bat(&path);
    let before = std::fs::read(&path).unwrap();
    let target = dir.path().join("vm.qcow2");
    converts(&path, &target);
    assert!(
        before == std::fs::read(&path).unwrap(),
        "the source was written"
    );
    qemu_img(&["check", "-q", "-r", "all", "-f", "vhdx", text(&path)]);
    assert!(
        before != std::fs::read(&path).unwrap(),
        "nothing was replayed"
    );
    same("vhdx", &path, &target);
    let raw = dir.path().join("vm.raw");
    images::raw_disk(&raw, 20 << 20, &[(3 << 20, &[7; 1000 << 10])]);
    images::judge(&raw, &target, "qcow2");
}
