//! Truth about what is compressed as a whole or in an OVF, and about images known by content only:
//! packed by the tools that people use, judged by qemu-img.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a panic is how a test fails
use std::fs;
use std::path::{Path, PathBuf};

use converter::convert::Plan;
use converter::error::{Error, ErrorKind};
use hyper2kvm_tests::daemon::{Site, names};
use hyper2kvm_tests::engine::{copy, fails, first_disk, open};
use hyper2kvm_tests::images::{self, run, text};
use hyper2kvm_tests::programs::program;

/// The file packed beside it, under its own name with one more extension.
fn pack(file: &Path, extension: &str) -> PathBuf {
    let path = text(file);
    match extension {
        "gz" => run("gzip", "gzip", &["-kf", path]),
        // Blocks of 1 MiB, several of them.
        "xz" => run("xz-utils", "xz", &["-kf", "-0", "--block-size=1MiB", path]),
        "zst" => run("zstd", "zstd", &["-qf", path]),
        other => panic!("{other}"),
    };
    PathBuf::from(format!("{path}.{extension}"))
}

/// Converts `owner`; the guest must see what it sees in `raw`.
fn converts(owner: &Path, raw: &Path) {
    let target = raw.with_extension("converted.qcow2");
    copy(owner, &target, &Plan::default()).unwrap_or_else(|error| fails(&error));
    images::judge(raw, &target, "qcow2");
    fs::remove_file(&target).unwrap();
}

fn refused(owner: &Path) -> Error {
    let error = match open(owner) {
        Err(error) => error,
        Ok(appliance) => {
            let target = owner.with_extension("refused.qcow2");
            let disk = &appliance.disks[0];
            let plan = Plan::default();
            let done = converter::convert::copy(disk, &target, &plan, &converter::disk::Unobserved);
            let _ = fs::remove_file(&target);
            done.expect_err(text(owner))
        }
    };
    assert!(error.remedy.is_some(), "{error}");
    error
}

/// Writes `raw` in one of qemu-img's formats.
fn container(raw: &Path, format: &str, options: &str, name: &str) -> PathBuf {
    let path = raw.with_file_name(name);
    let files = [text(raw), text(&path)];
    let options: &[&str] = if options.is_empty() {
        &[]
    } else {
        &["-o", options]
    };
    images::qemu_img(&[&["convert", "-O", format], options, &files].concat());
    path
}

#[test]
fn every_wrapper_around_every_container() {
    let dir = tempfile::tempdir().unwrap();
    let raw = images::edges(dir.path());
    let sources = [
        raw.clone(),
        container(&raw, "vmdk", "subformat=streamOptimized", "a.vmdk"),
        container(&raw, "vmdk", "subformat=monolithicSparse", "b.vmdk"),
        container(&raw, "qcow2", "", "c.qcow2"),
        container(&raw, "vpc", "subformat=dynamic,force_size=on", "d.vhd"),
        container(&raw, "vhdx", "", "e.vhdx"),
    ];
    for source in &sources {
        for extension in ["gz", "xz", "zst"] {
            let packed = pack(source, extension);
            converts(&packed, &raw);
            let disk = first_disk(&packed);
            assert!(disk.format.contains(" in "), "{}", disk.format);
            assert_eq!(disk.source_bytes, fs::metadata(&packed).unwrap().len());
            fs::remove_file(&packed).unwrap();
        }
    }
}

#[test]
fn an_ova_within_gzip_keeps_its_checksums() {
    let dir = tempfile::tempdir().unwrap();
    let raw = images::edges(dir.path());
    package(&raw, dir.path(), "vm.vmdk", "", |_| ());
    let ova = images::ova(dir.path(), &["vm.ovf", "vm.mf", "vm.vmdk"]);
    converts(&pack(&ova, "gz"), &raw);
    // A byte of the disk that the `.mf` speaks of.
    let mut bytes = fs::read(&ova).unwrap();
    let at = bytes.len() - 20_000;
    bytes[at] ^= 1;
    fs::write(&ova, bytes).unwrap();
    let error = refused(&pack(&ova, "gz"));
    assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
}

/// An OVF package of one streamOptimized disk, which `store` turns into what the OVF names as
/// `href` with further `attributes`; the `.mf` is over the files as they are stored.
fn package(raw: &Path, dir: &Path, href: &str, attributes: &str, store: impl Fn(&Path)) {
    let vmdk = images::vmdk(raw, "streamOptimized", &dir.join("made"));
    fs::rename(vmdk, dir.join("vm.vmdk")).unwrap();
    store(&dir.join("vm.vmdk"));
    let size = fs::metadata(raw).unwrap().len();
    let plain = format!("ovf:href=\"{href}\"");
    let ovf = images::ovf(&[(href, size)]).replace(&plain, &format!("{plain} {attributes}"));
    fs::write(dir.join("vm.ovf"), ovf).unwrap();
    let sums = |name: &str| {
        let sum = run("coreutils", "sha256sum", &[text(&dir.join(name))]).stdout;
        let sum = String::from_utf8(sum).unwrap();
        format!("SHA256({name})= {}\n", sum.split(' ').next().unwrap())
    };
    let is_stored = |name: &&String| name.starts_with(href) || *name == "vm.ovf";
    let lines: String = names(dir)
        .iter()
        .filter(is_stored)
        .map(|name| sums(name))
        .collect();
    fs::write(dir.join("vm.mf"), lines).unwrap();
}

/// Cuts a file into chunks of `bytes` called `name.000000000` and so on, and removes it.
fn cut(file: &Path, name: &str, bytes: usize) {
    let content = fs::read(file).unwrap();
    for (number, chunk) in content.chunks(bytes).enumerate() {
        fs::write(file.with_file_name(format!("{name}.{number:09}")), chunk).unwrap();
    }
    fs::remove_file(file).unwrap();
}

#[test]
fn members_of_a_package_compressed_and_in_chunks() {
    const CHUNK: usize = 700_000;
    let gzip = |disk: &Path| fs::rename(pack(disk, "gz"), disk).unwrap();
    let both = |disk: &Path| {
        gzip(disk);
        cut(disk, "vm.vmdk", CHUNK);
    };
    let chunks = format!("ovf:chunkSize=\"{CHUNK}\"");
    let packed = format!("ovf:compression=\"gzip\" {chunks}");
    type Store<'a> = &'a dyn Fn(&Path);
    let forms: [(&str, &str, Store<'_>); 5] = [
        ("vm.vmdk", "ovf:compression=\"gzip\"", &gzip),
        ("vm.vmdk", &chunks, &|disk| cut(disk, "vm.vmdk", CHUNK)),
        ("vm.vmdk", &packed, &both),
        ("vm.vmdk.gz", "ovf:compression=\"gzip\"", &|disk| {
            pack(disk, "gz");
        }),
        // Not said, but so.
        ("vm.vmdk.gz", "", &|disk| {
            pack(disk, "gz");
        }),
    ];
    for (href, attributes, store) in forms {
        let dir = tempfile::tempdir().unwrap();
        let raw = images::edges(dir.path());
        package(&raw, dir.path(), href, attributes, store);
        let ovf = dir.path().join("vm.ovf");
        converts(&ovf, &raw);
        let stored: Vec<String> = names(dir.path())
            .into_iter()
            .filter(|name| name.starts_with(href))
            .collect();
        let mut members = vec!["vm.ovf", "vm.mf"];
        members.extend(stored.iter().map(String::as_str));
        converts(&images::ova(dir.path(), &members), &raw);

        // A changed file is `corrupt`, a missing chunk is missed.
        let last = dir.path().join(stored.last().unwrap());
        let mut bytes = fs::read(&last).unwrap();
        // The end of what stands before padding: in gzip the stored size, in VMDK a marker.
        let at = bytes.len() - 600;
        bytes[at] ^= 1;
        fs::write(&last, bytes).unwrap();
        assert_eq!(
            refused(&ovf).kind,
            ErrorKind::Corrupt,
            "{href} {attributes}"
        );
        fs::remove_file(&last).unwrap();
        refused(&ovf);
    }
}

#[test]
fn a_method_that_is_not_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let raw = images::one_sector(dir.path());
    let attributes = "ovf:compression=\"bzip2\"";
    package(&raw, dir.path(), "vm.vmdk", attributes, |_| ());
    let error = refused(&dir.path().join("vm.ovf"));
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(error.to_string().contains("bzip2"), "{error}");
    // Said, but not so.
    let attributes = "ovf:compression=\"gzip\"";
    package(&raw, dir.path(), "vm.vmdk", attributes, |_| ());
    assert_eq!(refused(&dir.path().join("vm.ovf")).kind, ErrorKind::Corrupt);
}

#[test]
fn cloud_exports_are_known_by_content() {
    let dir = tempfile::tempdir().unwrap();
    let raw = images::ext4(dir.path());
    let at = |name: &str| dir.path().join(name);
    // Google: `disk.raw` in a tar, as its exporter and as its manual make it.
    fs::rename(&raw, at("disk.raw")).unwrap();
    let raw = at("disk.raw");
    for (name, options) in [
        ("plain.tar.gz", &["--format=ustar"][..]),
        ("sparse.tar.gz", &["--format=oldgnu", "-S"]),
    ] {
        let archive = at(name);
        let create = ["-C", text(dir.path()), "-czf", text(&archive), "disk.raw"];
        run("tar", "tar", &[options, &create].concat());
        converts(&archive, &raw);
        assert_eq!(first_disk(&archive).format, "raw in gzip");
    }
    let pax = at("pax.tar.gz");
    let create = ["--format=posix", "-S", "-C", text(dir.path()), "-czf"];
    run(
        "tar",
        "tar",
        &[&create[..], &[text(&pax), "disk.raw"]].concat(),
    );
    assert_eq!(refused(&pax).kind, ErrorKind::Unsupported);
    fs::write(at("readme"), "two").unwrap();
    let two = at("two.tar.gz");
    let create = [
        "-C",
        text(dir.path()),
        "-czf",
        text(&two),
        "disk.raw",
        "readme",
    ];
    run("tar", "tar", &create);
    assert_eq!(refused(&two).kind, ErrorKind::Invalid);

    // Azure: a fixed VHD. And any of them under names that say nothing.
    let vhd = container(&raw, "vpc", "subformat=fixed,force_size=on", "azure.vhd");
    converts(&vhd, &raw);
    converts(&pack(&vhd, "xz"), &raw);
    let vmdk = container(&raw, "vmdk", "subformat=streamOptimized", "x.vmdk");
    let qcow2 = container(&raw, "qcow2", "", "x.qcow2");
    for (source, name) in [
        (&vhd, "snapshot.img"),
        (&vmdk, "vmdk.ami"),
        (&qcow2, "cloudimg.img"),
        (&raw, "raw.img"),
        (&raw, "raw.ami"),
        (&vhd, "no-suffix"),
        // An ext4 file system is a disk, whatever it is called.
        (&raw, "raw-no-suffix"),
    ] {
        fs::copy(source, at(name)).unwrap();
        converts(&at(name), &raw);
    }
    fs::write(at("noise"), images::noise(1, 100_000)).unwrap();
    assert_eq!(refused(&at("noise")).kind, ErrorKind::Invalid);
}

#[test]
fn a_guest_cannot_name_files_by_the_first_bytes_of_its_disk() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("other.raw"), [7; 4096]).unwrap();
    images::qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "other.raw",
        "-F",
        "raw",
        text(&at("x.qcow2")),
    ]);
    converts(&at("x.qcow2"), &at("other.raw"));
    for name in ["x.img", "x.ami", "x"] {
        fs::copy(at("x.qcow2"), at(name)).unwrap();
        let error = refused(&at(name));
        assert_eq!(error.kind, ErrorKind::Invalid, "{name}: {error}");
        assert!(error.to_string().contains("other.raw"), "{error}");
    }
}

#[test]
fn a_cut_stream_is_never_a_disk() {
    let dir = tempfile::tempdir().unwrap();
    let raw = images::edges(dir.path());
    for extension in ["gz", "xz", "zst"] {
        let packed = pack(&raw, extension);
        let bytes = fs::read(&packed).unwrap();
        for part in 1..12 {
            fs::write(&packed, &bytes[..bytes.len() * part / 12]).unwrap();
            let error = refused(&packed);
            assert_eq!(error.kind, ErrorKind::Corrupt, "{extension} {part}");
            assert!(error.to_string().contains(text(&packed)), "{error}");
        }
    }
}

#[test]
fn the_program_names_the_vm_and_leaves_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let raw = images::edges(dir.path());
    let vmdk = container(&raw, "vmdk", "subformat=streamOptimized", "web-01.vmdk");
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let packed = pack(&vmdk, "zst");
    let program = program("hyper2kvm");
    let hyper2kvm = |arguments: &[&str]| run("hyper2kvm", text(&program), arguments);
    hyper2kvm(&["convert", text(&packed), "--output", text(&out)]);
    assert_eq!(names(&out), ["web-01", "web-01.qcow2"]);
    images::judge(&raw, &out.join("web-01.qcow2"), "qcow2");
    let shown = hyper2kvm(&["inspect", text(&packed), "--json"]).stdout;
    let shown: serde_json::Value = serde_json::from_slice(&shown).unwrap();
    let disk = &shown["disks"][0];
    assert_eq!(disk["format"], "vmdk (streamOptimized) in zstd");
    assert_eq!(disk["capacity_bytes"], fs::metadata(&raw).unwrap().len());
}

#[test]
fn the_daemon_takes_them_all() {
    let site = Site::new("settle_seconds = 0\nrescan_seconds = 1\n");
    let top = site.top.path();
    let raw = images::edges(top);
    let vmdk = container(&raw, "vmdk", "subformat=streamOptimized", "web-01.vmdk");
    fs::copy(&raw, top.join("disk.raw")).unwrap();
    let gcp = top.join("gcp.tar.gz");
    let create = ["--format=oldgnu", "-C", text(top), "-Sczf", text(&gcp)];
    run("tar", "tar", &[&create[..], &["disk.raw"]].concat());
    let made = top.join("made");
    fs::create_dir(&made).unwrap();
    let chunks = "ovf:compression=\"gzip\" ovf:chunkSize=\"500000\" ovf:size=\"SIZE\"";
    package(&raw, &made, "vm.vmdk", chunks, |disk| {
        fs::rename(pack(disk, "gz"), disk).unwrap();
        let size = fs::metadata(disk).unwrap().len();
        fs::write(made.join("size"), size.to_string()).unwrap();
        cut(disk, "vm.vmdk", 500_000);
    });
    let size = fs::read_to_string(made.join("size")).unwrap();
    let ovf = fs::read_to_string(made.join("vm.ovf")).unwrap();
    fs::write(made.join("vm.ovf"), ovf.replace("SIZE", &size)).unwrap();
    fs::remove_file(made.join("vm.mf")).unwrap();

    let mut daemon = site.start();
    site.deliver(&pack(&vmdk, "gz"), "web-01.vmdk.gz");
    site.deliver(&pack(&raw, "xz"), "bare.img.xz");
    site.deliver(&gcp, "gcp.tar.gz");
    // The OVF first: then it owns what comes.
    site.deliver(&made.join("vm.ovf"), "packed.ovf");
    for chunk in names(&made)
        .iter()
        .filter(|name| name.starts_with("vm.vmdk."))
    {
        site.deliver(&made.join(chunk), chunk);
    }
    // The OVF calls its VM web-01 as well; it takes the place of the first.
    daemon.wait(120, "all of them are done", || {
        ["web-01", "bare", "gcp"]
            .iter()
            .all(|vm| site.link(vm).exists())
            && site.is_quiet()
            && names(&site.directories.queue.join(".processed")).contains(&"packed.ovf".to_owned())
    });
    for vm in ["web-01", "bare", "gcp"] {
        images::judge(&raw, &site.link(vm), "qcow2");
        assert!(!site.error(vm).exists(), "{vm}");
    }
    assert!(site.drops().is_empty(), "{:?}", site.drops());
    assert_eq!(names(&site.directories.output.join(".staging")), [""; 0]);
    daemon.stop();
}
