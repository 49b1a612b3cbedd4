//! Reflinks on real file systems: what source and target share, and what the result says of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a panic is how a test fails
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use converter::convert::{self, DiskReport, Plan};
use hyper2kvm_tests::engine;
use hyper2kvm_tests::images;
use hyper2kvm_tests::mount::Mount;
use hyper2kvm_tests::programs::program;
use queue::instance::config::{Compress, Digest, OutFormat};

const FILE_SYSTEMS: [&str; 2] = ["xfs", "btrfs"];
const SIZE_BYTES: u64 = 1 << 30;

fn copy(owner: &Path, target: &Path, plan: &Plan) -> DiskReport {
    engine::copy(owner, target, plan).unwrap_or_else(|error| engine::fails(&error))
}

fn plan(digest: Digest) -> Plan {
    Plan {
        digest,
        threads: 2,
        ..Plan::default()
    }
}

/// Runs `test` in a directory of each file system, with one elsewhere that shares nothing with it.
fn on_each(test: impl Fn(&Path, &Path)) {
    for kind in FILE_SYSTEMS {
        let top = tempfile::tempdir().unwrap();
        let image = top.path().join("disk.img");
        let mount = Mount::formatted(kind, &image, SIZE_BYTES, &top.path().join(kind));
        let elsewhere = Mount::tmpfs(&top.path().join("elsewhere"), "512M");
        test(mount.path(), elsewhere.path());
    }
}

fn is_shared(path: &Path) -> bool {
    let output = images::run("e2fsprogs", "filefrag", &["-s", "-v", images::text(path)]);
    String::from_utf8_lossy(&output.stdout).contains("shared")
}

#[test]
fn flat_data_is_shared_unread() {
    on_each(|place, elsewhere| {
        // A copy holds no room that was only asked for: whether that counts as a hole depends on
        // what the page cache holds of it.
        let raw = place.join("disk.raw");
        let made = images::ext4(place);
        let arguments = ["--sparse=always", images::text(&made), images::text(&raw)];
        images::run("coreutils", "cp", &arguments);
        let sources = [
            raw.clone(),
            images::vmdk(&raw, "monolithicFlat", &place.join("flat")),
            images::vmdk(&raw, "monolithicSparse", &place.join("sparse")),
        ];
        // What a file system calls a hole may change until it has written everything.
        nix::unistd::syncfs(std::fs::File::open(place).unwrap()).unwrap();
        for owner in sources {
            let target = place.join("1.qcow2");
            let auto = |threads| Plan {
                threads,
                ..plan(Digest::Auto)
            };
            let report = copy(&owner, &target, &auto(1));
            assert_eq!(report.digest, None);
            assert!(report.shared_bytes > 4 << 20, "{report:?}");
            images::judge(&raw, &target, "qcow2");
            assert!(is_shared(&target), "{}", target.display());
            let bytes = std::fs::read(&target).unwrap();
            for threads in [2, 8] {
                let other = place.join("other.qcow2");
                copy(&owner, &other, &auto(threads));
                assert!(bytes == std::fs::read(&other).unwrap(), "{threads} threads");
                std::fs::remove_file(&other).unwrap();
            }
            std::fs::remove_file(&target).unwrap();

            // Read as well: the same bytes as where nothing can be shared.
            let report = copy(&owner, &target, &plan(Digest::Always));
            assert!(report.shared_bytes > 4 << 20, "{report:?}");
            assert_eq!(
                convert::digest_of_qcow2(&target).unwrap(),
                report.digest.clone().unwrap()
            );
            assert!(is_shared(&target), "{}", target.display());
            let far = elsewhere.join("vm.qcow2");
            let written = copy(&owner, &far, &plan(Digest::Auto));
            assert_eq!(written.shared_bytes, 0);
            assert_eq!(written.digest, report.digest);
            assert!(std::fs::read(&far).unwrap() == std::fs::read(&target).unwrap());
            std::fs::remove_file(&far).unwrap();
            std::fs::remove_file(&target).unwrap();
        }
    });
}

#[test]
fn shared_data_takes_no_room() {
    on_each(|place, _| {
        let bytes = images::noise(11, 96 << 20);
        let raw = images::raw_disk(&place.join("disk.raw"), 1 << 30, &[(1 << 20, &bytes)]);
        let free = || {
            nix::unistd::syncfs(std::fs::File::open(place).unwrap()).unwrap();
            let found = nix::sys::statvfs::statvfs(place).unwrap();
            found.blocks_available() * found.fragment_size()
        };
        let before = free();
        let format = OutFormat::Raw;
        let targets = [
            (place.join("vm.qcow2"), plan(Digest::Auto)),
            (
                place.join("vm.raw"),
                Plan {
                    format,
                    ..plan(Digest::Auto)
                },
            ),
        ];
        for (target, plan) in &targets {
            let report = copy(&raw, target, plan);
            assert_eq!(report.shared_bytes, 96 << 20);
        }
        let used_bytes = before.saturating_sub(free());
        assert!(used_bytes < 16 << 20, "{used_bytes}");
        images::judge(&raw, &targets[0].0, "qcow2");
        images::judge(&raw, &targets[1].0, "raw");
        // What is written to the source later is not seen in the result.
        let file = std::fs::File::options().write(true).open(&raw).unwrap();
        let [first, second] = targets.each_ref().map(|(target, _)| target);
        let read = |path: &Path| convert::digest_of_qcow2(path).unwrap();
        let digest = read(first);
        file.write_all_at(&[7; 1 << 16], 1 << 20).unwrap();
        assert_eq!(read(first), digest);
        assert!(std::fs::read(second).unwrap()[1 << 20..][..4096] == bytes[..4096]);
    });
}

#[test]
fn what_does_not_fit_is_read() {
    on_each(|place, _| {
        // Odd edges and stored zeros: what is aligned is shared, the rest written.
        let raw = images::edges(place);
        let target = place.join("edges.qcow2");
        let report = copy(&raw, &target, &plan(Digest::Auto));
        assert!(report.shared_bytes > 1 << 20);
        images::judge(&raw, &target, "qcow2");

        let stream = images::vmdk(&raw, "streamOptimized", &place.join("stream"));
        for (number, compress) in [Compress::None, Compress::Zlib].into_iter().enumerate() {
            let target = place.join(format!("stream-{number}.qcow2"));
            let plan = Plan {
                compress,
                ..plan(Digest::Auto)
            };
            let report = copy(&stream, &target, &plan);
            assert_eq!(report.shared_bytes, 0);
            let digest = convert::digest_of_qcow2(&target).unwrap();
            assert_eq!(report.digest, Some(digest));
        }
    });
}

#[test]
fn the_result_says_why_it_has_no_digest() {
    on_each(|place, _| {
        let bytes = images::noise(12, 2 << 20);
        let raw = images::raw_disk(&place.join("vm.raw"), 8 << 20, &[(0, &bytes)]);
        let hyper2kvm = |arguments: &[&str]| {
            let output = Command::new(program("hyper2kvm")).args(arguments).output();
            let output = output.unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{arguments:?}: {output:?}");
            text
        };
        for (digest, compared) in [(&["--digest"][..], true), (&[], false)] {
            let out = place.join(format!("out-{compared}/"));
            let mut arguments = vec!["convert", images::text(&raw), "-o"];
            let out_text = format!("{}/", out.display());
            arguments.push(&out_text);
            arguments.extend(digest);
            let shown = hyper2kvm(&arguments);
            assert_eq!(shown.contains("no content digest"), !compared, "{shown}");
            let image = out.join("vm.qcow2");
            let verdict = hyper2kvm(&["verify", images::text(&image), "--json"]);
            let verdict: serde_json::Value = serde_json::from_str(&verdict).unwrap();
            assert_eq!(verdict["compared"], compared);
            let metadata = std::fs::read(out.join("vm/metadata.json")).unwrap();
            let metadata: serde_json::Value = serde_json::from_slice(&metadata).unwrap();
            assert_eq!(metadata["disks"][0]["digest"].is_string(), compared);
            assert_eq!(metadata["disks"][0]["shared_bytes"], 2 << 20);
        }
    });
}
