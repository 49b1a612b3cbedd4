//! hyperexport through a proxy that does harm: the export ends right or fails with the cause, and
//! neither a snapshot nor a lease is left on the server.
use std::time::Instant;

use hyper2kvm_tests::proxy::{Harm, rule};
use hyper2kvm_tests::vsphere::{Scene, expect, said};

const DISK: &str = "GET /nfc/";

/// Offsets that differ from run to run, and are told when they matter.
fn offsets(count: u64, below: usize) -> Vec<usize> {
    use std::hash::{BuildHasher, Hasher};
    let random = || std::hash::RandomState::new().build_hasher().finish();
    (0..count)
        .map(|_| usize::try_from(random() % below as u64).unwrap())
        .collect()
}

#[test]
fn connections_cut_anywhere_are_taken_up_again() {
    for range in ["range=0", "range=1"] {
        let cuts = offsets(4, 1_400_000);
        println!("{range}, cut at {cuts:?}");
        let rules = cuts
            .iter()
            .map(|at| rule(DISK, 1, Harm::Cut(*at)))
            .collect();
        let scene = Scene::new(rules);
        scene.simulator.control(range);
        expect(&scene.export("live", &[]), 0, "");
        scene.assert_same("live", &["b"]);
        scene.simulator.assert_clean();
        assert_eq!(scene.proxy.count(DISK), 5);
        // The server was asked for the rest; without ranges it sent everything.
        assert!(scene.proxy.count("range: bytes=") >= 1);
    }
}

#[test]
fn a_connection_that_never_lasts_is_given_up() {
    let scene = Scene::new(vec![rule(DISK, 100, Harm::Cut(200_000))]);
    let output = scene.export("live", &[]);
    expect(&output, 1, "attempts ended at byte 200000 at best");
    scene.simulator.assert_clean();
    scene.assert_nothing_exported();
}

#[test]
fn a_server_that_fails_for_a_while_is_asked_again() {
    for (text, times) in [
        (DISK, 3),
        ("RetrievePropertiesEx", 2),
        ("HttpNfcLeaseProgress", 2),
    ] {
        let scene = Scene::new(vec![rule(text, times, Harm::Status(503))]);
        expect(&scene.export("web-02", &[]), 0, "");
        scene.assert_same("web-02", &["b"]);
        scene.simulator.assert_clean();
    }
    let scene = Scene::new(vec![rule(DISK, 100, Harm::Status(500))]);
    expect(&scene.export("web-02", &[]), 1, "the server answered 500");
    scene.simulator.assert_clean();
}

#[test]
fn a_stall_ends_and_the_download_goes_on() {
    let scene = Scene::new(vec![rule(DISK, 1, Harm::Stall(1_000_000))]);
    scene.simulator.control("range=1");
    expect(&scene.export("live", &["--vcenter-timeout", "2"]), 0, "");
    scene.assert_same("live", &["b"]);
    scene.simulator.assert_clean();

    let scene = Scene::new(vec![rule(DISK, 100, Harm::Stall(10))]);
    let output = scene.export("live", &["--vcenter-timeout", "2"]);
    expect(&output, 1, "sent nothing for 2 s");
    scene.simulator.assert_clean();
    scene.assert_nothing_exported();
}

#[test]
fn a_session_that_expires_is_renewed() {
    let expire = Harm::Control(1_000_000, "expire=1");
    let scene = Scene::new(vec![rule(DISK, 1, expire)]);
    expect(&scene.export("live", &[]), 0, "");
    scene.assert_same("live", &["b"]);
    scene.simulator.assert_clean();
    assert_eq!(scene.simulator.calls("Login"), 2);
}

#[test]
fn a_lease_is_kept_alive_and_its_loss_is_told() {
    // Slower than the lease lasts.
    let scene = Scene::new(vec![rule(DISK, 1, Harm::Slow(8192))]);
    scene.simulator.control("timeout=2");
    let started = Instant::now();
    expect(&scene.export("live", &[]), 0, "");
    assert!(started.elapsed().as_secs() >= 3, "{:?}", started.elapsed());
    scene.assert_same("live", &["b"]);
    scene.simulator.assert_clean();

    let rules = vec![
        rule(DISK, 1, Harm::Slow(2048)),
        rule("HttpNfcLeaseProgress", 8, Harm::Status(503)),
    ];
    let scene = Scene::new(rules);
    scene.simulator.control("timeout=1");
    expect(
        &scene.export("live", &[]),
        1,
        "the server ended the export's lease",
    );
    scene.simulator.assert_clean();
    scene.assert_nothing_exported();
}

#[test]
fn lengths_that_are_not_true_are_noticed() {
    for (by, range) in [(-1000, "range=0"), (1000, "range=0"), (-1, "range=1")] {
        let scene = Scene::new(vec![rule(DISK, 1, Harm::Longer(by))]);
        scene.simulator.control(range);
        expect(&scene.export("live", &[]), 0, "downloading it again");
        scene.assert_same("live", &["b"]);
        scene.simulator.assert_clean();

        let scene = Scene::new(vec![rule(DISK, 100, Harm::Longer(by))]);
        expect(&scene.export("live", &[]), 1, "the server sent");
        scene.simulator.assert_clean();
        scene.assert_nothing_exported();
    }
}

#[test]
fn flipped_bytes_are_noticed() {
    for sha256 in ["sha256=1", "sha256=0"] {
        let at = offsets(1, 5_000_000)[0];
        println!("flipped at {at}");
        let scene = Scene::new(vec![rule(DISK, 1, Harm::Flip(at))]);
        scene.simulator.control(sha256);
        expect(
            &scene.export("live", &[]),
            0,
            "damaged on its way; downloading it again",
        );
        scene.assert_same("live", &["b"]);

        let scene = Scene::new(vec![rule(DISK, 100, Harm::Flip(at))]);
        scene.simulator.control(sha256);
        expect(&scene.export("live", &[]), 1, "damaged on its way");
        scene.simulator.assert_clean();
        scene.assert_nothing_exported();
    }
}

#[test]
fn a_range_that_is_not_the_one_asked_for_starts_over() {
    let rules = vec![
        rule(DISK, 1, Harm::Cut(3_000_000)),
        rule("range: bytes=", 1, Harm::Range),
    ];
    let scene = Scene::new(rules);
    scene.simulator.control("range=1");
    expect(&scene.export("live", &[]), 0, "");
    scene.assert_same("live", &["b"]);
    scene.simulator.assert_clean();
}

#[test]
fn what_the_server_refuses_is_told_and_undone() {
    for (fault, about) in [
        ("ExportSnapshot", "asked for by the test"),
        ("CreateSnapshot_Task", "asked for by the test"),
        ("HttpNfcLeaseComplete", "the server's lease"),
        ("CreateDescriptor", "there is no OVF descriptor"),
        ("HttpNfcLeaseGetManifest", "asked for by the test"),
    ] {
        let scene = Scene::new(Vec::new());
        scene.simulator.control(&format!("fault={fault}"));
        let output = scene.export("live", &[]);
        let is_warned = matches!(fault, "HttpNfcLeaseComplete" | "CreateDescriptor");
        expect(&output, if is_warned { 0 } else { 1 }, about);
        scene.simulator.control("fault=");
        scene.simulator.assert_clean();
    }
}

#[test]
fn a_snapshot_that_cannot_be_removed_is_noted_and_removed_later() {
    let scene = Scene::new(Vec::new());
    scene.simulator.control("fault=RemoveSnapshot_Task");
    let output = scene.export("live", &[]);
    expect(&output, 0, "could not be removed");
    assert!(
        said(&output)
            .1
            .contains("warning: the snapshot hyper2kvm-job-")
    );
    scene.assert_same("live", &["b"]);
    assert_eq!(
        scene.simulator.control("fault=")["Snapshots"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    expect(&scene.run(&["--list", "live"]), 0, "");
    scene.simulator.assert_clean();
}
