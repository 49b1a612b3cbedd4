//! The dispatcher's decisions, on a real queue, without its thread.
use std::fs;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::arrival::Intake;
use crate::durable::HostVolume;
use crate::instance::{Config, Directories, Instance};
use crate::job::{JobId, JobState};
use crate::spool::{Begun, Hold, Job, Policy, Spool};

use super::activity::{Activity, Command};
use super::board::Board;
use super::dispatch::Dispatcher;
use super::work::{Outcome, Service, Work};
use crate::error::{Error, ErrorKind};

/// These tests ask what is claimed and started, not what becomes of it.
struct Idle;

impl Work for Idle {
    fn turn(&self, job: Box<Job>, _: &Activity) -> Outcome {
        job.release()
            .map_or_else(Outcome::Trouble, |()| Outcome::Stopped)
    }

    fn has_room(&self, running: &mut dyn Iterator<Item = &Activity>) -> bool {
        running.next().is_none()
    }
}

fn service(instance: &Instance) -> Service {
    Service {
        instance: instance.clone(),
        intake: Intake::Machines,
        work: Arc::new(Idle),
    }
}

struct Site {
    top: tempfile::TempDir,
    spool: Spool,
    instance: Instance,
}

impl Site {
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        let config = Config {
            settle_seconds: Some(0),
            ..Config::default()
        };
        let mut instance = Instance::with_config("default", config);
        let at = |name: &str| top.path().join(name);
        instance.directories = Directories {
            queue: at("queue"),
            output: at("output"),
            work: at("work"),
        };
        let spool = Spool::open(
            Arc::new(HostVolume),
            instance.directories.clone(),
            Policy::of(&instance),
            "host",
        )
        .unwrap();
        Self {
            top,
            spool,
            instance,
        }
    }

    fn dispatcher(&self) -> Dispatcher {
        let (service, spool) = (service(&self.instance), self.spool.clone());
        let (sender, receiver) = channel();
        Dispatcher::new(
            service,
            spool,
            Arc::new(Board::new()),
            (sender, receiver, Arc::default()),
        )
        .unwrap()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.top.path().join("queue").join(name), text).unwrap();
    }

    fn manifest(&self, name: &str, disk: &str) {
        self.write(
            name,
            &format!(
                r#"{{"manifest_version": "1.0", "disks": [{{"id": "a", "source_format": "raw",
                    "bytes": 0, "local_path": "{disk}"}}]}}"#
            ),
        );
    }

    /// The only job there is.
    fn job(&self) -> JobId {
        let jobs = self.spool.jobs().unwrap();
        assert_eq!(jobs.len(), 1, "{jobs:?}");
        jobs[0]
    }

    fn is_in(&self, place: &str) -> bool {
        self.top.path().join(place).exists()
    }
}

fn claim(dispatcher: &mut Dispatcher) {
    dispatcher.arrivals.scan().unwrap();
    dispatcher.claim_some();
}

/// On a full disk the queue cannot be written; trying at once would fill the journal as well.
#[test]
fn trouble_is_not_met_again_at_once() {
    let site = Site::new();
    let mut dispatcher = site.dispatcher();
    site.write("a.raw", "x");
    claim(&mut dispatcher);
    let id = site.job();
    let now = Instant::now();
    assert_eq!(
        dispatcher
            .backlog
            .next(now, &|_| true)
            .map(|next| next.job_id),
        Some(id)
    );
    let error = Error::new(ErrorKind::NoSpace, "full");
    dispatcher.finish(id, Outcome::Trouble(error));
    assert!(dispatcher.backlog.contains(id));
    assert!(dispatcher.backlog.next(Instant::now(), &|_| true).is_none());
    let later = now + Duration::from_secs(60);
    assert!(dispatcher.backlog.next(later, &|_| true).is_some());
}

#[test]
fn a_stop_does_not_undo_a_cancellation() {
    let site = Site::new();
    let mut dispatcher = site.dispatcher();
    site.write("a.raw", "x");
    claim(&mut dispatcher);
    let Hold::Job(job) = site.spool.hold(site.job()).unwrap() else {
        panic!("nobody else is there")
    };
    let activity = Activity::new(&job);
    activity.tell(Command::Cancel);
    activity.tell(Command::Stop);
    assert_eq!(activity.command(), Command::Cancel);
    let activity = Activity::new(&job);
    activity.tell(Command::Stop);
    assert_eq!(activity.command(), Command::Stop);
}

/// A disk whose manifest another converter claimed is that one's, even before it has it.
#[test]
fn a_disk_that_another_converters_job_waits_for_is_left_alone() {
    let site = Site::new();
    let (mut one, mut other) = (site.dispatcher(), site.dispatcher());
    site.manifest("m.json", "a.raw");
    claim(&mut one);
    let id = site.job();
    site.write("a.raw", "x");
    claim(&mut other);
    assert_eq!(site.job(), id);
    let Hold::Job(mut job) = site.spool.hold(id).unwrap() else {
        panic!("nobody else is there")
    };
    one.gather(&mut job).unwrap();
    assert!(job.source_dir().join("a.raw").exists());
}

/// What a job waited for that somebody else finished is a drop like any other.
#[test]
fn what_a_job_waited_for_is_free_when_the_job_is_gone() {
    let site = Site::new();
    let mut dispatcher = site.dispatcher();
    site.manifest("m.json", "a.raw");
    claim(&mut dispatcher);
    let first = site.job();
    let Hold::Job(job) = site.spool.hold(first).unwrap() else {
        panic!("nobody else is there")
    };
    job.cancel().unwrap();
    dispatcher.start_some();
    site.write("a.raw", "x");
    claim(&mut dispatcher);
    assert_ne!(site.job(), first);
}

/// `local_path` names a disk that is being delivered anew; the old one was converted on its own.
#[test]
fn an_old_disk_is_not_taken_for_the_new_one_of_its_name() {
    let site = Site::new();
    let mut dispatcher = site.dispatcher();
    site.write("a.raw", "old");
    claim(&mut dispatcher);
    let old = site.job();
    let Hold::Job(mut job) = site.spool.hold(old).unwrap() else {
        panic!("nobody else is there")
    };
    dispatcher.backlog.remove(old);
    assert_eq!(job.begin().unwrap(), Begun::Yes);
    let product = crate::spool::Product {
        file: "a.qcow2".to_owned(),
        format: "qcow2".to_owned(),
        metadata: serde_json::json!({}),
    };
    assert!(job.publish(product).is_ok());
    let published = Outcome::Published {
        bytes_in: 0,
        bytes_out: 0,
    };
    dispatcher.finish(old, published);
    site.manifest("m.json", "a.raw");
    claim(&mut dispatcher);
    dispatcher.start_some();
    assert!(
        site.is_in("queue/.processed/a.raw"),
        "the new one may be on its way"
    );
    let record = site.spool.record(site.job()).unwrap().unwrap();
    assert_eq!(record.state, JobState::Queued);
}

#[test]
fn one_request_retries_all_that_failed() {
    let site = Site::new();
    let mut dispatcher = site.dispatcher();
    for number in 0..3 {
        site.write(
            &format!("{number}.json"),
            r#"{"manifest_version": "9", "disks": []}"#,
        );
    }
    claim(&mut dispatcher);
    assert_eq!(site.spool.reports().unwrap().len(), 3);
    let request = crate::job::Request::RetryAllFailed;
    crate::spool::request::submit(&site.instance.directories, &request).unwrap();
    dispatcher.obey();
    assert_eq!(site.spool.jobs().unwrap().len(), 3);
    assert_eq!(dispatcher.backlog.len(), 3);
}

#[test]
fn a_manifest_that_is_wrong_fails_under_the_name_it_gives() {
    let site = Site::new();
    let mut dispatcher = site.dispatcher();
    site.write(
        "manifest.json",
        r#"{"manifest_version": "9", "source": {"vm_name": "web-01"}, "disks": []}"#,
    );
    claim(&mut dispatcher);
    assert!(site.is_in("output/web-01.error"));
}

#[test]
fn a_reload_reaches_what_has_not_been_claimed() {
    let mut site = Site::new();
    site.instance.config.settle_seconds = Some(3600);
    let mut dispatcher = site.dispatcher();
    site.write("a.raw", "x");
    claim(&mut dispatcher);
    assert_eq!(site.spool.jobs().unwrap().len(), 0);
    site.instance.config.settle_seconds = Some(0);
    dispatcher.reload(service(&site.instance));
    claim(&mut dispatcher);
    site.job();
}

/// A machine that is started again while its administrator works on it.
#[test]
fn a_pause_survives_the_daemon() {
    use crate::job::Request;
    use crate::job::record::DaemonState::{Draining, Paused, Running};
    let site = Site::new();
    let mut other = site.dispatcher();
    for (request, state) in [
        (Request::Pause, Paused),
        (Request::Drain, Draining),
        (Request::Resume, Running),
    ] {
        crate::spool::request::submit(&site.instance.directories, &request).unwrap();
        site.dispatcher().obey();
        assert_eq!(site.dispatcher().state, state);
        other.obey();
        assert_eq!(other.state, state, "the other converter of the queue");
    }
}
