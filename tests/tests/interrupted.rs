//! Repairs that are struck while they write: the images are as they were converted.
#![allow(clippy::unwrap_used)] // a panic is how a test fails
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use converter::convert::metadata::{Guest, Metadata};
use hyper2kvm_tests::daemon::{Daemon, Site, names};
use hyper2kvm_tests::guest;
use hyper2kvm_tests::images;
use hyper2kvm_tests::system;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use queue::job::{JobState, Phase, Record};

fn told(site: &Site, vm: &str) -> Guest {
    let path = site.directories.output.join(vm).join("metadata.json");
    Metadata::parse(&fs::read(path).unwrap()).unwrap().guest
}

fn record(site: &Site, vm: &str) -> Option<Record> {
    let mut records = site.records();
    records.retain(|record| record.vm_name == vm);
    records.pop()
}

/// How long the first overlay of the job that is being repaired is by now.
fn overlay_bytes(site: &Site) -> u64 {
    let jobs = fs::read_dir(site.directories.staging())
        .into_iter()
        .flatten();
    let overlays = jobs
        .flatten()
        .map(|job| job.path().join(".repair/disk0.qcow2"));
    overlays
        .filter_map(|path| path.metadata().ok())
        .map(|m| m.len())
        .max()
        .unwrap_or(0)
}

fn is_over(site: &Site, vm: &str) -> bool {
    site.link(vm).exists() || site.error(vm).exists()
}

/// Whatever befalls the appliance, the image is published as it was converted, and says so.
fn check_untouched(site: &Site, daemon: &mut Daemon, vm: &str, raw: &Path) {
    daemon.wait(300, "the job ends", || is_over(site, vm));
    assert!(!site.error(vm).exists(), "{}", daemon.log());
    let guest = told(site, vm);
    assert_eq!(guest.code.as_deref(), Some("repair_failed"), "{guest:?}");
    let reason = guest.reason.unwrap();
    println!("{vm}: {reason}");
    assert_eq!(reason.lines().count(), 1);
    assert!(!reason.contains("LIBGUESTFS_DEBUG"));
    let directory = site.directories.output.join(vm);
    images::judge(raw, &directory.join(format!("{vm}.qcow2")), "qcow2");
    assert!(!directory.join(".repair").exists());
    assert!(guest::appliances(daemon.pid()).is_empty());
}

/// At its first write, while it writes much, and for want of memory; meanwhile others are copied.
#[test]
fn an_appliance_that_dies_while_it_writes_leaves_the_image_as_it_was() {
    let raw = guest::disk("plain");
    let site = Site::repairing("[guest]\nfix = \"try\"\naccel = \"tcg\"\n");
    let small = images::raw_disk(&site.top.path().join("small.raw"), 1 << 20, &[(0, b"data")]);
    let ova = guest::appliance(&raw, site.top.path(), "guest", "bios");
    let mut daemon = site.start();
    for (drop, written_bytes, whole) in [("first", 1 << 20, true), ("much", 12 << 20, false)] {
        site.deliver(&ova, &format!("{drop}.ova"));
        await_repair(&site, &mut daemon, "guest");
        if whole {
            beside(&site, &mut daemon, &small);
        }
        daemon.wait(400, "the repair writes", || {
            overlay_bytes(&site) >= written_bytes || is_over(&site, "guest")
        });
        assert!(!is_over(&site, "guest"), "it was not struck");
        let appliance = guest::appliances(daemon.pid())[0];
        if whole {
            killpg(Pid::from_raw(appliance), Signal::SIGKILL).unwrap();
        } else {
            // As the kernel does when memory runs out: the largest process goes.
            let largest = guest::emulators(appliance)[0];
            kill(Pid::from_raw(largest), Signal::SIGKILL).unwrap();
        }
        check_untouched(&site, &mut daemon, "guest", &raw);
        fs::remove_file(site.link("guest")).unwrap();
    }
    // Too little for the appliance's memory: QEMU is refused it.
    let limit = nix::libc::rlimit {
        rlim_cur: 1250 << 20,
        rlim_max: 1250 << 20,
    };
    let pid = i32::try_from(daemon.pid()).unwrap();
    // SAFETY: prlimit(2) reads `limit` and writes nothing.
    let set =
        unsafe { nix::libc::prlimit(pid, nix::libc::RLIMIT_AS, &limit, std::ptr::null_mut()) };
    assert_eq!(set, 0);
    site.deliver(&ova, "starved.ova");
    daemon.wait(100, "it is claimed", || site.drops().is_empty());
    check_untouched(&site, &mut daemon, "guest", &raw);
    daemon.stop();
}

/// Waits until the job of this name is being repaired.
fn await_repair(site: &Site, daemon: &mut Daemon, vm: &str) {
    daemon.wait(100, "the repair begins", || {
        record(site, vm).is_some_and(|record| record.phase == Phase::Repair)
    });
}

/// The one job slot is free while a guest is repaired.
fn beside(site: &Site, daemon: &mut Daemon, small: &Path) {
    site.deliver(small, "beside.raw");
    daemon.wait(60, "the next one is copied", || {
        site.link("beside").exists()
    });
    let repaired = record(site, "guest").unwrap();
    assert_eq!(
        (repaired.state, repaired.phase),
        (JobState::Processing, Phase::Repair)
    );
}

/// A root and its /boot, each on a disk of its own.
fn two_disks(dir: &Path) -> [PathBuf; 2] {
    let fstab = "/dev/sda1 / ext4 defaults 0 1\n/dev/sdb1 /boot ext4 defaults 0 2\n";
    let loader = "LABEL linux\n  KERNEL /vmlinuz\n  APPEND root=/dev/sda1 ro\n";
    let root = system::root(&dir.join("root"), fstab, &[]);
    let boot = system::ext4(
        &dir.join("boot"),
        system::ROOM_MIB,
        &[("extlinux/extlinux.conf", loader)],
    );
    let disk = |name: &str, partition: &Path| system::disk(&dir.join(name), &[partition]);
    [disk("a.raw", &root), disk("b.raw", &boot)]
}

fn deliver_both(site: &Site, disks: &[PathBuf; 2]) {
    let manifest = serde_json::json!({"manifest_version": "1.0", "source": {"vm_name": "vm"},
        "disks": [{"id": "a", "source_format": "raw", "bytes": 0, "local_path": "a.raw"},
            {"id": "b", "source_format": "raw", "bytes": 0, "local_path": "b.raw"}]});
    let drop = site.directories.queue.join(".vm");
    fs::create_dir_all(&drop).unwrap();
    for disk in disks {
        fs::copy(disk, drop.join(disk.file_name().unwrap())).unwrap();
    }
    fs::write(drop.join("manifest.json"), manifest.to_string()).unwrap();
    fs::rename(drop, site.directories.queue.join("vm")).unwrap();
}

/// The images of a VM of two disks in a directory.
fn images_in(directory: &Path) -> [PathBuf; 2] {
    ["vm.qcow2", "vm-disk2.qcow2"].map(|name| directory.join(name))
}

fn staged(site: &Site) -> [PathBuf; 2] {
    let jobs = fs::read_dir(site.directories.staging()).unwrap();
    let mut jobs = jobs.flatten().map(|job| job.path());
    images_in(&jobs.find(|path| path.join("vm.qcow2").exists()).unwrap())
}

fn is_same(raw: &Path, image: &Path) -> bool {
    let mut command = std::process::Command::new("qemu-img");
    command.args(["compare", "-q", "-f", "raw", "-F", "qcow2"]);
    let code = command.arg(raw).arg(image).status().unwrap().code();
    assert!(code.is_some_and(|code| code < 2), "{code:?}");
    code == Some(0)
}

/// Whether the next attempt may go on with what is staged.
fn has_journal(site: &Site) -> bool {
    let staged = names(&site.directories.staging());
    staged.iter().any(|name| name.ends_with(".journal"))
}

/// What the daemon logs when an appliance is up and begins to look at its disks.
const LOOKS: &str = "the appliance runs under";

/// A qemu-img that stops before it commits the overlay which `hold` names, and tells its process.
struct Brake {
    dir: PathBuf,
}

impl Brake {
    fn install(site: &mut Site) -> Self {
        let dir = site.top.path().join("bin");
        fs::create_dir(&dir).unwrap();
        let at = dir.display();
        let script = format!(
            "#!/bin/sh\nfor last; do :; done\n\
             if [ \"$1 ${{last##*/}}\" = \"commit $(cat {at}/hold)\" ]; then\n\
             echo $$ >{at}/held.part; mv {at}/held.part {at}/held; exec sleep 600\nfi\n\
             exec /usr/bin/qemu-img \"$@\"\n"
        );
        let tool = dir.join("qemu-img");
        fs::write(&tool, script).unwrap();
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
        site.prefer_programs(&dir);
        let brake = Self { dir };
        brake.hold("nothing");
        brake
    }

    fn hold(&self, overlay: &str) {
        fs::write(self.dir.join("hold"), overlay).unwrap();
    }

    /// Kills the daemon while the commit is held.
    fn strike(&self, mut daemon: Daemon) {
        let held = self.dir.join("held");
        daemon.wait(200, "the commit is held", || held.exists());
        daemon.kill();
        let pid = fs::read_to_string(&held).unwrap().trim().parse().unwrap();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        fs::remove_file(held).unwrap();
    }
}

/// The daemon dies while it looks, before the first image is written, and between the two.
#[test]
fn two_disks_are_repaired_together_or_not_at_all() {
    let config = "max_attempts = 9\n[guest]\nfix = \"require\"\naccel = \"tcg\"\n";
    let mut site = Site::repairing(config);
    site.environment.push(("RUST_LOG", "debug".to_owned()));
    let brake = Brake::install(&mut site);
    let disks = two_disks(site.top.path());
    let is_as_converted = |site: &Site| {
        let [first, second] = staged(site);
        (is_same(&disks[0], &first), is_same(&disks[1], &second))
    };
    deliver_both(&site, &disks);
    let mut daemon = site.start();
    daemon.wait_for_log(100, LOOKS);
    daemon.kill();
    assert_eq!(is_as_converted(&site), (true, true));
    assert!(has_journal(&site));

    brake.hold("disk0.qcow2");
    brake.strike(site.start());
    assert_eq!(is_as_converted(&site), (true, true));
    assert!(!has_journal(&site));

    brake.hold("disk1.qcow2");
    brake.strike(site.start());
    assert_eq!(is_as_converted(&site), (false, true));
    assert!(!has_journal(&site));

    brake.hold("nothing");
    let mut daemon = site.start();
    daemon.wait(300, "the job ends", || is_over(&site, "vm"));
    daemon.stop();
    let guest = told(&site, "vm");
    assert!(guest.repaired, "{guest:?}");
    let directory = site.directories.output.join("vm");
    assert!(!directory.join(".repair").exists());
    let [first, second] = images_in(&directory);
    let root = system::partition(&first, 1, site.top.path());
    let name = format!("UUID={}", system::uuid(&root));
    let fstab = system::read(&root, "/etc/fstab");
    assert!(fstab.starts_with(&format!("{name} / ext4 ")), "{fstab}");
    images::run("e2fsprogs", "e2fsck", &["-fn", images::text(&root)]);
    let boot = system::partition(&second, 1, site.top.path());
    let loader = system::read(&boot, "/extlinux/extlinux.conf");
    assert!(loader.contains("console=ttyS0"), "{loader}");
    assert!(fstab.contains(&system::uuid(&boot)), "{fstab}");
    images::run("e2fsprogs", "e2fsck", &["-fn", images::text(&boot)]);
}

#[test]
fn an_appliance_that_dies_while_it_looks_leaves_the_images_as_they_were() {
    let mut site = Site::repairing("[guest]\nfix = \"try\"\naccel = \"tcg\"\n");
    site.environment.push(("RUST_LOG", "debug".to_owned()));
    let disks = two_disks(site.top.path());
    deliver_both(&site, &disks);
    let mut daemon = site.start();
    daemon.wait_for_log(100, LOOKS);
    let appliance = guest::appliances(daemon.pid())[0];
    killpg(Pid::from_raw(appliance), Signal::SIGKILL).unwrap();
    check_untouched(&site, &mut daemon, "vm", &disks[0]);
    let [_, second] = images_in(&site.directories.output.join("vm"));
    images::judge(&disks[1], &second, "qcow2");
    daemon.stop();
}
