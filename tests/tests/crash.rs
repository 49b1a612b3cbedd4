//! Crash enumeration: every transition of the queue, struck at every step, on every disk that a
//! crash may leave. See `model` for what may be lost, `invariants` for what must hold.
use std::path::Path;

use hyper2kvm_tests::enumerate::{enumerate, strike_repeatedly};
use hyper2kvm_tests::model::Process;
use hyper2kvm_tests::scene::{
    self, Dropped, Scene, asked, directories, disk, dropped, fetch, go_half_way, make_target,
};
use queue::durable::Volume;
use queue::error::Error;
use queue::instance::{Archive, OnConflict};
use queue::job::JobState::{self, Cancelled, Completed, Failed};
use queue::job::{Priority, Request};
use queue::spool::{DropKind, Hold, Job, request, submit};

const DONE: &[JobState] = &[Completed];

fn run(name: &str, drops: Vec<Dropped>, adapt: impl FnOnce(&mut Scene)) {
    let mut scene = Scene::new(drops);
    adapt(&mut scene);
    enumerate(name, &scene);
}

#[test]
fn a_disk() {
    run("disk", vec![disk("vm1.vmdk", "", DONE)], |_| {});
}

#[test]
fn a_descriptor_with_extents() {
    let owned = ["vm1-s001.vmdk", "vm1-s002.vmdk"];
    let drop = dropped("vm1.vmdk", DropKind::Disk, "vm1.vmdk", &owned, "", DONE);
    run("extents", vec![drop], |_| {});
}

#[test]
fn a_job_directory() {
    let owned = ["job/a.vmdk", "job/disks/b.vmdk"];
    let drop = dropped(
        "job",
        DropKind::Directory,
        "job/manifest.json",
        &owned,
        "",
        DONE,
    );
    run("directory", vec![drop], |_| {});
}

#[test]
fn a_manifest_whose_disks_arrive_later() {
    let says = "disk=a.vmdk disk=sub/b.vmdk";
    let mut drop = dropped(
        "manifest.json",
        DropKind::Manifest,
        "manifest.json",
        &[],
        says,
        DONE,
    );
    drop.later = vec![
        ("a.vmdk".into(), "a".into()),
        ("sub/b.vmdk".into(), "b".into()),
    ];
    run("manifest", vec![drop], |scene| {
        scene.before = |_, process| {
            process
                .create_dir(&directories().queue.join("sub"), 0o755)
                .unwrap();
        };
    });
}

/// The disk is taken for a VM of its own; then its manifest comes.
#[test]
fn a_manifest_whose_disk_came_before() {
    let bare = Dropped {
        ends: vec![],
        ..disk("a.vmdk", "", DONE)
    };
    let owner = dropped(
        "m.json",
        DropKind::Manifest,
        "m.json",
        &[],
        "disk=a.vmdk",
        DONE,
    );
    run("disk waiting", vec![bare.clone(), owner.clone()], |_| {});
    run("disk archived", vec![owner.clone()], |scene| {
        scene.before = |_, process| convert_alone(process);
        scene.gone = &["/o/a", "/o/a.qcow2"];
    });
    run("disk archived, result changed", vec![owner], |scene| {
        scene.before = |_, process| {
            convert_alone(process);
            let snapshot = Path::new("/o/a/a.snapshot");
            process.write(snapshot, b"mine").unwrap();
        };
        scene.keeps = Some("/o/a/a.snapshot");
    });
}

fn convert_alone(process: &Process) {
    let alone = Scene::new(vec![disk("a.vmdk", "", DONE)]);
    alone.deliver(process, &alone.drops[0]);
    alone.drive(process).unwrap();
}

/// The first waited for something while the second came and was published.
#[test]
fn an_older_job_whose_name_a_later_one_has_published() {
    let drops = vec![
        disk("vm1.vmdk", "", &[Cancelled]),
        disk("vm1.img", "", DONE),
    ];
    run("superseded", drops, |scene| {
        scene.before = |scene, process| {
            let spool = scene.open(process).unwrap();
            let mut claimed = Vec::new();
            for dropped in &scene.drops {
                scene.deliver(process, dropped);
                claimed.push(spool.claim(&dropped.drop).unwrap().unwrap());
            }
            let Hold::Job(later) = spool.hold(claimed[1]).unwrap() else {
                panic!("nobody else is there");
            };
            assert!(scene::work(process, &spool, *later).unwrap());
        };
        scene.keeps = Some("/o/vm1.qcow2");
    });
}

/// An earlier result of the same VM, with its link and record, made by the spool itself.
fn earlier_result(scene: &Scene, process: &Process) {
    let earlier = Scene::new(vec![disk("vm1.img", "", DONE)]);
    earlier.deliver(process, &earlier.drops[0]);
    earlier.drive(process).unwrap();
    assert!(process.stat(Path::new("/o/vm1.qcow2")).unwrap().is_some());
    let _ = scene;
}

fn earlier_failure(_: &Scene, process: &Process) {
    let earlier = Scene::new(vec![disk("vm1.img", "bad", &[Failed])]);
    earlier.deliver(process, &earlier.drops[0]);
    earlier.drive(process).unwrap();
    assert!(process.stat(Path::new("/o/vm1.error")).unwrap().is_some());
}

#[test]
fn an_earlier_result_is_exchanged() {
    run("exchange", vec![disk("vm1.vmdk", "", DONE)], |scene| {
        scene.before = earlier_result;
        scene.keeps = Some("/o/vm1");
    });
}

#[test]
fn an_earlier_result_is_replaced_without_exchange() {
    run("no exchange", vec![disk("vm1.vmdk", "", DONE)], |scene| {
        scene.before = earlier_result;
        scene.can_exchange = false;
    });
}

#[test]
fn an_earlier_result_stays_when_the_new_job_fails() {
    run(
        "kept by failure",
        vec![disk("vm1.vmdk", "bad", &[Failed])],
        |scene| {
            scene.before = earlier_result;
            scene.keeps = Some("/o/vm1");
        },
    );
    run(
        "kept by reject",
        vec![disk("vm1.vmdk", "", &[Failed])],
        |scene| {
            scene.before = earlier_result;
            scene.keeps = Some("/o/vm1.qcow2");
            scene.policy.on_conflict = OnConflict::Reject;
        },
    );
}

#[test]
fn an_earlier_failure_is_retired() {
    run(
        "earlier .error",
        vec![disk("vm1.vmdk", "", DONE)],
        |scene| scene.before = earlier_failure,
    );
}

#[test]
fn a_name_that_the_source_turns_out_to_bear() {
    run(
        "renamed",
        vec![disk("export.vmdk", "name=vm1", DONE)],
        |scene| {
            scene.before = earlier_result;
            scene.keeps = Some("/o/vm1");
        },
    );
}

#[test]
fn a_place_beneath_the_output() {
    let mut drop = disk("vm1.vmdk", "", DONE);
    drop.drop.place = "tenants/a".to_owned();
    run("place", vec![drop], |_| {});
}

#[test]
fn something_in_the_way() {
    run(
        "in the way",
        vec![disk("vm1.vmdk", "", &[Failed])],
        |scene| {
            scene.before = |_, process| {
                process.create_dir(Path::new("/o/vm1"), 0o755).unwrap();
                process.write(Path::new("/o/vm1/foreign"), b"mine").unwrap();
            };
            scene.keeps = Some("/o/vm1/foreign");
        },
    );
}

#[test]
fn two_drops_of_one_name() {
    // The one that was claimed first may be held up until the other is published.
    let ends = &[Completed, Cancelled];
    run(
        "one name",
        vec![disk("vm1.vmdk", "", ends), disk("vm1.img", "", ends)],
        |_| {},
    );
}

#[test]
fn a_failure() {
    run("failure", vec![disk("vm1.vmdk", "bad", &[Failed])], |_| {});
}

#[test]
fn a_failure_whose_archive_name_is_taken() {
    run(
        "failure again",
        vec![disk("vm1.vmdk", "bad", &[Failed])],
        |scene| {
            scene.before = |_, process| {
                process
                    .write(&directories().errors().join("vm1.vmdk"), b"older")
                    .unwrap();
            };
            scene.keeps = Some("/q/.errors/vm1.vmdk");
        },
    );
}

#[test]
fn a_transient_failure() {
    run(
        "busy once",
        vec![disk("vm1.vmdk", "busy-once", DONE)],
        |_| {},
    );
    run("busy", vec![disk("vm1.vmdk", "busy", &[Failed])], |_| {});
}

#[test]
fn a_poison_job() {
    let scene = Scene::new(vec![disk("poison.vmdk", "", &[Failed, Completed])]);
    let failed = strike_repeatedly("poison", &scene, scene.policy.max_attempts + 1);
    assert!(
        failed > 0,
        "no job that killed its worker again and again was given up"
    );
}

#[test]
fn a_cancelled_job() {
    let ends = [Cancelled, Completed];
    run(
        "cancel running",
        vec![disk("vm1.vmdk", "", &ends)],
        |scene| {
            scene.act = |scene, process| scene.begin_first(process)?.1.cancel().map(|_| ());
        },
    );
    run(
        "cancel waiting",
        vec![disk("vm1.vmdk", "", &ends)],
        |scene| {
            scene.act = |scene, process| {
                let spool = scene.open(process)?;
                if let Some(job) = spool.claim(&scene.drops[0].drop)?
                    && let Hold::Job(job) = spool.hold(job)?
                {
                    job.cancel()?;
                }
                Ok(())
            };
        },
    );
}

#[test]
fn a_released_job() {
    run("release", vec![disk("vm1.vmdk", "", DONE)], |scene| {
        scene.act = |scene, process| scene.begin_first(process)?.1.release();
    });
}

/// A worker that notes how far it is: what is staged is kept exactly as long as its journal is.
#[test]
fn a_long_job() {
    run("long", vec![disk("vm1.vmdk", "long", DONE)], |_| {});
    let failing = [("flaky", "long flaky-once"), ("full", "long busy-once")];
    for (name, says) in failing {
        run(name, vec![disk("vm1.vmdk", says, DONE)], |_| {});
    }
    run(
        "long over an earlier result",
        vec![disk("vm1.vmdk", "long", DONE)],
        |scene| {
            scene.before = earlier_result;
            scene.keeps = Some("/o/vm1");
        },
    );
    run(
        "long, without exchange",
        vec![disk("vm1.vmdk", "long", DONE)],
        |scene| {
            scene.before = earlier_result;
            scene.can_exchange = false;
        },
    );
}

/// Half of it is done when the daemon stops, or when somebody does not want it any more.
#[test]
fn a_long_job_is_interrupted() {
    fn half(scene: &Scene, process: &Process) -> Result<Job, Error> {
        let (_, job) = scene.begin_first(process)?;
        let owner = &scene.drops[0].files[0].1;
        go_half_way(process, &job, owner)?;
        Ok(job)
    }
    run(
        "long, released",
        vec![disk("vm1.vmdk", "long", DONE)],
        |scene| {
            scene.act = |scene, process| half(scene, process)?.release();
        },
    );
    let ends = [Cancelled, Completed];
    run(
        "long, cancelled",
        vec![disk("vm1.vmdk", "long", &ends)],
        |scene| {
            scene.act = |scene, process| half(scene, process)?.cancel().map(|_| ());
        },
    );
    run(
        "long, abandoned",
        vec![disk("vm1.vmdk", "long", DONE)],
        |scene| {
            scene.act = |scene, process| half(scene, process).map(|_| ());
        },
    );
}

/// A retry is asked for when the disk that the job lacked has come.
#[test]
fn a_failed_job_is_retried() {
    let owned = ["vm1-flat.vmdk"];
    let says = "bad-once";
    let ends = [Completed, Failed];
    let drop = dropped("vm1.vmdk", DropKind::Disk, "vm1.vmdk", &owned, says, &ends);
    run("retry", vec![drop], |scene| {
        scene.before = |scene, process| {
            scene.deliver(process, &scene.drops[0]);
            scene.drive(process).unwrap();
            assert!(process.stat(Path::new("/o/vm1.error")).unwrap().is_some());
        };
        scene.act = |scene, process| {
            let job_id = scene.only_record(process)?;
            request::submit_on(process, &directories(), &Request::Retry { job_id })?;
            scene.drive(process)
        };
    });
}

#[test]
fn archives() {
    run("name taken", vec![disk("vm1.vmdk", "", DONE)], |scene| {
        scene.before = |_, process| {
            process
                .write(&directories().processed().join("vm1.vmdk"), b"older")
                .unwrap();
        };
        scene.keeps = Some("/q/.processed/vm1.vmdk");
    });
    let owned = ["vm1-s001.vmdk", "vm1-s002.vmdk"];
    let drop = dropped("vm1.vmdk", DropKind::Disk, "vm1.vmdk", &owned, "", DONE);
    run("delete", vec![drop], |scene| {
        scene.policy.archive = Archive::Delete
    });
}

/// A producer: the job is there whole or not at all, and certainly there once it was told so.
#[test]
fn a_submission() {
    let mut drop = dropped(
        "job",
        DropKind::Directory,
        "job/manifest.json",
        &[],
        "",
        DONE,
    );
    let file = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    drop.files = vec![
        file("manifest.json", "submitted"),
        file("a.vmdk", "submitted disk"),
    ];
    drop.is_submitted = true;
    run("submit", vec![drop], |scene| {
        scene.act = |_, process| {
            let volume = std::sync::Arc::new(process.clone());
            let submission = submit::stage_on(volume, &directories())?;
            let at = |name: &str| submission.directory().join(name);
            process.write(&at("manifest.json"), b"submitted")?;
            process.create_dir(&at("disks"), 0o755)?;
            process.write(&at("disks/a.vmdk"), b"submitted disk")?;
            submission.publish().map(|_| ())
        };
    });
}

#[test]
fn control_requests() {
    run(
        "requests",
        vec![disk("vm1.vmdk", "", &[Completed, Cancelled])],
        |scene| {
            scene.act = |scene, process| {
                let spool = scene.open(process)?;
                let Some(job_id) = spool.claim(&scene.drops[0].drop)? else {
                    return Ok(());
                };
                let priority = Priority::High;
                let directories = directories();
                for asked in [
                    Request::SetPriority { job_id, priority },
                    Request::Retry { job_id },
                    Request::Cancel { job_id },
                ] {
                    request::submit_on(process, &directories, &asked)?;
                }
                process.write(&directories.control().join("x.request.json"), b"{")?;
                scene.drive(process)
            };
        },
    );
}

/// The export service's job: staged in another queue, delivered there by one rename.
#[test]
fn an_export() {
    for (name, says, end) in [
        ("export", "", Completed),
        ("export fails", "bad", Failed),
        ("export busy once", "busy-once", Completed),
    ] {
        run(name, vec![asked("vm1.json", says, &[end])], |scene| {
            scene.before = make_target;
        });
    }
    let drops = ["a", "b"].map(|name| asked(&format!("{name}.json"), "", DONE));
    run("two exports of one name", drops.into(), |scene| {
        scene.before = make_target;
        for dropped in &mut scene.drops {
            dropped.drop.vm_name = queue::job::VmName::new("vm1").unwrap();
        }
    });
}

#[test]
fn an_export_is_interrupted() {
    fn half(scene: &Scene, process: &Process) -> Result<Job, Error> {
        let (_, job) = scene.begin_first(process)?;
        fetch(process, &job, &scene.drops[0].files[0].1)?;
        Ok(job)
    }
    run(
        "export released",
        vec![asked("vm1.json", "", DONE)],
        |scene| {
            scene.before = make_target;
            scene.act = |scene, process| half(scene, process)?.release();
        },
    );
    let ends = [Cancelled, Completed];
    run(
        "export cancelled",
        vec![asked("vm1.json", "", &ends)],
        |scene| {
            scene.before = make_target;
            scene.act = |scene, process| half(scene, process)?.cancel().map(|_| ());
        },
    );
    run(
        "export abandoned",
        vec![asked("vm1.json", "", DONE)],
        |scene| {
            scene.before = make_target;
            scene.act = |scene, process| half(scene, process).map(|_| ());
        },
    );
}

#[test]
fn an_export_that_no_service_survives() {
    let ends = &[Failed, Completed];
    let mut scene = Scene::new(vec![asked("vm1.json", "", ends)]);
    scene.before = make_target;
    let failed = strike_repeatedly("poison export", &scene, scene.policy.max_attempts + 1);
    assert!(failed > 0, "no export that killed its service was given up");
}
