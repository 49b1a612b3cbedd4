//! Truth about qcow2 sources: every form that qemu-img writes, chains, and what must be refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a panic is how a test fails
use std::path::{Path, PathBuf};

use converter::convert::{DiskReport, Plan};
use converter::error::ErrorKind;
use hyper2kvm_tests::engine::{copy, fails, open};
use hyper2kvm_tests::images;
use queue::instance::config::Compress;

fn converts(owner: &Path, raw: &Path, compress: Compress) -> DiskReport {
    let plan = Plan {
        compress,
        threads: 2,
        ..Plan::default()
    };
    let target = raw.with_extension("converted.qcow2");
    let report = copy(owner, &target, &plan).unwrap_or_else(|error| fails(&error));
    images::judge(raw, &target, "qcow2");
    std::fs::remove_file(&target).unwrap();
    report
}

/// Makes a qcow2 of a raw disk with the options of `qemu-img convert`.
fn qcow2(raw: &Path, name: &str, options: &[&str]) -> PathBuf {
    let path = raw.with_file_name(name);
    let mut arguments = vec!["convert", "-O", "qcow2"];
    arguments.extend(options);
    arguments.extend([images::text(raw), images::text(&path)]);
    images::qemu_img(&arguments);
    path
}

#[test]
fn every_form_of_it() {
    for make in [images::edges, images::ext4, images::one_sector] {
        let dir = tempfile::tempdir().unwrap();
        let raw = make(dir.path());
        let digest = converts(&raw, &raw, Compress::None).digest;
        let data_file = format!("data_file={}", images::text(&dir.path().join("data.raw")));
        let forms: [&[&str]; 9] = [
            &[],
            &["-o", "compat=0.10"],
            &["-o", "compat=0.10", "-c"],
            &["-c"],
            &["-c", "-o", "compression_type=zstd"],
            &["-o", "cluster_size=512"],
            &["-o", "cluster_size=2M,lazy_refcounts=on"],
            &["-c", "-o", "cluster_size=2M,compression_type=zstd"],
            &["-o", &data_file],
        ];
        for options in forms {
            let source = qcow2(&raw, "source.qcow2", options);
            for compress in [Compress::None, Compress::Zlib] {
                let report = converts(&source, &raw, compress);
                assert_eq!(report.digest, digest, "{options:?}");
                assert_eq!(report.grains_transplanted, 0);
            }
        }
    }
}

fn write(path: &Path, what: &str) {
    images::run(
        "qemu-utils",
        "qemu-io",
        &["-f", "qcow2", "-c", what, images::text(path)],
    );
}

/// A qcow2 over `below`, whose format is told only if `format` is.
fn overlay(dir: &Path, name: &str, below: &str, format: &str) -> PathBuf {
    let path = dir.join(name);
    let text = images::text(&path);
    images::qemu_img(&[
        "create", "-q", "-f", "qcow2", "-b", below, "-F", format, text,
    ]);
    write(&path, "write -P 7 60000 100000");
    write(&path, "write -z 5M 1M");
    path
}

#[test]
fn chains_over_every_base() {
    let dir = tempfile::tempdir().unwrap();
    let raw = images::edges(dir.path());
    qcow2(&raw, "packed.qcow2", &["-c"]);
    images::vmdk(&raw, "monolithicSparse", dir.path());
    for (base, format) in [
        ("edges.raw", "raw"),
        ("packed.qcow2", "qcow2"),
        ("vm.vmdk", "vmdk"),
    ] {
        overlay(dir.path(), "middle.qcow2", base, format);
        let top = overlay(dir.path(), "top.qcow2", "middle.qcow2", "qcow2");
        write(&top, "write -P 9 12M 3M");
        let truth = dir.path().join("truth.raw");
        images::qemu_img(&[
            "convert",
            "-O",
            "raw",
            images::text(&top),
            images::text(&truth),
        ]);
        converts(&top, &truth, Compress::None);
        converts(&top, &truth, Compress::Zlib);
    }
}

#[test]
fn snapshots_are_left_out_with_a_note() {
    let dir = tempfile::tempdir().unwrap();
    let raw = images::edges(dir.path());
    let source = qcow2(&raw, "source.qcow2", &[]);
    images::qemu_img(&["snapshot", "-c", "before", images::text(&source)]);
    write(&source, "write -P 5 1M 1M");
    let truth = dir.path().join("truth.raw");
    images::qemu_img(&[
        "convert",
        "-O",
        "raw",
        images::text(&source),
        images::text(&truth),
    ]);
    converts(&source, &truth, Compress::None);
    let notes = open(&source).unwrap().notes;
    assert!(notes[0].contains("1 snapshots"), "{notes:?}");
}

#[test]
fn what_is_not_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.qcow2");
    let text = images::text(&path);
    let secret = ["--object", "secret,id=s,data=x", "-o"];
    let encrypted = [&secret[..], &["encrypt.format=luks,encrypt.key-secret=s"]].concat();
    for (options, feature) in [
        (&["-o", "extended_l2=on"][..], "extended L2"),
        (&encrypted, "encrypted"),
    ] {
        let arguments = [&["create", "-q", "-f", "qcow2"], options, &[text, "1M"]].concat();
        images::qemu_img(&arguments);
        let error = open(&path).err().unwrap();
        assert_eq!(error.kind, ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains(feature), "{error}");
    }
}

#[test]
fn nothing_outside_is_read() {
    let top = tempfile::tempdir().unwrap();
    let dir = top.path().join("job");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(top.path().join("secret.raw"), [1; 4096]).unwrap();
    std::fs::write(dir.join("text.raw"), "QFI\u{fb}").unwrap();
    std::os::unix::fs::symlink("../secret.raw", dir.join("link.raw")).unwrap();
    let path = dir.join("a.qcow2");
    let absolute = top.path().join("secret.raw");
    for (backing, format, kind) in [
        ("../secret.raw", "raw", ErrorKind::Invalid),
        ("/etc/passwd", "raw", ErrorKind::Invalid),
        (images::text(&absolute), "raw", ErrorKind::Invalid),
        ("link.raw", "raw", ErrorKind::Invalid),
        ("absent.raw", "raw", ErrorKind::Invalid),
        ("nbd:localhost:10809", "raw", ErrorKind::Unsupported),
        (
            "json:{\"driver\":\"null-co\"}",
            "raw",
            ErrorKind::Unsupported,
        ),
        ("a.qcow2", "qcow2", ErrorKind::Corrupt),
        // What it is and what is said of it differ.
        ("a.qcow2", "raw", ErrorKind::Invalid),
    ] {
        let text = images::text(&path);
        images::qemu_img(&["create", "-q", "-f", "qcow2", text, "1M"]);
        images::qemu_img(&[
            "rebase", "-u", "-f", "qcow2", "-b", backing, "-F", format, text,
        ]);
        let error = open(&path).err().unwrap();
        assert_eq!(error.kind, kind, "{backing}: {error}");
        let remedy = error.remedy.unwrap_or_default();
        assert_eq!(remedy.contains("rebase"), backing.starts_with('/'));
    }
    // The data file of a qcow2 that was made elsewhere.
    let option = format!("data_file={}", images::text(&absolute));
    images::qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        &option,
        images::text(&path),
        "1M",
    ]);
    let error = open(&path).err().unwrap();
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
}
