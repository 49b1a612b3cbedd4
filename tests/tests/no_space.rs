//! A full output: the job fails as `no_space`, the next one works, nothing is left behind.
use std::fs;

use hyper2kvm_tests::daemon::{Site, names};
use hyper2kvm_tests::images;
use hyper2kvm_tests::mount::Mount;
use queue::error::ErrorKind;
use queue::job::JobState;

#[test]
fn a_full_output_fails_one_job_only() {
    let site = Site::new("[retry]\nmax_retries = 1\nretry_delay = 0\n");
    let _mount = Mount::tmpfs(&site.directories.output, "16M");
    let top = site.top.path();
    let big = images::raw_disk(
        &top.join("b.raw"),
        64 << 20,
        &[(0, &images::noise(8, 40 << 20))],
    );
    let small = images::raw_disk(
        &top.join("s.raw"),
        4 << 20,
        &[(0, &images::noise(9, 1 << 20))],
    );
    let file = images::vmdk(&big, "streamOptimized", &top.join("big"));
    let mut daemon = site.start();
    site.deliver(&file, "big.vmdk");
    daemon.wait(120, "the big one failed", || {
        site.error("big").exists() && site.is_quiet()
    });

    let text = fs::read_to_string(site.error("big")).unwrap();
    assert!(
        text.lines().count() >= 2 && text.contains("kind: no_space"),
        "{text}"
    );
    let [record] = &site.records()[..] else {
        panic!("one record: {:?}", site.records());
    };
    assert_eq!(record.state, JobState::Failed);
    assert_eq!(
        record.error.as_ref().map(|failure| failure.kind),
        Some(ErrorKind::NoSpace)
    );
    assert_eq!(record.attempts, 2, "it was tried again");
    assert!(names(&site.directories.errors()).contains(&"big.vmdk".to_owned()));
    assert!(!site.link("big").exists() && !site.directories.output.join("big").exists());

    site.deliver(
        &images::vmdk(&small, "streamOptimized", &top.join("small")),
        "small.vmdk",
    );
    daemon.wait(60, "the small one is done", || {
        site.link("small").exists() && site.is_quiet()
    });
    images::judge(&small, &site.link("small"), "qcow2");
    daemon.stop();
}

#[test]
fn a_bomb_of_data_ends_before_the_file_system_is_full() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "needs root, to mount a tmpfs of limited size"
    );
    let site = Site::new("settle_seconds = 0\n[retry]\nmax_retries = 0\n");
    let _mount = Mount::tmpfs(&site.directories.output, "128M");
    let bomb = site.top.path().join("bomb.raw");
    fs::write(&bomb, vec![7; 1 << 30]).unwrap();
    images::run("gzip", "gzip", &["-1f", images::text(&bomb)]);
    let bomb = bomb.with_extension("raw.gz");
    assert!(fs::metadata(&bomb).unwrap().len() < 8 << 20);
    let mut daemon = site.start();
    site.deliver(&bomb, "bomb.raw.gz");
    daemon.wait(120, "the bomb failed", || {
        site.error("bomb").exists() && site.is_quiet()
    });
    let error = fs::read_to_string(site.error("bomb")).unwrap();
    assert!(error.contains("does not fit in"), "{error}");
    let free_bytes = queue::instance::free_bytes(&site.directories.output).unwrap();
    assert!(free_bytes > 120 << 20, "{free_bytes} bytes are free");
    daemon.stop();
}
