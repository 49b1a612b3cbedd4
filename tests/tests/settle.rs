//! Arrival: slow writers, several files of one VM in every order, names of every sort. One VM is
//! one job, whatever order its files come in, and nothing half-written is ever taken.
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use hyper2kvm_tests::daemon::{Daemon, Site};
use hyper2kvm_tests::images::{self, text};
use queue::job::JobState;

const CONFIG: &str = "settle_seconds = 1\nrescan_seconds = 1\n";

/// How files come into the queue directory.
#[derive(Debug, Clone, Copy)]
enum Way {
    Renamed,
    Copied,
}

fn bring(site: &Site, way: Way, file: &Path) {
    let name = file.file_name().unwrap();
    match way {
        Way::Renamed => site.deliver(file, text(Path::new(name))),
        Way::Copied => fs::copy(file, site.directories.queue.join(name))
            .map(|_| ())
            .unwrap(),
    }
}

fn orders(files: &[PathBuf]) -> Vec<Vec<PathBuf>> {
    if files.is_empty() {
        return vec![Vec::new()];
    }
    let mut orders = Vec::new();
    for (index, first) in files.iter().enumerate() {
        let mut others = files.to_vec();
        others.remove(index);
        for mut order in self::orders(&others) {
            order.insert(0, first.clone());
            orders.push(order);
        }
    }
    orders
}

fn files_of(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

fn expect_done(site: &Site, daemon: &mut Daemon, vm: &str, disks: &[(&str, &Path)]) {
    daemon.wait(60, &format!("{vm} is done"), || {
        site.link(vm).exists() && site.is_quiet()
    });
    for (file, raw) in disks {
        images::judge(raw, &site.directories.output.join(vm).join(file), "qcow2");
    }
    let records = site.records();
    let told: Vec<_> = records
        .iter()
        .filter(|record| record.vm_name == vm)
        .collect();
    assert!(
        matches!(told[..], [only] if only.state == JobState::Completed),
        "{told:?}"
    );
}

#[test]
fn a_descriptor_and_its_extents_are_one_job() {
    let site = Site::new(CONFIG);
    let top = site.top.path();
    let raw = images::raw_disk(
        &top.join("a.raw"),
        3 << 20,
        &[(0, &images::noise(1, 1 << 20))],
    );
    let mut daemon = site.start();
    let mut jobs = 0;
    for subformat in ["monolithicFlat", "twoGbMaxExtentSparse"] {
        for way in [Way::Renamed, Way::Copied] {
            for (number, _) in orders(&[PathBuf::new(), PathBuf::new()]).iter().enumerate() {
                let vm = format!("{subformat}-{way:?}-{number}");
                let dir = top.join(&vm);
                fs::create_dir(&dir).unwrap();
                let option = format!("subformat={subformat}");
                let path = dir.join(format!("{vm}.vmdk"));
                let from = ["convert", "-f", "raw", "-O", "vmdk", "-o", &option];
                images::qemu_img(&[&from[..], &[text(&raw), text(&path)]].concat());
                for file in &orders(&files_of(&dir))[number] {
                    bring(&site, way, file);
                }
                expect_done(&site, &mut daemon, &vm, &[(&format!("{vm}.qcow2"), &raw)]);
                jobs += 1;
            }
        }
    }
    assert_eq!(site.records().len(), jobs, "no extent was a job of its own");
    assert!(site.drops().is_empty(), "{:?}", site.drops());
    daemon.stop();
}

#[test]
fn an_ovf_and_its_disks_are_one_job() {
    let site = Site::new(CONFIG);
    let top = site.top.path();
    let (one, two) = (images::noise(2, 300_000), images::noise(3, 300_000));
    let raws = [
        images::raw_disk(&top.join("1.raw"), 2 << 20, &[(0, &one)]),
        images::raw_disk(&top.join("2.raw"), 1 << 20, &[(512, &two)]),
    ];
    let mut daemon = site.start();
    for way in [Way::Renamed, Way::Copied] {
        for number in 0..6 {
            let vm = format!("ovf-{way:?}-{number}");
            let dir = top.join(&vm);
            fs::create_dir(&dir).unwrap();
            let names = [format!("{vm}-disk1.vmdk"), format!("{vm}-disk2.vmdk")];
            for (raw, name) in raws.iter().zip(&names) {
                let made = images::vmdk(raw, "streamOptimized", &top.join("made"));
                fs::rename(made, dir.join(name)).unwrap();
            }
            let ovf = images::ovf(&[(&names[0], 2 << 20), (&names[1], 1 << 20)]);
            let ovf = ovf.replace("ovf:id=\"web-01\"", &format!("ovf:id=\"{vm}\""));
            fs::write(dir.join(format!("{vm}.ovf")), ovf).unwrap();
            for file in &orders(&files_of(&dir))[number] {
                bring(&site, way, file);
            }
            let results = [format!("{vm}.qcow2"), format!("{vm}-disk2.qcow2")];
            let disks = [
                (results[0].as_str(), &*raws[0]),
                (results[1].as_str(), &*raws[1]),
            ];
            expect_done(&site, &mut daemon, &vm, &disks);
        }
    }
    assert!(site.drops().is_empty(), "{:?}", site.drops());
    daemon.stop();
}

/// The disk came so long before its OVF that it was converted as a VM of its own.
#[test]
fn an_ovf_long_after_its_disk() {
    let site = Site::new(CONFIG);
    let top = site.top.path();
    let raw = images::raw_disk(
        &top.join("a.raw"),
        2 << 20,
        &[(0, &images::noise(4, 99_999))],
    );
    let mut daemon = site.start();
    site.deliver(
        &images::vmdk(&raw, "streamOptimized", &top.join("made")),
        "db-disk1.vmdk",
    );
    expect_done(&site, &mut daemon, "db-disk1", &[("db-disk1.qcow2", &raw)]);
    let ovf = images::ovf(&[("db-disk1.vmdk", 2 << 20)]).replace("web-01", "db");
    fs::write(top.join("db.ovf"), ovf).unwrap();
    site.deliver(&top.join("db.ovf"), "db.ovf");
    expect_done(&site, &mut daemon, "db", &[("db.qcow2", &raw)]);
    assert!(!site.link("db-disk1").exists() && !site.directories.output.join("db-disk1").exists());
    let records = site.records();
    let [alone, owner] = ["db-disk1", "db"].map(|vm| {
        let told = records.iter().find(|record| record.vm_name == vm);
        told.unwrap()
    });
    assert_eq!(alone.state, JobState::Cancelled);
    assert_eq!(alone.superseded_by, Some(owner.job_id));
    daemon.stop();
}

/// A disk that looks like one of several lies still for long before its owner comes.
#[test]
fn a_disk_that_looks_like_one_of_several_waits_for_its_owner() {
    let site = Site::new(CONFIG);
    let top = site.top.path();
    let raw = images::raw_disk(
        &top.join("a.raw"),
        2 << 20,
        &[(0, &images::noise(4, 99_999))],
    );
    let made = images::vmdk(&raw, "streamOptimized", &top.join("made"));
    let mut daemon = site.start();
    fs::copy(&made, site.directories.queue.join("db-disk1.vmdk")).unwrap();
    // Each of these settles, and so has the disk twice over.
    for vm in ["one", "two"] {
        fs::copy(&made, site.directories.queue.join(format!("{vm}.vmdk"))).unwrap();
        expect_done(&site, &mut daemon, vm, &[]);
    }
    let ovf = images::ovf(&[("db-disk1.vmdk", 2 << 20)]).replace("web-01", "db");
    fs::write(site.directories.queue.join("db.ovf"), ovf).unwrap();
    expect_done(&site, &mut daemon, "db", &[("db.qcow2", &raw)]);
    assert_eq!(site.records().len(), 3, "the disk was no job of its own");
    // Without an owner it is converted after all.
    fs::copy(&made, site.directories.queue.join("lone-disk1.vmdk")).unwrap();
    let result = [("lone-disk1.qcow2", &*raw)];
    expect_done(&site, &mut daemon, "lone-disk1", &result);
    daemon.stop();
}

#[test]
fn a_slow_writer_is_waited_for() {
    let site = Site::new(CONFIG);
    let top = site.top.path();
    let raw = images::raw_disk(
        &top.join("a.raw"),
        2 << 20,
        &[(0, &images::noise(5, 1 << 20))],
    );
    let disk = images::vmdk(&raw, "streamOptimized", &top.join("made"));
    let bytes = fs::read(&disk).unwrap();
    let mut daemon = site.start();
    let slow = site.directories.queue.join("slow.vmdk");
    let unfinished = site.directories.queue.join("later.vmdk.part");
    fs::copy(&disk, &unfinished).unwrap();
    let mut writer = File::create(&slow).unwrap();
    for (number, piece) in bytes.chunks(bytes.len() / 3 + 1).enumerate() {
        writer.write_all(piece).unwrap();
        // Another drop in between proves that the daemon looked, and that time has passed.
        let vm = format!("between-{number}");
        fs::copy(&disk, site.directories.queue.join(format!("{vm}.vmdk"))).unwrap();
        expect_done(&site, &mut daemon, &vm, &[]);
        assert!(slow.exists() && unfinished.exists() && !site.error("slow").exists());
    }
    drop(writer);
    expect_done(&site, &mut daemon, "slow", &[("slow.qcow2", &raw)]);
    fs::rename(&unfinished, unfinished.with_extension("")).unwrap();
    expect_done(&site, &mut daemon, "later", &[("later.qcow2", &raw)]);
    assert_eq!(site.records().len(), 5);
    daemon.stop();
}

#[test]
fn names_of_every_sort() {
    let site = Site::new(CONFIG);
    let top = site.top.path();
    let raw = images::raw_disk(
        &top.join("a.raw"),
        1 << 20,
        &[(0, &images::noise(6, 9_999))],
    );
    let disk = images::vmdk(&raw, "streamOptimized", &top.join("made"));
    let mut daemon = site.start();
    let long = "x".repeat(200);
    for (name, vm) in [
        ("Domain Controller 2.0.vmdk", "Domain Controller 2.0"),
        ("größe-日本.vmdk", "größe-日本"),
        ("two\nlines.vmdk", "two%0Alines"),
        ("per%cent.vmdk", "per%25cent"),
        ("UPPER.VMDK", "UPPER"),
        ("-rf.vmdk", "-rf"),
        ("quote'\"$(id).vmdk", "quote%27%22%24%28id%29"),
        (&format!("{long}.vmdk"), &long),
    ] {
        site.deliver(&disk, name);
        let result = format!("{vm}.qcow2");
        expect_done(&site, &mut daemon, vm, &[(&result, &raw)]);
    }
    // Not UTF-8: it cannot be told of in JSON, so it stays, and stops nobody.
    let odd: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"odd-\xff.vmdk");
    fs::copy(&disk, site.directories.queue.join(odd)).unwrap();
    site.deliver(&disk, "after.vmdk");
    expect_done(&site, &mut daemon, "after", &[("after.qcow2", &raw)]);
    daemon.stop();
}

#[test]
fn a_disk_and_its_backing_file_are_one_job() {
    let site = Site::new(CONFIG);
    let top = site.top.path();
    let raw = images::raw_disk(
        &top.join("a.raw"),
        2 << 20,
        &[(65_536, &images::noise(8, 300_000))],
    );
    let mut daemon = site.start();
    for way in [Way::Renamed, Way::Copied] {
        for number in 0..2 {
            let vm = format!("chain-{way:?}-{number}");
            let dir = top.join(&vm);
            fs::create_dir(&dir).unwrap();
            let (base, leaf) = (format!("{vm}-base.qcow2"), format!("{vm}.qcow2"));
            let [base_path, leaf_path] = [&base, &leaf].map(|name| dir.join(name));
            let convert = ["convert", "-f", "raw", "-O", "qcow2"];
            images::qemu_img(&[&convert[..], &[text(&raw), text(&base_path)]].concat());
            let create = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &base];
            images::qemu_img(&[&create[..], &[text(&leaf_path)]].concat());
            for file in &orders(&files_of(&dir))[number] {
                bring(&site, way, file);
            }
            let result = format!("{vm}.qcow2");
            expect_done(&site, &mut daemon, &vm, &[(&result, &raw)]);
            let alone = site.directories.output.join(format!("{vm}-base"));
            assert!(!alone.exists(), "the base is a part of {vm}");
        }
    }
    assert!(site.drops().is_empty(), "{:?}", site.drops());
    daemon.stop();
}
