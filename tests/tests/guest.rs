//! Guests from VMware through the real daemon: they do not boot on virtio before, and do after.
#![allow(clippy::unwrap_used, clippy::panic)] // a panic is how a test fails
use std::path::Path;

use converter::convert::metadata::Metadata;
use converter::guest::boot::Verdict;
use converter::guest::model::Interface;
use converter::guest::report::ChangeReport;
use hyper2kvm_tests::daemon::{Daemon, Site, program};
use hyper2kvm_tests::guest::{self, MAC, boot, png_size};
use hyper2kvm_tests::images::{self, qemu_img, run, text};
use hyper2kvm_tests::libvirt::{Libvirt, Terminal};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use queue::error::ErrorKind;
use queue::job::JobState;

const BLK: &[&str] = &["virtio-blk-pci,drive=disk"];
const SCSI: &[&str] = &["virtio-scsi-pci,id=scsi", "scsi-hd,bus=scsi.0,drive=disk"];
/// A repair and a proof under emulation on a busy host.
const LIMIT_SECONDS: u64 = 1500;

fn site(fix: &str, boot_check: &str) -> Site {
    Site::repairing(&format!(
        "[guest]\nfix = \"{fix}\"\nboot_check = \"{boot_check}\"\naccel = \"tcg\"\n"
    ))
}

/// Sends the guest through a daemon; the result's metadata.
fn convert(site: &Site, variant: &str, firmware: &str) -> Metadata {
    let raw = guest::disk(variant);
    let ova = guest::appliance(&raw, site.top.path(), variant, firmware);
    let mut daemon = site.start();
    site.deliver(&ova, &format!("{variant}.ova"));
    let link = site.link(variant);
    daemon.wait(LIMIT_SECONDS, "the guest is published", || {
        link.exists() || site.error(variant).exists()
    });
    let refusal = std::fs::read_to_string(site.error(variant)).unwrap_or_default();
    assert_eq!(refusal, "");
    daemon.stop();
    let records = site.records();
    println!("{variant}: {:?}", records[0].timings);
    assert_eq!(records[0].state, JobState::Completed);
    let directory = site.directories.output.join(variant);
    let metadata = std::fs::read(directory.join("metadata.json")).unwrap();
    Metadata::parse(&metadata).unwrap()
}

/// What every repaired and proven result shows.
fn check_proven(site: &Site, variant: &str, metadata: &Metadata) {
    let directory = site.directories.output.join(variant);
    let told = &metadata.guest;
    assert!(told.repaired && told.virtio, "{told:?}");
    let proof = told.boot.as_ref().unwrap();
    assert_eq!(proof.verdict, Verdict::Booted, "{}", proof.evidence);
    assert_eq!(proof.evidence, "vmware-guest login:");
    let (width, height) = png_size(&directory.join("boot.png"));
    assert!(width >= 640 && height >= 400, "{width}x{height}");
    let image = directory.join(format!("{variant}.qcow2"));
    qemu_img(&["check", "-q", "-f", "qcow2", text(&image)]);
    let domain = directory.join("domain.xml");
    guest::validate(&domain);
    let domain = std::fs::read_to_string(&domain).unwrap();
    assert!(
        domain.contains("<target dev=\"vda\" bus=\"virtio\"/>"),
        "{domain}"
    );
    run("the product", text(program()), &["verify", text(&image)]);
    check_inspection(metadata);
    // The card keeps its name and its address under its own MAC.
    let log = std::fs::read(directory.join("boot.log")).unwrap();
    let log = String::from_utf8_lossy(&log);
    let card = |line: &str| line.starts_with("ens192") && line.contains(MAC);
    assert!(log.lines().any(card), "no ens192 with {MAC} in boot.log");
    assert!(log.contains("192.0.2.10/24"), "no address in boot.log");
}

/// What is told of the guest as it came.
fn check_inspection(metadata: &Metadata) {
    let told = &metadata.guest;
    let found = told.inspection.as_ref().unwrap();
    assert_eq!(
        (found.os.distro.as_str(), found.os.version.as_str()),
        ("debian", "12")
    );
    let [card] = found.nics.as_slice() else {
        panic!("{:?}", found.nics)
    };
    assert_eq!(card.mac.as_deref(), Some(MAC));
    assert_eq!(card.name.as_deref(), Some("ens192"));
    let is_static = |it: &&Interface| it.addresses == ["192.0.2.10/24"];
    let interface = found.interfaces.iter().find(is_static).unwrap();
    assert_eq!(interface.name.as_deref(), Some("ens192"));
    assert_eq!(interface.files, ["/etc/network/interfaces"]);
    let [kernel] = found.kernels.as_slice() else {
        panic!("{:?}", found.kernels)
    };
    let holds = |driver: &str| kernel.drivers.iter().any(|held| held == driver);
    assert!(holds("vmw_pvscsi") && !holds("virtio_blk"), "{kernel:?}");
    assert_eq!(found.agents, ["open-vm-tools"]);
    assert!(
        found.locked.is_empty() && told.findings.is_empty(),
        "{:?}",
        told.findings
    );
    assert!(told.timings.contains_key("trim"), "{:?}", told.timings);
}

/// The whole chain for the simplest guest: it stops on virtio before, and boots on both after.
#[test]
fn a_guest_from_vmware_boots_on_virtio() {
    let site = site("require", "require");
    let before = guest::disk("plain");
    let said = boot(&before, "raw", BLK, site.top.path(), &["ALERT!", "login:"]);
    assert!(said.contains("ALERT!"), "it boots without a repair: {said}");
    let metadata = convert(&site, "plain", "bios");
    check_proven(&site, "plain", &metadata);
    let image = site.directories.output.join("plain/plain.qcow2");
    let libvirt = Libvirt::start(&site.top.path().join("libvirt"));
    let domain = start_in_libvirt(&site, &libvirt);
    let said = boot(
        &image,
        "qcow2",
        SCSI,
        site.top.path(),
        &["login:", "ALERT!"],
    );
    assert!(said.contains("vmware-guest login:"), "{said}");
    domain.wait(400, "vmware-guest login:");
    assert_eq!(libvirt.virsh(&["domstate", "plain"]), "running");
    drop(libvirt);
    a_second_repair_changes_nothing(&site);
    undo_restores_every_byte(&site);
}

/// Defined from its domain.xml and started, on a throwaway overlay; what its serial line says.
fn start_in_libvirt(site: &Site, libvirt: &Libvirt) -> Terminal {
    let image = site.directories.output.join("plain/plain.qcow2");
    let overlay = site.top.path().join("domain.qcow2");
    let (from, to) = (text(&image), text(&overlay));
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", from, to]);
    let domain = std::fs::read_to_string(image.with_file_name("domain.xml")).unwrap();
    assert_eq!(domain.matches(from).count(), 1, "{domain}");
    let path = site.top.path().join("domain.xml");
    std::fs::write(&path, domain.replace(from, to)).unwrap();
    libvirt.define(&path);
    libvirt.virsh(&["start", "plain"]);
    libvirt.terminal("plain")
}

/// The repaired image, converted again as the same machine's: there is nothing left to do.
fn a_second_repair_changes_nothing(site: &Site) {
    let top = site.top.path().join("again");
    std::fs::create_dir(&top).unwrap();
    let image = site.directories.output.join("plain/plain.qcow2");
    std::fs::copy(image, top.join("plain.qcow2")).unwrap();
    let manifest = serde_json::json!({"manifest_version": "1.0", "source": {"vm_name": "plain"},
        "vm": {"firmware": "bios"}, "nics": [{"mac": MAC}], "disks": [{"id": "disk",
            "source_format": "qcow2", "bytes": 0, "local_path": "plain.qcow2"}]});
    std::fs::write(top.join("manifest.json"), manifest.to_string()).unwrap();
    let mut command = std::process::Command::new("timeout");
    command.arg("500").arg(program());
    command.args(["convert", "--accel", "tcg", "--output"]);
    command.arg(top.join("out/")).arg(&top);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report = std::fs::read(top.join("out/plain/change-report.json")).unwrap();
    let report: ChangeReport = serde_json::from_slice(&report).unwrap();
    assert!(report.repaired, "{report:?}");
    assert!(report.changes.is_empty(), "{:?}", report.changes);
    assert!(report.ran.is_empty(), "{:?}", report.ran);
}

/// The files of the guest as the source has them, after `undo` on the published result.
fn undo_restores_every_byte(site: &Site) {
    let directory = site.directories.output.join("plain");
    let report = std::fs::read_to_string(directory.join("change-report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let changes = report["changes"].as_array().unwrap().clone();
    assert!(changes.len() >= 4, "{report}");
    let mut command = std::process::Command::new("timeout");
    command
        .arg("500")
        .arg(program())
        .args(["undo", "--accel", "tcg"])
        .arg(&directory);
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut script = String::from("run\nmount-ro /dev/sda1 /\n");
    let mut expected = Vec::new();
    for change in &changes {
        let path = change["path"].as_str().unwrap();
        match change["before"].as_str() {
            Some(before) if before.starts_with("sha256:") => {
                script += &format!("checksum sha256 {path}\n");
                expected.push(before["sha256:".len()..].to_owned());
            }
            Some(before) => {
                script += &format!("readlink {path}\n");
                expected.push(before["link:".len()..].to_owned());
            }
            None => {
                script += &format!("exists {path}\n");
                expected.push("false".to_owned());
            }
        }
    }
    let image = directory.join("plain.qcow2");
    assert_eq!(fish(&script, &image, site.top.path()), expected);
    let domain = std::fs::read_to_string(directory.join("domain.xml")).unwrap();
    assert!(domain.contains("bus=\"sata\""), "{domain}");
    run("the product", text(program()), &["verify", text(&image)]);
}

/// The lines that guestfish prints for a script on an image.
fn fish(script: &str, image: &Path, dir: &Path) -> Vec<String> {
    let path = dir.join("script.fish");
    std::fs::write(&path, script).unwrap();
    let mut command = std::process::Command::new("timeout");
    command
        .args(["300", "guestfish", "--ro", "--format=qcow2", "-a"])
        .arg(image);
    command.arg("-f").arg(&path);
    command.env("LIBGUESTFS_BACKEND", "direct");
    command.env("LIBGUESTFS_BACKEND_SETTINGS", "force_tcg");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success(),
        "guestfish (libguestfs-tools): {said}"
    );
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(str::to_owned).collect()
}

#[test]
fn lvm_with_a_boot_partition_and_uefi_boots() {
    let site = site("require", "require");
    let metadata = convert(&site, "lvm", "efi");
    check_proven(&site, "lvm", &metadata);
    let inspection = metadata.guest.inspection.unwrap();
    assert_eq!(inspection.root, "/dev/mapper/vg-root");
}

#[test]
fn a_btrfs_subvolume_boots() {
    let site = site("require", "require");
    let metadata = convert(&site, "btrfs", "bios");
    check_proven(&site, "btrfs", &metadata);
}

/// What the product says of a guest that it was told to leave alone.
#[test]
fn a_guest_that_was_left_alone_is_shown_to_stop() {
    let site = site("off", "try");
    let metadata = convert(&site, "plain", "bios");
    let proof = metadata.guest.boot.unwrap();
    assert_eq!(proof.verdict, Verdict::Failed, "{}", proof.evidence);
    assert!(proof.evidence.contains("ALERT!"), "{}", proof.evidence);
    assert!(!metadata.guest.repaired);
}

/// Waits until the job's appliance is up, then sends it (with its QEMU) a signal.
fn strike(daemon: &mut Daemon, signal: Signal) {
    let pid = daemon.pid();
    let mut found = Vec::new();
    // A launch under emulation takes some ten seconds: this is in the middle of it.
    daemon.wait(300, "QEMU runs in an appliance", || {
        found = guest::appliances(pid);
        found.iter().any(|id| !guest::emulators(*id).is_empty())
    });
    for id in found {
        nix::sys::signal::killpg(Pid::from_raw(id), signal).unwrap();
    }
}

/// Killed (as for want of memory) or hung: the image is as it was converted, the job says `guest`,
/// and the daemon goes on.
#[test]
fn an_appliance_that_dies_or_hangs_costs_its_job_only() {
    let raw = guest::disk("plain");
    for (fix, signal, timeout) in [
        ("try", Signal::SIGKILL, 1800),
        ("require", Signal::SIGKILL, 1800),
        ("require", Signal::SIGSTOP, 20),
    ] {
        let site = Site::repairing(&format!(
            "[guest]\nfix = \"{fix}\"\naccel = \"tcg\"\nrepair_timeout = {timeout}\n"
        ));
        let ova = guest::appliance(&raw, site.top.path(), "struck", "bios");
        let mut daemon = site.start();
        site.deliver(&ova, "struck.ova");
        strike(&mut daemon, signal);
        daemon.wait(500, "the job ends", || {
            site.link("struck").exists() || site.error("struck").exists()
        });
        if fix == "try" {
            let directory = site.directories.output.join("struck");
            let metadata = std::fs::read(directory.join("metadata.json")).unwrap();
            let told = Metadata::parse(&metadata).unwrap().guest;
            assert_eq!(told.code.as_deref(), Some("repair_failed"));
            images::judge(&raw, &directory.join("struck.qcow2"), "qcow2");
            assert!(!directory.join(".repair").exists());
        } else {
            let mut told = None;
            daemon.wait(60, "its record tells", || {
                told = site.records().pop().and_then(|record| record.error);
                told.is_some()
            });
            let told = told.unwrap();
            assert_eq!(told.kind, ErrorKind::Guest, "{}", told.to_text());
        }
        // A launch that hangs is tried a second time; one that died is not.
        let again = daemon.log().contains("launching once more");
        assert_eq!(again, signal == Signal::SIGSTOP, "{}", daemon.log());
        assert!(guest::appliances(daemon.pid()).is_empty());
        // It goes on with the next one.
        site.deliver(&images::edges(site.top.path()), "next.raw");
        daemon.wait(60, "the next job", || {
            site.error("next").exists() || site.link("next").exists()
        });
        daemon.stop();
    }
}

/// What nobody has a recipe for is converted, marked, and gets devices that any guest knows.
#[test]
fn guests_without_a_recipe_are_converted_and_marked() {
    let site = site("try", "off");
    let dir = site.top.path();
    let empty = images::raw_disk(&dir.join("empty.raw"), 64 << 20, &[]);
    let script = "run\npart-disk /dev/sda mbr\nmkfs ext4 /dev/sda1\n";
    let path = dir.join("empty.fish");
    std::fs::write(&path, script).unwrap();
    let mut command = std::process::Command::new("timeout");
    command
        .args(["300", "guestfish", "--format=raw", "-a"])
        .arg(&empty)
        .arg("-f")
        .arg(&path);
    command.env("LIBGUESTFS_BACKEND", "direct");
    command.env("LIBGUESTFS_BACKEND_SETTINGS", "force_tcg");
    assert!(
        command.status().unwrap().success(),
        "guestfish (libguestfs-tools)"
    );
    let fat = images::raw_disk(&dir.join("fat.raw"), 16 << 20, &[]);
    run("dosfstools", "mkfs.vfat", &[text(&fat)]);
    let random = images::raw_disk(
        &dir.join("random.raw"),
        1 << 20,
        &[(0, &images::noise(9, 1 << 20))],
    );
    let mut daemon = site.start();
    for (vm, disk) in [("empty", &empty), ("fat", &fat), ("random", &random)] {
        site.deliver(disk, &format!("{vm}.raw"));
        daemon.wait(400, vm, || {
            site.link(vm).exists() || site.error(vm).exists()
        });
        let directory = site.directories.output.join(vm);
        let metadata = std::fs::read(directory.join("metadata.json")).unwrap();
        let told = Metadata::parse(&metadata).unwrap().guest;
        assert!(!told.repaired && !told.virtio);
        assert_eq!(told.code.as_deref(), Some("no_system"), "{vm}: {told:?}");
        images::judge(disk, &directory.join(format!("{vm}.qcow2")), "qcow2");
        let domain = std::fs::read_to_string(directory.join("domain.xml")).unwrap();
        assert!(domain.contains("bus=\"sata\""), "{domain}");
    }
    daemon.stop();
}
