//! Disks that are converted while they are downloaded: the right image, or none and the cause.
use std::fs;

use hyper2kvm_tests::daemon::{Daemon, names};
use hyper2kvm_tests::exports::ExportSite;
use hyper2kvm_tests::proxy::{Harm, rule};
use hyper2kvm_tests::vsphere::Scene;
use queue::error::ErrorKind;
use queue::job::manifest::Output;
use queue::job::{ExportRequest, JobState, Phase, Record, Request};
use queue::spool::request;

use super::{SERVER, assert_same, password_file, site};

const DISK: &str = "GET /nfc/";
/// In the second half of the disk of `live`.
const MIDDLE: usize = 5_000_000;
/// How far the converter is behind at most: more than it holds back until a batch is full.
const BATCHES: u64 = 3 << 20;

fn trusting(scene: &Scene) -> ExportSite {
    let more = format!("{}insecure = true\n", password_file(scene, 0o600));
    site(scene, &more)
}

/// Both services, with `live` asked for.
fn streaming(scene: &Scene) -> (ExportSite, Daemon, Daemon) {
    let site = trusting(scene);
    let (converter, exporter) = (site.instance.start(), site.start());
    site.ask(&ExportRequest::new(SERVER, "live"));
    (site, converter, exporter)
}

/// The conversions of a VM, oldest first.
fn conversions(site: &ExportSite, vm: &str) -> Vec<Record> {
    let mut records = site.instance.records();
    records.retain(|record| record.vm_name == vm);
    records
}

/// Waits until the newest conversion of `vm` has done nearly all of so many bytes.
fn wait_for(site: &ExportSite, converter: &mut Daemon, vm: &str, bytes: u64) -> Record {
    let mut seen = None;
    converter.wait(60, "what came is converted", || {
        seen = conversions(site, vm).pop().filter(|record| {
            record.state == JobState::Processing
                && record.phase == Phase::Convert
                && record.progress.bytes_done + BATCHES >= bytes
        });
        seen.is_some()
    });
    seen.unwrap()
}

/// Waits until `vm` is exported and converted.
fn finish(site: &ExportSite, converter: &mut Daemon, exporter: &mut Daemon, vm: &str) {
    exporter.wait(60, "it is exported", || {
        let export = site.record_of(vm);
        export.is_some_and(|it| it.state == JobState::Completed) && site.is_quiet()
    });
    converter.wait(60, "it is converted", || {
        site.instance.link(vm).exists() && site.instance.is_quiet()
    });
}

/// Waits until the export of `vm` and its only conversion are over, and nothing is published.
#[track_caller]
fn expect_end(site: &ExportSite, converter: &mut Daemon, export: JobState, vm: &str, cause: &str) {
    converter.wait(60, "both are over", || {
        let is_over = |record: &Record| record.state.is_final();
        site.record_of(vm).is_some_and(|it| is_over(&it))
            && conversions(site, vm).iter().all(is_over)
            && site.instance.is_quiet()
            && site.is_quiet()
    });
    assert_eq!(site.record_of(vm).unwrap().state, export);
    let conversions = conversions(site, vm);
    assert_eq!(conversions.len(), 1);
    assert_aborted(&conversions[0], cause);
    let told = fs::read_to_string(site.instance.error(vm)).unwrap();
    assert!(told.lines().next().unwrap().contains(cause), "{told}");
    assert!(!site.instance.link(vm).exists());
    assert!(!site.instance.directories.output.join(vm).exists());
    assert_emptied(site, &conversions[0], vm);
}

/// The room of what is of no use is given back.
#[track_caller]
fn assert_emptied(site: &ExportSite, conversion: &Record, vm: &str) {
    let archived = site.instance.directories.errors().join(&conversion.drop);
    let left = fs::metadata(archived.join(format!("{vm}-disk1.vmdk"))).unwrap();
    assert_eq!(left.len(), 0);
}

#[track_caller]
fn assert_aborted(conversion: &Record, cause: &str) {
    assert_eq!(conversion.state, JobState::Cancelled);
    let error = conversion.error.as_ref().unwrap();
    assert!(error.message.contains("was aborted: "), "{error:?}");
    assert!(error.message.contains(cause), "{error:?}");
}

#[track_caller]
fn assert_streamed(conversion: &Record, disks: usize) {
    assert_eq!(conversion.state, JobState::Completed);
    let log = conversion.log.join("\n");
    let streamed = log.matches("is converted while it arrives").count();
    assert_eq!(streamed, disks, "{log}");
    assert!(!log.contains("again"), "{log}");
}

#[test]
fn the_conversion_is_nearly_done_before_the_last_byte() {
    let scene = Scene::new(vec![rule("/disk-1.vmdk", 1, Harm::Hold(MIDDLE))]);
    let site = trusting(&scene);
    let mut converter = site.instance.start();
    let mut exporter = site.start();
    site.ask(&ExportRequest::new(SERVER, "web"));
    let first = fs::metadata(scene.path("a.vmdk")).unwrap().len();
    let conversion = wait_for(&site, &mut converter, "web", first + MIDDLE as u64);
    let export = site.record_of("web").unwrap();
    assert_eq!(export.state, JobState::Processing);
    assert_eq!(export.delivered.unwrap().drop, conversion.drop);
    assert!(!site.instance.link("web").exists());
    let shown = site.hyperctl(&["status", "--vm", "web", "--json"]);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["step"], "converting", "{shown}");

    scene.proxy.release();
    finish(&site, &mut converter, &mut exporter, "web");
    let results = site.instance.directories.output.join("web");
    for (name, disk) in [("web.qcow2", "a.raw"), ("web-disk2.qcow2", "b.raw")] {
        assert_same(&scene.path(disk), &results.join(name));
    }
    let all = conversions(&site, "web");
    assert_eq!(all.len(), 1);
    assert_streamed(&all[0], 2);
    let export = site.record_of("web").unwrap();
    assert_eq!(export.delivered.unwrap().drop, all[0].drop);
    let archived = site.instance.directories.processed().join(&all[0].drop);
    for disk in ["web-disk1.vmdk", "web-disk2.vmdk"] {
        let bytes = fs::read(archived.join(disk)).unwrap();
        let told = fs::read_to_string(archived.join(format!("{disk}.end"))).unwrap();
        let sum = blake3::hash(&bytes).to_hex();
        assert!(told.contains(&format!("blake3:{sum}")), "{told}");
    }
    scene.simulator.assert_clean();
    exporter.stop();
    converter.stop();
}

/// More disks than are downloaded at once: the fifth waits for longer than silence is borne.
#[test]
fn a_disk_that_waits_for_others_is_not_given_up() {
    let scene = Scene::with_many(vec![rule(DISK, 4, Harm::Slow(4096))]);
    let site = trusting(&scene);
    let config = site.instance.top.path().join("test.toml");
    let timeout = "incomplete_timeout = 3\n[retry]\nmax_retries = 0\n";
    let before = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{before}{timeout}")).unwrap();
    let (mut converter, mut exporter) = (site.instance.start(), site.start());
    site.ask(&ExportRequest::new(SERVER, "many"));
    finish(&site, &mut converter, &mut exporter, "many");
    let results = site.instance.directories.output.join("many");
    for name in ["many.qcow2", "many-disk5.qcow2"] {
        assert_same(&scene.path("b.raw"), &results.join(name));
    }
    let all = conversions(&site, "many");
    assert_eq!(all.len(), 1);
    assert_streamed(&all[0], 5);
    let seconds = site.record_of("many").unwrap().timings[Phase::Export.as_str()];
    assert!(seconds > 4.0, "{seconds}");
    scene.simulator.assert_clean();
    exporter.stop();
    converter.stop();
}

#[test]
fn a_cut_connection_goes_on_where_it_broke() {
    let cut = |at| rule(DISK, 1, Harm::Cut(at));
    let scene = Scene::new(vec![cut(3_000_000), cut(1_000_001)]);
    scene.simulator.control("range=1");
    let (site, mut converter, mut exporter) = streaming(&scene);
    finish(&site, &mut converter, &mut exporter, "live");
    assert_eq!(scene.proxy.count("range: bytes="), 2);
    assert_same(&scene.path("b.raw"), &site.instance.link("live"));
    let all = conversions(&site, "live");
    assert_eq!(all.len(), 1);
    assert_streamed(&all[0], 1);
    scene.simulator.assert_clean();
}

/// What was read cannot be taken back: the VM is exported once more, and whole.
#[test]
fn what_has_to_be_fetched_anew_is_exported_without_streaming() {
    for (harm, cause) in [
        (
            Harm::Cut(3_000_000),
            "cannot be gone on with at byte 3000000",
        ),
        (Harm::Flip(3_000_000), "was damaged on its way"),
    ] {
        let scene = Scene::new(vec![rule(DISK, 1, harm)]);
        let (site, mut converter, mut exporter) = streaming(&scene);
        finish(&site, &mut converter, &mut exporter, "live");
        assert_same(&scene.path("b.raw"), &site.instance.link("live"));
        let all = conversions(&site, "live");
        assert_eq!(all.len(), 2);
        assert_eq!(all[1].state, JobState::Completed);
        let export = site.record_of("live").unwrap();
        assert_eq!(export.attempts, 1);
        assert_eq!(export.delivered.unwrap().drop, all[1].drop);
        match harm {
            // The damage shows to the converter, or else at the end of the download.
            Harm::Flip(_) if all[0].state == JobState::Failed => {
                assert_eq!(all[0].error.as_ref().unwrap().kind, ErrorKind::Corrupt);
            }
            _ => assert_aborted(&all[0], cause),
        }
        assert!(!site.instance.error("live").exists());
        scene.simulator.assert_clean();
    }
}

#[test]
fn a_lost_lease_ends_the_conversion() {
    let rules = vec![
        rule(DISK, 1, Harm::Slow(2048)),
        rule("HttpNfcLeaseProgress", 8, Harm::Status(503)),
    ];
    let scene = Scene::new(rules);
    scene.simulator.control("timeout=1");
    let (site, mut converter, exporter) = streaming(&scene);
    let cause = "the server ended the export's lease";
    expect_end(&site, &mut converter, JobState::Failed, "live", cause);
    scene.simulator.assert_clean();
    exporter.stop();
    converter.stop();
}

#[test]
fn a_cancelled_export_ends_the_conversion() {
    let scene = Scene::new(vec![rule(DISK, 1, Harm::Hold(MIDDLE))]);
    let (site, mut converter, exporter) = streaming(&scene);
    wait_for(&site, &mut converter, "live", MIDDLE as u64);
    let job_id = site.record_of("live").unwrap().job_id;
    site.control(&Request::Cancel { job_id });
    let cause = "cancelled by request";
    expect_end(&site, &mut converter, JobState::Cancelled, "live", cause);
    scene.simulator.assert_clean();
    exporter.stop();
    converter.stop();
}

/// The download is held for good: only the conversion's end can end it.
#[test]
fn an_ended_conversion_ends_the_export() {
    for (is_cancelled, kind, cause) in [
        (true, ErrorKind::Cancelled, "cancelled by request"),
        (false, ErrorKind::Unsupported, "vdi"),
    ] {
        let scene = Scene::new(vec![rule(DISK, 1, Harm::Hold(MIDDLE))]);
        let site = trusting(&scene);
        let (mut converter, mut exporter) = (site.instance.start(), site.start());
        let mut asked = ExportRequest::new(SERVER, "live");
        if is_cancelled {
            site.ask(&asked);
            let job_id = wait_for(&site, &mut converter, "live", MIDDLE as u64).job_id;
            request::submit(&site.instance.directories, &Request::Cancel { job_id }).unwrap();
        } else {
            let format = Some("vdi".to_owned());
            asked.output = Some(Output {
                format,
                ..Output::default()
            });
            site.ask(&asked);
        }
        exporter.wait(60, "the export is over", || {
            let export = site.record_of("live");
            export.is_some_and(|it| it.state.is_final()) && site.is_quiet()
        });
        let state = match is_cancelled {
            true => JobState::Cancelled,
            false => JobState::Failed,
        };
        let (export, all) = (site.record_of("live").unwrap(), conversions(&site, "live"));
        assert_eq!((export.state, export.attempts, all.len()), (state, 1, 1));
        assert_eq!(all[0].state, state);
        let error = export.error.unwrap();
        assert_eq!(error.kind, kind, "{error:?}");
        let told = error.to_text();
        assert!(told.contains(&all[0].job_id.to_string()), "{told}");
        assert!(told.lines().next().unwrap().contains(cause), "{told}");
        assert_emptied(&site, &all[0], "live");
        scene.simulator.assert_clean();
        exporter.stop();
        converter.stop();
    }
}

/// What arrived damaged makes the conversion fail: it may well be right the next time.
#[test]
fn what_the_converter_finds_damaged_is_fetched_anew() {
    let scene = Scene::new(vec![
        rule("/disk-0.vmdk", 1, Harm::Flip(3_000_000)),
        rule("/disk-1.vmdk", 1, Harm::Hold(MIDDLE)),
    ]);
    let site = trusting(&scene);
    let (mut converter, mut exporter) = (site.instance.start(), site.start());
    site.ask(&ExportRequest::new(SERVER, "web"));
    finish(&site, &mut converter, &mut exporter, "web");
    assert_same(&scene.path("a.raw"), &site.instance.link("web"));
    let all = conversions(&site, "web");
    assert_eq!(all.len(), 2);
    assert_eq!(all[0].error.as_ref().unwrap().kind, ErrorKind::Corrupt);
    assert_eq!(all[1].state, JobState::Completed);
    // The download that was held was given up, not taken up again.
    assert_eq!(scene.proxy.count("/disk-1.vmdk"), 2);
    scene.simulator.assert_clean();
    exporter.stop();
    converter.stop();
}

/// Killed and stopped: the next service exports the VM again, and nobody waits for the last one.
#[test]
fn a_service_that_ends_in_the_middle_begins_again() {
    for is_killed in [true, false] {
        let scene = Scene::new(vec![rule(DISK, 1, Harm::Hold(MIDDLE))]);
        let (site, mut converter, exporter) = streaming(&scene);
        wait_for(&site, &mut converter, "live", MIDDLE as u64);
        let cause = match is_killed {
            true => {
                exporter.kill();
                "the export service died"
            }
            false => {
                exporter.stop();
                "the export service was stopped"
            }
        };
        assert!(!site.instance.link("live").exists());
        let mut exporter = site.start();
        finish(&site, &mut converter, &mut exporter, "live");
        assert_same(&scene.path("b.raw"), &site.instance.link("live"));
        let all = conversions(&site, "live");
        assert_eq!(all.len(), 2);
        assert_aborted(&all[0], cause);
        assert_streamed(&all[1], 1);
        scene.simulator.assert_clean();
        assert!(names(&site.directories.work.join("debts")).is_empty());
        exporter.stop();
        converter.stop();
    }
}
