//! Hostile input: whatever lies in the queue, it gets its `.error` with cause and remedy, nothing
//! leaves its directory, and the daemon goes on to convert the next good disk.
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use hyper2kvm_tests::daemon::{Daemon, Site, names};
use hyper2kvm_tests::images::{self, text};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// What stays incomplete fails after a second; transient failures are not tried again.
const CONFIG: &str =
    "settle_seconds = 0\nincomplete_timeout = 1\nrescan_seconds = 1\n[retry]\nmax_retries = 0\n";

fn start() -> (Site, Daemon) {
    let site = Site::new(CONFIG);
    let daemon = site.start();
    (site, daemon)
}

fn put(site: &Site, name: &str, bytes: &[u8]) {
    let file = site.top.path().join("part");
    fs::write(&file, bytes).unwrap();
    site.deliver(&file, name);
}

/// The VM failed, with at least a cause and a line of what to do.
fn expect_error(site: &Site, daemon: &mut Daemon, vm: &str) -> String {
    daemon.wait(60, &format!("{vm}.error"), || {
        site.error(vm).exists() && site.is_quiet()
    });
    let told = fs::read_to_string(site.error(vm)).unwrap();
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines.len() >= 3, "{vm}: no remedy in {told:?}");
    assert!(lines.iter().all(|line| !line.trim().is_empty()), "{told:?}");
    assert!(!site.link(vm).exists(), "{vm} has a result as well");
    println!("{vm}: {}", lines[..2].join(" | "));
    told
}

fn expect_good(site: &Site, mut daemon: Daemon) {
    let top = site.top.path();
    let raw = images::raw_disk(
        &top.join("good.raw"),
        1 << 20,
        &[(4096, &images::noise(1, 9999))],
    );
    site.deliver(
        &images::vmdk(&raw, "streamOptimized", &top.join("good")),
        "good.vmdk",
    );
    daemon.wait(60, "the next good disk", || {
        site.link("good").exists() && site.is_quiet()
    });
    images::judge(&raw, &site.link("good"), "qcow2");
    assert!(daemon.is_alive());
    assert!(
        site.drops().is_empty(),
        "left in the queue: {:?}",
        site.drops()
    );
    daemon.stop();
}

fn manifest(vm: &str, path: &str) -> Vec<u8> {
    serde_json::to_vec(&serde_json::json!({
        "manifest_version": "1.0",
        "source": {"provider": "vsphere", "vm_name": vm},
        "disks": [{"id": "disk-0", "source_format": "vmdk", "bytes": 1, "local_path": path}],
    }))
    .unwrap()
}

#[test]
fn names_and_paths_stay_where_they_belong() {
    let (site, mut daemon) = start();
    let top = site.top.path();
    let raw = images::raw_disk(&top.join("a.raw"), 1 << 20, &[(0, b"data")]);
    let disk = images::vmdk(&raw, "streamOptimized", &top.join("a"));

    // A name is data: encoded, converted, beneath the output.
    site.deliver(&disk, "evil.vmdk");
    put(&site, "evil.json", &manifest("../../etc/x", "evil.vmdk"));
    let encoded = "%2E.%2F..%2Fetc%2Fx";
    daemon.wait(60, "the encoded name", || {
        site.link(encoded).exists() && site.is_quiet()
    });
    images::judge(&raw, &site.link(encoded), "qcow2");
    assert!(!top.join("etc").exists() && !Path::new("/etc/x.qcow2").exists());

    for (vm, path) in [
        ("shadow", "/etc/shadow"),
        ("dots", "../../../../../../etc/shadow"),
        ("proc", "/proc/self/environ"),
        ("device", "/dev/zero"),
    ] {
        put(&site, &format!("{vm}.json"), &manifest(vm, path));
        expect_error(&site, &mut daemon, vm);
    }
    let descriptor = |extent: &str| {
        format!(
            "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
             createType=\"monolithicFlat\"\nRW 8 FLAT \"{extent}\" 0\n"
        )
    };
    for (vm, extent) in [
        ("flat", "/etc/shadow"),
        ("up", "../../etc/passwd"),
        ("dev", "/dev/sda"),
    ] {
        put(&site, &format!("{vm}.vmdk"), descriptor(extent).as_bytes());
        let told = expect_error(&site, &mut daemon, vm);
        assert!(!told.contains("root:"), "{told}");
    }
    expect_good(&site, daemon);
}

#[test]
fn links_pipes_and_devices_are_refused() {
    let (site, mut daemon) = start();
    let at = |name: &str| site.directories.queue.join(name);
    symlink("/etc/passwd", at("link.vmdk")).unwrap();
    symlink("/", at("root.ova")).unwrap();
    nix::unistd::mkfifo(&at("pipe.vmdk"), Mode::S_IRWXU).unwrap();
    let null = makedev(1, 3);
    mknod(&at("null.img"), SFlag::S_IFCHR, Mode::S_IRWXU, null).expect("needs root, for mknod");
    let _socket = std::os::unix::net::UnixListener::bind(at("socket.raw")).unwrap();
    for vm in ["link", "root", "pipe", "null", "socket"] {
        expect_error(&site, &mut daemon, vm);
    }
    assert!(Path::new("/etc/passwd").exists());

    let inside = site.top.path().join("ova");
    fs::create_dir(&inside).unwrap();
    symlink("/etc/passwd", inside.join("disk.vmdk")).unwrap();
    fs::write(
        inside.join("vm.ovf"),
        images::ovf(&[("disk.vmdk", 1 << 20)]),
    )
    .unwrap();
    site.deliver(
        &images::ova(&inside, &["vm.ovf", "disk.vmdk"]),
        "linked.ova",
    );
    daemon.wait(60, "a link in an OVA", || {
        site.is_quiet() && site.drops().is_empty()
    });
    let failed = names(&site.directories.errors());
    assert!(
        failed.contains(&"linked.ova.error.json".to_owned()),
        "{failed:?}"
    );
    expect_good(&site, daemon);
}

#[test]
fn damaged_files_of_every_kind_fail_alone() {
    let (site, mut daemon) = start();
    let top = site.top.path();
    let raw = images::raw_disk(
        &top.join("a.raw"),
        3 << 20,
        &[(0, &images::noise(2, 1 << 20))],
    );
    let mut vms = Vec::new();
    for subformat in ["streamOptimized", "monolithicSparse"] {
        let whole = fs::read(images::vmdk(&raw, subformat, &top.join(subformat))).unwrap();
        for (part, kept) in [("header", 300), ("half", whole.len() / 2)] {
            let vm = format!("{subformat}-{part}");
            put(&site, &format!("{vm}.vmdk"), &whole[..kept]);
            vms.push(vm);
        }
    }
    fs::write(top.join("vm.ovf"), images::ovf(&[("a.raw", 3 << 20)])).unwrap();
    let ova = fs::read(images::ova(top, &["vm.ovf", "a.raw"])).unwrap();
    put(&site, "cut.ova", &ova[..ova.len() / 2]);
    // Its OVF is whole, and says whose it is.
    vms.push("web-01".to_owned());
    let noise = images::noise(3, 100_000);
    for extension in [
        "vmdk", "ova", "ovf", "vhd", "vhdx", "qcow2", "vdi", "vmdk.gz", "ova.xz",
    ] {
        let vm = format!("noise-{}", extension.replace('.', "-"));
        put(&site, &format!("{vm}.{extension}"), &noise);
        vms.push(vm);
    }
    for extension in ["vmdk", "ova", "ovf"] {
        let vm = format!("empty-{extension}");
        put(&site, &format!("{vm}.{extension}"), b"");
        vms.push(vm);
    }
    for vm in vms {
        expect_error(&site, &mut daemon, &vm);
    }
    expect_good(&site, daemon);
}

#[test]
fn manifests_out_of_bounds_are_refused() {
    let (site, mut daemon) = start();
    let mut big = manifest("big", "a.vmdk");
    big.resize((1 << 20) + 1, b' ');
    let deep = format!(
        "{{\"manifest_version\":\"1.0\",\"disks\":{}",
        "[".repeat(200_000)
    );
    let cases: [(&str, Vec<u8>); 6] = [
        ("big", big),
        ("deep", deep.into_bytes()),
        ("cut", manifest("cut", "a.vmdk")[..40].to_vec()),
        ("none", br#"{"manifest_version":"1.0","disks":[]}"#.to_vec()),
        (
            "version",
            br#"{"manifest_version":"9.0","disks":[{"id":"a"}]}"#.to_vec(),
        ),
        ("twice", {
            let disk = r#"{"id":"a","source_format":"vmdk","bytes":1,"local_path":"a.vmdk"}"#;
            format!(r#"{{"manifest_version":"1.0","disks":[{disk},{disk}]}}"#).into_bytes()
        }),
    ];
    for (vm, bytes) in cases {
        put(&site, &format!("{vm}.json"), &bytes);
        expect_error(&site, &mut daemon, vm);
    }
    // An empty directory, and one that holds a link for a manifest.
    fs::create_dir(site.directories.queue.join("hollow")).unwrap();
    let linked = site.top.path().join("linked");
    fs::create_dir(&linked).unwrap();
    symlink("/etc/passwd", linked.join("manifest.json")).unwrap();
    fs::rename(&linked, site.directories.queue.join("linked")).unwrap();
    for vm in ["hollow", "linked"] {
        expect_error(&site, &mut daemon, vm);
    }
    let shown = fs::read_to_string(site.directories.status()).unwrap();
    assert!(!text(&site.directories.queue).is_empty() && shown.contains("running"));
    expect_good(&site, daemon);
}
