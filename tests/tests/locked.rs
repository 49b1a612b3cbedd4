//! Encrypted volumes and several systems on real disks: what the keys open is found and repaired,
//! what they do not is told.
#![allow(clippy::unwrap_used)] // a panic is how a test fails
use std::fs;
use std::path::{Path, PathBuf};

use converter::convert::metadata::{Guest, Metadata};
use hyper2kvm_tests::daemon::Site;
use hyper2kvm_tests::system;
use queue::error::ErrorKind;
use queue::job::{GuestCode, JobState, Record};

/// One whose service was given these credentials.
fn site(fix: &str, credentials: &[(&str, &str)]) -> Site {
    let config = format!("[guest]\nfix = \"{fix}\"\naccel = \"tcg\"\n");
    let mut site = Site::repairing(&config);
    let directory = site.top.path().join("credentials");
    fs::create_dir(&directory).unwrap();
    for (name, contents) in credentials {
        fs::write(directory.join(name), contents).unwrap();
    }
    let directory = directory.to_str().unwrap().to_owned();
    site.environment.push(("CREDENTIALS_DIRECTORY", directory));
    site
}

fn convert(site: &Site, disk: &Path) -> Record {
    let mut daemon = site.start();
    site.deliver(disk, "vm.raw");
    let mut record = None;
    daemon.wait(300, "the job ends", || {
        record = site.records().pop().filter(|it| it.state.is_final());
        record.is_some()
    });
    daemon.stop();
    record.unwrap()
}

fn told(site: &Site) -> Guest {
    let path = site.directories.output.join("vm/metadata.json");
    Metadata::parse(&fs::read(path).unwrap()).unwrap().guest
}

fn image(site: &Site) -> PathBuf {
    site.directories.output.join("vm/vm.qcow2")
}

fn codes(record: &Record) -> Vec<GuestCode> {
    record.findings.iter().map(|it| it.code).collect()
}

/// Two volumes of three are opened: by a line, and by a key that ends with a line's end.
#[test]
fn a_root_in_a_volume_that_a_key_opens_is_repaired() {
    let site = site(
        "try",
        &[("luks-b", "second\n"), ("luks-a", "first\n"), ("c", "lost")],
    );
    let at = |name: &str| site.top.path().join(name);
    let root = system::root(
        &at("root"),
        "/dev/mapper/vault / ext4 defaults 0 1\n",
        &[(
            "etc/crypttab",
            "vault /dev/sda1 none luks\nsrv /dev/sda2 none luks\n",
        )],
    );
    let data = system::ext4(&at("srv"), 8, &[("README", "served\n")]);
    let volumes = [
        system::luks(&root, "first"),
        system::luks(&data, "second\n"),
        system::luks(&system::ext4(&at("lost"), 8, &[("README", "")]), "lost"),
    ];
    let disk = system::disk(&at("disk.raw"), &volumes.each_ref().map(PathBuf::as_path));
    let record = convert(&site, &disk);
    let guest = told(&site);
    assert_eq!(record.state, JobState::Completed, "{:?}", record.error);
    assert!(guest.repaired, "{guest:?}");
    assert_eq!(codes(&record), [GuestCode::Locked]);
    let found = guest.inspection.unwrap();
    assert_eq!(found.locked, ["/dev/sda3"]);
    let kinds = found.devices.iter();
    let kinds: Vec<_> = kinds
        .map(|it| (it.name.as_str(), it.fs_type.as_str()))
        .collect();
    for volume in ["/dev/sda1", "/dev/sda2", "/dev/sda3"] {
        assert!(kinds.contains(&(volume, "crypto_LUKS")), "{kinds:?}");
    }
    for opened in ["/dev/mapper/luks0", "/dev/mapper/luks1"] {
        assert!(kinds.contains(&(opened, "ext4")), "{kinds:?}");
    }
    let partition = system::partition(&image(&site), 1, site.top.path());
    let root = system::unlocked(&partition, "first");
    let [first, second, _] = volumes.each_ref().map(|it| system::uuid(it));
    let crypttab = format!("vault UUID={first} none luks\nsrv UUID={second} none luks\n");
    assert_eq!(system::read(&root, "/etc/crypttab"), crypttab);
}

/// The systems beside a volume that stays locked: the first is repaired, the other is told.
#[test]
fn of_several_roots_the_first_is_repaired() {
    let site = site("try", &[("luks", "another")]);
    let at = |name: &str| site.top.path().join(name);
    let first = system::root(&at("first"), "/dev/sda2 / ext4 defaults 0 1\n", &[]);
    let second = system::root(&at("second"), "/dev/sda3 / ext4 defaults 0 1\n", &[]);
    let data = system::ext4(&at("data"), 8, &[("README", "")]);
    let locked = system::luks(&data, "first");
    let disk = system::disk(&at("disk.raw"), &[&locked, &first, &second]);
    let record = convert(&site, &disk);
    let guest = told(&site);
    assert!(guest.repaired, "{guest:?}");
    assert_eq!(
        codes(&record),
        [GuestCode::SeveralRoots, GuestCode::Locked],
        "{:?}",
        record.findings
    );
    assert_eq!(guest.findings, record.findings);
    let found = guest.inspection.unwrap();
    assert_eq!(found.root, "/dev/sda2");
    assert_eq!(found.other_roots, ["/dev/sda3"]);
    for (number, volume, device) in [(2, &first, None), (3, &second, Some("/dev/sda3"))] {
        let partition = system::partition(&image(&site), number, site.top.path());
        let device = device.map_or_else(|| format!("UUID={}", system::uuid(volume)), str::to_owned);
        let fstab = format!("{device} / ext4 defaults 0 1\n");
        assert_eq!(system::read(&partition, "/etc/fstab"), fstab);
    }
}

/// Only the appliance finds out that the key is wrong.
#[test]
fn a_disk_that_no_key_opens_is_refused() {
    let site = site("require", &[("luks", "another")]);
    let at = |name: &str| site.top.path().join(name);
    let root = system::root(&at("root"), "/dev/mapper/vault / ext4 defaults 0 1\n", &[]);
    let disk = system::disk(&at("disk.raw"), &[&system::luks(&root, "first")]);
    let record = convert(&site, &disk);
    assert_eq!(record.state, JobState::Failed);
    assert_eq!(codes(&record), [GuestCode::Locked]);
    let error = record.error.unwrap();
    assert_eq!(error.kind, ErrorKind::Guest);
    let cause = "/dev/sda1 is encrypted, and no key given opens it";
    assert!(error.to_text().contains(cause), "{}", error.to_text());
}
