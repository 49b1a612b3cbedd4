//! The spool on a real directory: what the model of `tests/` has no eyes for.
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::durable::HostVolume;
use crate::error::{Error, ErrorKind};
use crate::instance::Config;
use crate::job::{Priority, VmName};

struct Site {
    top: tempfile::TempDir,
    spool: Spool,
}

impl Site {
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| top.path().join(name);
        let directories = Directories {
            queue: at("queue"),
            output: at("output"),
            work: at("work"),
        };
        let policy = Policy::of(&Instance::with_config("default", Config::default()));
        let spool = Spool::open(Arc::new(HostVolume), directories, policy, "host").unwrap();
        Self { top, spool }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.top.path().join(path)
    }

    fn there(&self, path: &str) -> bool {
        fs::symlink_metadata(self.at(path)).is_ok()
    }

    /// Drops and claims a bare disk of one VM.
    fn claim(&self, name: &str, vm: &str, place: &str) -> Box<Job> {
        fs::write(self.at("queue").join(name), name).unwrap();
        let drop = Drop {
            lane: String::new(),
            name: name.to_owned(),
            kind: DropKind::Disk,
            owner: name.to_owned(),
            owned: Vec::new(),
            vm_name: VmName::new(vm).unwrap(),
            place: place.to_owned(),
            priority: Priority::Normal,
        };
        let id = self.spool.claim(&drop).unwrap().unwrap();
        self.hold(id)
    }

    fn hold(&self, id: JobId) -> Box<Job> {
        match self.spool.hold(id).unwrap() {
            Hold::Job(job) => job,
            _ => panic!("{id} cannot be held"),
        }
    }

    /// Converts and publishes a held job.
    fn convert(&self, mut job: Box<Job>) -> std::result::Result<(), (Box<Job>, Error)> {
        assert_eq!(job.begin().unwrap(), Begun::Yes);
        let file = format!("{}.qcow2", job.memory.vm_name);
        fs::write(job.staging_dir().join(&file), job.id().to_string()).unwrap();
        let product = Product {
            file,
            format: "qcow2".to_owned(),
            metadata: json!({}),
        };
        job.publish(product)
    }

    fn must_convert(&self, job: Box<Job>) {
        if let Err((_, error)) = self.convert(job) {
            panic!("{error}");
        }
    }
}

fn corrupt() -> Error {
    Error::new(ErrorKind::Corrupt, "bad")
}

/// A poller that waits for the second job would take the first one's end for it.
#[test]
fn a_job_that_ends_while_a_later_one_of_its_name_waits_shows_neither_link_nor_error() {
    for fails in [false, true] {
        let site = Site::new();
        let mut first = site.claim("vm.vmdk", "vm", "");
        assert_eq!(first.begin().unwrap(), Begun::Yes);
        let second = site.claim("vm.img", "vm", "").id();
        let id = first.id();
        if fails {
            first.fail(&corrupt()).unwrap();
        } else {
            drop(first);
            site.must_convert(site.hold(id));
            assert!(site.there("output/vm/vm.qcow2"));
        }
        assert!(site.spool.record(id).unwrap().unwrap().state.is_final());
        assert!(!site.there("output/vm.qcow2") && !site.there("output/vm.error"));
        site.must_convert(site.hold(second));
        let told = fs::read_to_string(site.at("output/vm.qcow2")).unwrap();
        assert_eq!(told, second.to_string());
        assert!(
            fs::read_dir(site.spool.directories.names())
                .unwrap()
                .next()
                .is_none()
        );
    }
}

/// A source is archived under its own name beside the reports, and retries believe reports.
#[test]
fn a_drop_is_never_taken_for_a_report() {
    let site = Site::new();
    let failed = site.claim("vm.vmdk", "vm", "");
    let id = failed.id();
    let mut forged = failed.memory.clone();
    failed.fail(&corrupt()).unwrap();
    fs::create_dir(site.at("precious")).unwrap();
    fs::write(site.at("precious/file"), "p").unwrap();
    let take = Take {
        from: "../precious".to_owned(),
        to: "precious".to_owned(),
    };
    forged.takes = vec![take.clone()];
    let report = json!({"error": {"kind": "corrupt", "message": "x"}, "state": "failed",
        "failed_at": "", "archived": [take], "job": forged});
    let hostile = site.claim("a.error.json", "hostile", "");
    fs::write(hostile.owner_path(), report.to_string()).unwrap();
    hostile.fail(&corrupt()).unwrap();
    for report in site.spool.reports().unwrap() {
        let _ = site.spool.retry_report(&report);
    }
    let _ = site.spool.retry(id);
    assert!(site.there("precious/file"));
    // Nor is it overwritten by the report of a drop whose name fits.
    let source = site.claim("vm.vmdk.error.json", "x", "");
    fs::write(source.owner_path(), "mine").unwrap();
    source.fail(&corrupt()).unwrap();
    site.claim("vm.vmdk", "vm", "").fail(&corrupt()).unwrap();
    let mut texts = fs::read_dir(site.at("queue/.errors"))
        .unwrap()
        .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap_or_default());
    assert!(texts.any(|text| text == "mine"));
}

#[test]
fn a_report_that_was_tampered_with_is_none() {
    let site = Site::new();
    let failed = site.claim("vm.vmdk", "vm", "");
    let id = failed.id();
    failed.fail(&corrupt()).unwrap();
    let path = site.at("queue/.errors/vm.vmdk.error.json");
    let report = fs::read_to_string(&path).unwrap();
    fs::write(site.at("precious"), "p").unwrap();
    for (honest, forged) in [
        ("\".errors/vm.vmdk\"", "\".errors/../../precious\""),
        ("\"vm_name\": \"vm\"", "\"vm_name\": \"../../vm\""),
        ("\"place\": \"\"", "\"place\": \"../..\""),
    ] {
        assert!(report.contains(honest), "{report}");
        fs::write(&path, report.replace(honest, forged)).unwrap();
        assert!(site.spool.retry(id).is_err(), "{forged}");
        assert!(site.there("precious") && site.there("queue/.errors/vm.vmdk"));
    }
    fs::write(&path, report).unwrap();
    site.spool.retry(id).unwrap();
}

#[test]
fn a_piece_behind_a_link_is_not_taken() {
    let site = Site::new();
    site.must_convert(site.claim("old.vmdk", "old", ""));
    std::os::unix::fs::symlink(site.at("output"), site.at("queue/sub")).unwrap();
    let mut job = site.claim("m.json", "m", "");
    assert!(!job.take("sub/old/old.qcow2").unwrap());
    assert!(site.there("output/old/old.qcow2"));
}

#[test]
fn a_place_within_a_result_is_refused() {
    let site = Site::new();
    site.must_convert(site.claim("a.vmdk", "a", ""));
    let mut job = site.claim("b.vmdk", "b", "a/sub");
    assert_eq!(job.begin().unwrap(), Begun::Yes);
    let error = job.check_conflict("qcow2").unwrap_err();
    assert!(error.to_string().contains("in the way"), "{error}");
}

#[test]
fn what_somebody_put_beside_a_result_is_not_deleted_with_it() {
    let site = Site::new();
    site.must_convert(site.claim("a.vmdk", "a", ""));
    fs::write(site.at("output/a/a-snapshot.qcow2"), "mine").unwrap();
    let Err((job, error)) = site.convert(site.claim("a.vmdk", "a", "")) else {
        panic!("the snapshot is gone");
    };
    assert_eq!(error.kind, ErrorKind::Invalid);
    job.fail(&error).unwrap();
    assert!(site.there("output/a/a-snapshot.qcow2") && site.there("output/a.error"));
    fs::remove_file(site.at("output/a/a-snapshot.qcow2")).unwrap();
    site.must_convert(site.claim("a.img", "a", ""));
}

/// Something that came in the way after all checks does not keep the job in limbo for ever.
#[test]
fn a_publishing_that_can_never_end_fails() {
    let site = Site::new();
    let mut job = site.claim("a.vmdk", "a", "");
    let id = job.id();
    assert_eq!(job.begin().unwrap(), Begun::Yes);
    let metadata = json!({"job_id": id.to_string()}).to_string();
    fs::write(job.staging_dir().join("metadata.json"), metadata).unwrap();
    job.memory.stage = Stage::Publishing {
        link: "a.qcow2".to_owned(),
        file: "a.qcow2".to_owned(),
    };
    site.spool.save_memory(&job.memory).unwrap();
    drop(job);
    fs::create_dir(site.at("output/a")).unwrap();
    assert!(matches!(site.spool.hold(id).unwrap(), Hold::Over));
    assert!(site.there("output/a.error") && site.there("queue/.errors/a.vmdk"));
    assert!(!site.there(&format!("queue/.processing/{id}")));
}

#[test]
fn a_memory_that_cannot_be_read_ends_its_job() {
    let site = Site::new();
    let job = site.claim("a.vmdk", "a", "");
    let id = job.id();
    drop(job);
    let path = site.spool.job_dir(id).join("job.json");
    fs::write(path, vec![b' '; 5 * 1024 * 1024]).unwrap();
    assert!(matches!(site.spool.hold(id).unwrap(), Hold::Over));
    assert!(site.there("queue/.errors/a.vmdk"));
}

#[test]
fn any_retry_delay_is_one() {
    let mut site = Site::new();
    let mut policy = (*site.spool.policy).clone();
    policy.retry.max_retries = 1000;
    policy.retry.retry_delay = 0;
    policy.retry.backoff_multiplier = 100.0;
    site.spool.policy = Arc::new(policy);
    let mut job = site.claim("a.vmdk", "a", "");
    job.memory.retries = 500;
    let fate = job.fail(&Error::new(ErrorKind::Io, "x")).unwrap();
    assert!(matches!(fate, Fate::Retried { .. }));
}

#[test]
fn the_longest_names_end_like_any_other() {
    let site = Site::new();
    let name = format!("{}.vmdk", "n".repeat(250));
    for round in 0..2 {
        site.must_convert(site.claim(&name, "vm", ""));
        let failed = site.claim(&name, "vm", "");
        let id = failed.id();
        failed.fail(&corrupt()).unwrap();
        assert_eq!(site.spool.reports().unwrap().len(), round + 1);
        if round == 1 {
            site.spool.retry(id).unwrap();
            site.must_convert(site.hold(id));
        }
    }
    let left = fs::read_dir(site.spool.directories.processing()).unwrap();
    assert_eq!(left.count(), 0);
}

#[test]
fn what_was_cancelled_comes_back_only_by_its_name() {
    let site = Site::new();
    let cancelled = site.claim("a.vmdk", "a", "");
    let id = cancelled.id();
    cancelled
        .fail(&Error::new(ErrorKind::Cancelled, "cancelled by request"))
        .unwrap();
    let reports = site.spool.reports().unwrap();
    assert_eq!(site.spool.retry_report(&reports[0]).unwrap(), None);
    assert!(site.spool.jobs().unwrap().is_empty());
    site.spool.retry(id).unwrap();
    assert_eq!(site.spool.jobs().unwrap(), [id]);
}

#[test]
fn an_older_job_replaces_a_later_ones_result_only_when_asked_to() {
    let site = Site::new();
    let older = site.claim("vm.vmdk", "vm", "").id();
    let later = site.claim("vm.img", "vm", "").id();
    site.must_convert(site.hold(later));
    let mut job = site.hold(older);
    assert_eq!(job.begin().unwrap(), Begun::Superseded(later));
    job.supersede(later).unwrap();
    let record = site.spool.record(older).unwrap().unwrap();
    assert_eq!(record.superseded_by, Some(later));
    assert_eq!(record.state, JobState::Cancelled);
    let told = || fs::read_to_string(site.at("output/vm.qcow2")).unwrap();
    assert_eq!(told(), later.to_string());
    assert!(!site.there("output/vm.error") && site.there("queue/.errors/vm.vmdk"));
    site.spool.retry(older).unwrap();
    site.must_convert(site.hold(older));
    assert_eq!(told(), older.to_string());
    let record = site.spool.record(older).unwrap().unwrap();
    assert_eq!(record.superseded_by, None);
}

/// Its converter died on it; another one published the later drop before anyone looked.
#[test]
fn a_crashed_older_job_does_not_retire_a_later_ones_link() {
    let site = Site::new();
    let mut older = site.claim("vm.vmdk", "vm", "");
    let id = older.id();
    assert_eq!(older.begin().unwrap(), Begun::Yes);
    drop(older);
    site.must_convert(site.claim("vm.img", "vm", ""));
    let mut older = site.hold(id);
    assert!(site.there("output/vm.qcow2"));
    assert!(matches!(older.begin().unwrap(), Begun::Superseded(_)));
}

/// With the clock set back, a result that was there before has the greater id.
#[test]
fn what_stood_there_at_the_claim_is_earlier_whatever_the_clock_says() {
    let site = Site::new();
    site.must_convert(site.claim("vm.vmdk", "vm", ""));
    let metadata = site.at("output/vm/metadata.json");
    let future = json!({"job_id": "job-7ZZZZZZZZZZZZZZZZZZZZZZZZZ"}).to_string();
    fs::write(metadata, future).unwrap();
    site.must_convert(site.claim("vm.img", "vm", ""));
}

#[test]
fn what_a_disk_made_alone_is_withdrawn_unless_somebody_changed_it() {
    for is_changed in [false, true] {
        let site = Site::new();
        let alone = site.claim("db-disk1.vmdk", "db-disk1", "");
        let id = alone.id();
        site.must_convert(alone);
        let file = site.at("output/db-disk1/db-disk1.qcow2");
        if is_changed {
            let written = std::time::SystemTime::now() + std::time::Duration::from_secs(1);
            let file = fs::File::options().write(true).open(&file).unwrap();
            file.set_modified(written).unwrap();
        }
        let mut owner = site.claim("db.ovf", "db", "");
        assert!(owner.take_archived("db-disk1.vmdk", id).unwrap());
        let owner_id = owner.id();
        site.must_convert(owner);
        assert_eq!(file.exists(), is_changed);
        assert_eq!(site.there("output/db-disk1.qcow2"), is_changed);
        let record = site.spool.record(id).unwrap().unwrap();
        assert_eq!(record.superseded_by, (!is_changed).then_some(owner_id));
        assert_eq!(record.state == JobState::Completed, is_changed);
        let told = site.spool.record(owner_id).unwrap().unwrap().notes;
        assert_eq!(told.len(), usize::from(is_changed), "{told:?}");
    }
}

/// Somebody kills the converter again and again; a job that gets further each time is not to blame.
#[test]
fn only_crashes_without_progress_count() {
    let site = Site::new();
    let id = site.claim("vm.vmdk", "vm", "").id();
    let crash = |noted: usize| {
        let mut job = site.hold(id);
        assert_eq!(job.begin().unwrap(), Begun::Yes);
        if noted > 0 {
            fs::create_dir_all(job.journal_dir()).unwrap();
            fs::write(job.journal_dir().join("vm.journal"), vec![1; noted]).unwrap();
        }
    };
    for round in 1..=9 {
        crash(round * 100);
        assert_eq!(site.hold(id).memory.crashes, 1, "round {round}");
    }
    crash(900);
    assert_eq!(site.hold(id).memory.crashes, 2);
    // It started over: that is not further than before.
    crash(200);
    assert!(matches!(site.spool.hold(id).unwrap(), Hold::Over));
    let record = site.spool.record(id).unwrap().unwrap();
    assert_eq!(record.state, JobState::Failed);
}

#[test]
fn a_stop_is_no_crash() {
    let site = Site::new();
    let id = site.claim("vm.vmdk", "vm", "").id();
    for _ in 0..9 {
        let mut job = site.hold(id);
        assert_eq!(job.begin().unwrap(), Begun::Yes);
        job.release().unwrap();
        let memory = &site.hold(id).memory;
        assert_eq!((memory.attempts, memory.crashes), (0, 0));
    }
}

/// Two converters saw one request: the slower one finds it served.
#[test]
fn a_request_that_another_converter_served_is_not_refused() {
    let site = Site::new();
    let failed = site.claim("vm.vmdk", "vm", "");
    let id = failed.id();
    failed.fail(&corrupt()).unwrap();
    let request = crate::job::Request::Retry { job_id: id };
    let path = request::submit(&site.spool.directories, &request).unwrap();
    site.spool.retry(id).unwrap();
    site.spool.retry(id).unwrap();
    site.spool.answer(&path).unwrap();
    let failure = (&corrupt()).into();
    site.spool.refuse(&path, Some(&request), &failure).unwrap();
    let control = site.spool.directories.control();
    assert!(fs::read_dir(control).unwrap().next().is_none());
    site.must_convert(site.hold(id));
    assert!(site.spool.retry(id).is_err(), "it has not failed");
}

/// All that the converter puts beside the disks goes with them.
#[test]
fn a_repaired_result_is_replaced_like_any_other() {
    let site = Site::new();
    site.must_convert(site.claim("vm.vmdk", "vm", ""));
    for name in ["domain.xml", "change-report.json", "vm-disk2.qcow2"] {
        fs::write(site.at("output/vm").join(name), "x").unwrap();
    }
    site.must_convert(site.claim("vm.img", "vm", ""));
    assert!(!site.there("output/vm/change-report.json"));
}

/// What a dead export streamed is aborted, wherever the conversion has moved it; or declared whole,
/// if that was noted.
#[test]
fn what_a_dead_export_streamed_is_ended() {
    for is_claimed in [false, true] {
        for is_whole in [false, true] {
            let (exports, instance) = (Site::new(), Site::new());
            let mut job = exports.claim("web.json", "web", "");
            let queue = instance.at("queue");
            let target = Target {
                instance: "default".to_owned(),
                queue: queue.clone(),
            };
            assert_eq!(job.begin_into(target).unwrap(), Begun::Yes);
            fs::write(job.staging_dir().join("manifest.json"), "{}").unwrap();
            let files = ["a.vmdk", "b.vmdk"].map(str::to_owned);
            let (_, growing) = job.stream(&files).unwrap();
            let drop_name = job.record.delivered.clone().unwrap().drop;
            std::io::Write::write_all(&mut growing[0].file(), b"abc").unwrap();
            let mut place = queue.join(&drop_name);
            assert!(place.join("b.vmdk").exists());
            if is_claimed {
                let source = queue.join(".processing").join(JobId::new().to_string());
                let source = source.join("source");
                fs::create_dir_all(&source).unwrap();
                fs::rename(&place, source.join(&drop_name)).unwrap();
                place = source.join(&drop_name);
            }
            if is_whole {
                let sums = ["blake3:00", "blake3:11"].map(str::to_owned);
                job.end_stream(sums).unwrap();
            }
            let id = job.id();
            drop(job);
            let end = |file: &str| fs::read_to_string(place.join(format!("{file}.end"))).unwrap();
            match exports.spool.hold(id).unwrap() {
                Hold::Job(job) => {
                    assert!(!is_whole && job.memory.streamed.is_none());
                    assert!(end("a.vmdk").contains("the export service died"));
                    assert!(end("b.vmdk").contains("aborted"));
                }
                Hold::Over => {
                    assert!(is_whole);
                    assert_eq!(end("a.vmdk"), "{\"bytes\":3,\"checksum\":\"blake3:00\"}\n");
                    assert!(end("b.vmdk").contains("blake3:11"));
                    let record = exports.spool.record(id).unwrap().unwrap();
                    assert_eq!(record.state, JobState::Completed);
                    assert_eq!(record.delivered.unwrap().drop, drop_name);
                }
                Hold::Busy => panic!("nobody holds it"),
            }
        }
    }
}
