//! `hyper2kvm convert`, `inspect`, `verify` and `check-config`: exit codes, and whole or nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a panic is how a test fails
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use hyper2kvm_tests::images;
use hyper2kvm_tests::programs::program;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn hyper2kvm(arguments: &[&str]) -> Output {
    Command::new(program("hyper2kvm"))
        .args(arguments)
        .output()
        .unwrap()
}

fn code(arguments: &[&str]) -> i32 {
    hyper2kvm(arguments).status.code().unwrap()
}

fn json(arguments: &[&str]) -> Value {
    let output = hyper2kvm(arguments);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn one_disk_becomes_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let raw = images::edges(dir.path());
    let vmdk = images::vmdk(&raw, "monolithicFlat", &dir.path().join("in"));
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let image = out.join("boot.qcow2");
    let (source, target) = (images::text(&vmdk), images::text(&image));
    let report = json(&["convert", source, "--output", target, "--json"]);
    assert_eq!(report[0]["disks"][0]["name"], "boot.qcow2");
    images::judge(&raw, &image, "qcow2");

    // What is there stays, unless its replacement was asked for.
    std::fs::write(&image, "precious").unwrap();
    assert_eq!(code(&["convert", source, "--output", target]), 1);
    assert_eq!(std::fs::read(&image).unwrap(), b"precious");
    assert_eq!(
        code(&["convert", source, "--output", target, "--overwrite"]),
        0
    );
    images::judge(&raw, &image, "qcow2");
    assert_eq!(names(&out), ["boot.qcow2"]);
}

#[test]
fn a_vm_becomes_a_directory_that_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let raw = images::edges(dir.path());
    for name in ["a.vmdk", "b.vmdk"] {
        let vmdk = images::vmdk(&raw, "streamOptimized", &dir.path().join("in"));
        std::fs::rename(&vmdk, dir.path().join(name)).unwrap();
    }
    let size = std::fs::metadata(&raw).unwrap().len();
    let ovf = images::ovf(&[("a.vmdk", size), ("b.vmdk", size)]);
    std::fs::write(dir.path().join("vm.ovf"), ovf).unwrap();
    let ova = images::ova(dir.path(), &["vm.ovf", "a.vmdk", "b.vmdk"]);
    let out = dir.path().join("out");
    let (source, single) = (images::text(&ova), dir.path().join("single.qcow2"));

    let refused = hyper2kvm(&["convert", source, "--output", images::text(&single)]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("2 disks"));

    let target = format!("{}/", images::text(&out));
    let report = json(&["convert", source, "--output", &target, "--json"]);
    let name = report[0]["vm_name"].as_str().unwrap().to_owned();
    let link = out.join(format!("{name}.qcow2"));
    assert_eq!(names(&out), [name.clone(), format!("{name}.qcow2")]);
    images::judge(&raw, &link, "qcow2");
    let second = out.join(&name).join(format!("{name}-disk2.qcow2"));
    images::judge(&raw, &second, "qcow2");
    assert!(out.join(&name).join("domain.xml").exists());

    let inspection = json(&["inspect", source, "--json"]);
    assert_eq!(inspection["machine"]["cpus"], 2);
    assert_eq!(inspection["disks"][1]["format"], "vmdk (streamOptimized)");
    assert_eq!(inspection["disks"][1]["capacity_bytes"], size);

    for image in [&link, &second] {
        assert_eq!(
            json(&["verify", images::text(image), "--json"])["compared"],
            true
        );
    }
    // Without what was published with it there is only its own digest.
    let alone = dir.path().join("alone.qcow2");
    std::fs::copy(&second, &alone).unwrap();
    let said = hyper2kvm(&["verify", images::text(&alone)]).stdout;
    assert!(String::from_utf8_lossy(&said).contains("nothing to compare it with"));
    // One guest byte more, written by somebody else.
    let change = "write -P 99 1M 512";
    let image = images::text(&second);
    images::run(
        "qemu-utils",
        "qemu-io",
        &["-f", "qcow2", "-c", change, image],
    );
    assert_eq!(code(&["verify", images::text(&second)]), 1);
}

#[test]
fn an_interrupt_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("flat"), images::noise(8, 16 << 20)).unwrap();
    // The same bytes again and again: enough work to be interrupted.
    let extents = "RW 32768 FLAT \"flat\" 0\n".repeat(256);
    let text = format!("# Disk DescriptorFile\ncreateType=\"custom\"\n{extents}");
    let source = dir.path().join("vm.vmdk");
    std::fs::write(&source, text).unwrap();
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let child = Command::new(program("hyper2kvm"))
        .args([
            "convert",
            images::text(&source),
            "--output",
            images::text(&out),
        ])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let limit = Instant::now() + Duration::from_secs(240);
    let is_writing = || {
        let staging = names(&out).pop().map(|name| out.join(name));
        staging.is_some_and(|staging| !names(&staging).is_empty())
    };
    while !is_writing() {
        assert!(Instant::now() < limit, "the conversion does not begin");
        std::thread::yield_now();
    }
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("cancelled") && !told.contains("hyperctl"));
    assert!(names(&out).is_empty());
}

#[test]
fn wrong_usage_and_bad_sources_have_their_codes() {
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad.vmdk");
    std::fs::write(&bad, "KDMV").unwrap();
    let config = dir.path().join("x.toml");
    std::fs::write(&config, "colour = 1\n").unwrap();
    let out = dir.path().join("out.qcow2");
    let (bad, out, config) = (
        images::text(&bad),
        images::text(&out),
        images::text(&config),
    );
    for (arguments, expected) in [
        (vec!["convert"], 2),
        (vec!["convert", bad], 2),
        (vec!["convert", bad, "--output", out, "--format", "vdi"], 2),
        (vec!["convert", bad, bad, "--name", "x", "--output", out], 2),
        (vec!["convert", bad, bad, "--output", out], 2),
        (vec!["convert", bad, "--output", out], 1),
        (vec!["convert", "/absent.vmdk", "--output", out], 1),
        (vec!["inspect", bad], 1),
        (vec!["verify", bad], 1),
        (vec!["check-config", config], 2),
        (vec!["--help"], 0),
    ] {
        assert_eq!(code(&arguments), expected, "{arguments:?}");
    }
    let output = hyper2kvm(&["convert", bad, "--output", out, "--json"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["error"]["kind"], "corrupt");
    assert_eq!(names(dir.path()), ["bad.vmdk", "x.toml"]);
}

#[test]
fn the_name_of_the_target_tells_its_format() {
    let dir = tempfile::tempdir().unwrap();
    let raw = images::edges(dir.path());
    let source = images::vmdk(&raw, "streamOptimized", &dir.path().join("in"));
    for (name, asked, format) in [
        ("a.raw", None, "raw"),
        ("b.img", None, "raw"),
        ("c.qcow2", None, "qcow2"),
        ("d", None, "qcow2"),
        ("e.img", Some("qcow2"), "qcow2"),
    ] {
        let target = dir.path().join(name);
        let mut arguments = vec!["convert", images::text(&source)];
        arguments.extend(["--output", images::text(&target)]);
        arguments.extend(asked.map(|_| "--format").into_iter().chain(asked));
        assert_eq!(code(&arguments), 0, "{name}");
        images::judge(&raw, &target, format);
    }
}

#[test]
fn what_is_wrong_is_said_in_the_users_words() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path();
    let raw = images::edges(top);
    for subformat in ["monolithicFlat", "twoGbMaxExtentSparse"] {
        images::vmdk(&raw, subformat, top);
    }
    let extents = names(top);
    let extent = |marker: &str| {
        let name = extents.iter().find(|name| name.contains(marker)).unwrap();
        top.join(name)
    };
    let (flat, sparse) = (extent("-flat"), extent("-s001"));
    let same = "watch_dir = \"/a\"\noutput_dir = \"/a/out\"\n";
    std::fs::write(top.join("nested.toml"), same).unwrap();
    let nested = top.join("nested.toml");
    let targets = ["out.qcow2", "out.vmdk", "out.raw"].map(|name| top.join(name));
    let [out, vmdk, compressed] = targets.each_ref().map(|path| images::text(path));
    let (raw, flat, sparse) = (
        images::text(&raw),
        images::text(&flat),
        images::text(&sparse),
    );
    for (arguments, told) in [
        (vec!["convert", flat, "-o", out], "only an extent of a disk"),
        (
            vec!["convert", sparse, "-o", out],
            "only an extent of a disk",
        ),
        (vec!["convert", "/absent.vmdk", "-o", out], "check the path"),
        (
            vec!["convert", raw, "-o", "/absent/x.qcow2"],
            "/absent is not a directory",
        ),
        (
            vec!["convert", "/", "-o", out],
            "neither a manifest.json nor one OVF",
        ),
        (
            vec!["convert", raw, raw, "-o", out],
            "several sources need a directory",
        ),
        (
            vec!["convert", raw, "-o", vmdk],
            "name it out.qcow2, or end it in /",
        ),
        (
            vec!["convert", raw, "-o", compressed, "--compress", "zlib"],
            "say --compress none, or --format qcow2",
        ),
        (
            vec!["check-config", images::text(&nested)],
            "/a/out lies in watch_dir /a",
        ),
    ] {
        let output = hyper2kvm(&arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(told), "{text}");
    }
    assert!(targets.iter().all(|target| !target.exists()));
}
