//! Arrival on a real directory: every order in which files come, and what must not hold it up.
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::tracker::PENDING_MAX;
use super::*;
use crate::durable::HostVolume;
use crate::instance::{Config, Directories, Instance};
use crate::spool::{Hold, Job, Policy, Spool};

const TIMEOUT: Duration = Duration::from_secs(20);

struct Site {
    _top: tempfile::TempDir,
    directories: Arc<Directories>,
    spool: Spool,
    arrivals: Arrivals,
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
        let spool = Spool::open(Arc::new(HostVolume), directories.clone(), policy, "host").unwrap();
        let directories = Arc::new(directories);
        let terms = Terms {
            intake: Default::default(),
            settle: Duration::ZERO,
            incomplete_timeout: TIMEOUT,
            network: false,
            source_roots: Vec::new(),
        };
        Self {
            arrivals: Arrivals::new(directories.clone(), terms),
            directories,
            spool,
            _top: top,
        }
    }

    fn write(&mut self, name: &str, text: &[u8]) {
        fs::write(self.directories.queue.join(name), text).unwrap();
        self.arrivals.touched(name);
    }

    fn age(&mut self, by: Duration) {
        self.arrivals.stillness.age(by);
        for wanted in self.arrivals.wanted.values_mut() {
            wanted.moved = wanted.moved.checked_sub(by).unwrap();
        }
    }

    /// The names of what is ready, with a `!` before what is refused.
    fn ready(&mut self) -> Vec<String> {
        let ready = self.arrivals.ready(usize::MAX).into_iter();
        ready
            .map(|arrival| match arrival {
                Arrival::Whole(drop) => drop.name,
                Arrival::Refused(drop, _) => format!("!{}", drop.name),
            })
            .collect()
    }

    fn claim(&mut self) -> Job {
        let Some(Arrival::Whole(drop)) = self.arrivals.ready(usize::MAX).pop() else {
            panic!("nothing is ready");
        };
        let id = self.spool.claim(&drop).unwrap().unwrap();
        self.arrivals.forget(&drop);
        match self.spool.hold(id).unwrap() {
            Hold::Job(job) => *job,
            _ => panic!("{id} cannot be held"),
        }
    }
}

fn descriptor(extents: &[&str]) -> Vec<u8> {
    let lines: String = extents
        .iter()
        .map(|extent| format!("RW 1 FLAT \"{extent}\" 0\n"))
        .collect();
    format!("# Disk DescriptorFile\n{lines}").into_bytes()
}

fn manifest(disks: &[&str]) -> Vec<u8> {
    let disks: Vec<_> = disks
        .iter()
        .enumerate()
        .map(|(index, disk)| {
            serde_json::json!({"id": format!("d{index}"), "source_format": "raw", "bytes": 0,
                "local_path": disk})
        })
        .collect();
    serde_json::json!({"manifest_version": "1.0", "disks": disks})
        .to_string()
        .into_bytes()
}

#[test]
fn an_owner_waits_as_long_as_its_disk_grows() {
    let mut site = Site::new();
    site.write(
        "vm.vmdk",
        &descriptor(&["vm-1-flat.vmdk", "vm-2-flat.vmdk"]),
    );
    let path = site.directories.queue.join("vm-1-flat.vmdk");
    let mut disk = File::create(&path).unwrap();
    for _ in 0..3 {
        disk.write_all(b"more").unwrap();
        assert_eq!(site.ready(), [""; 0]);
        site.age(TIMEOUT * 3 / 4);
    }
    std::mem::drop(disk);
    site.write("vm-2-flat.vmdk", b"x");
    assert_eq!(site.ready(), ["vm.vmdk"]);
}

#[test]
fn an_owner_whose_disk_stopped_growing_is_refused() {
    let mut site = Site::new();
    site.write(
        "vm.vmdk",
        &descriptor(&["vm-1-flat.vmdk", "vm-2-flat.vmdk"]),
    );
    site.write("vm-1-flat.vmdk", b"x");
    assert_eq!(site.ready(), [""; 0]);
    site.age(TIMEOUT);
    assert_eq!(site.ready(), ["!vm.vmdk"]);
}

/// Between one disk's end and the next one's beginning nothing grows.
#[test]
fn a_job_is_overdue_only_long_after_its_last_disk_came() {
    let mut site = Site::new();
    site.write("m.json", &manifest(&["a.raw", "b.raw"]));
    let mut job = site.claim();
    let gather = |site: &mut Site, job: &mut Job| match site.arrivals.gather(job).unwrap() {
        Gathered::Whole => None,
        Gathered::Missing { names, overdue } => Some((names.join(" "), overdue)),
    };
    let missing = |names: &str, overdue| Some((names.to_owned(), overdue));
    assert_eq!(gather(&mut site, &mut job), missing("a.raw b.raw", false));
    site.age(TIMEOUT * 3 / 4);
    site.write("a.raw", b"a");
    assert_eq!(gather(&mut site, &mut job), missing("b.raw", false));
    site.age(TIMEOUT * 3 / 4);
    assert_eq!(gather(&mut site, &mut job), missing("b.raw", false));
    site.age(TIMEOUT * 3 / 4);
    assert_eq!(gather(&mut site, &mut job), missing("b.raw", true));
    site.write("b.raw", b"b");
    assert_eq!(site.ready(), [""; 0], "a job waits for b.raw");
    assert_eq!(gather(&mut site, &mut job), None);
}

#[test]
fn what_was_published_by_one_rename_never_grows() {
    let mut site = Site::new();
    let job = site.directories.queue.join("job");
    fs::create_dir(&job).unwrap();
    fs::write(job.join("manifest.json"), manifest(&["a.raw"])).unwrap();
    site.arrivals.moved_in("job");
    let mut job = site.claim();
    let gathered = site.arrivals.gather(&mut job).unwrap();
    assert!(matches!(gathered, Gathered::Missing { overdue: true, .. }));
}

#[test]
fn a_file_that_is_renamed_in_while_it_is_written_is_not_whole() {
    let mut site = Site::new();
    let path = site.directories.queue.join("a.raw");
    let mut file = File::create(&path).unwrap();
    file.write_all(b"half").unwrap();
    site.arrivals.moved_in("a.raw");
    assert_eq!(site.ready(), [""; 0]);
    std::mem::drop(file);
    assert_eq!(site.ready(), ["a.raw"]);
}

#[test]
fn what_was_ready_is_looked_at_again() {
    let mut site = Site::new();
    site.write("a.raw", b"a");
    site.write("manifest.json", &manifest(&["b.raw"]));
    assert_eq!(site.ready(), ["a.raw", "manifest.json"]);
    let writer = File::create(site.directories.queue.join("a.raw")).unwrap();
    assert!(site.arrivals.again("a.raw").is_none());
    std::mem::drop(writer);
    fs::write(site.directories.queue.join("a.raw"), "new").unwrap();
    assert!(site.arrivals.again("a.raw").is_some());
    let mut named = serde_json::from_slice::<serde_json::Value>(&manifest(&["c.raw"])).unwrap();
    named["source"] = serde_json::json!({"vm_name": "second"});
    site.write("manifest.json", named.to_string().as_bytes());
    let Some(Arrival::Whole(drop)) = site.arrivals.again("manifest.json") else {
        panic!("the second manifest is whole");
    };
    assert_eq!(drop.vm_name.as_str(), "second");
}

/// As root only the file system's own user can be taken off, for this thread alone.
fn as_nobody<T>(work: impl FnOnce() -> T) -> T {
    use nix::unistd::{Uid, setfsuid};
    let before = setfsuid(Uid::from_raw(65534));
    let result = work();
    setfsuid(before);
    result
}

#[test]
fn a_file_that_may_not_be_read_is_refused_with_the_cause() {
    use std::os::unix::fs::PermissionsExt;
    let mut site = Site::new();
    for name in ["a.raw", "m.json", "b.ovf"] {
        site.write(name, b"{}");
        let path = site.directories.queue.join(name);
        fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
    }
    if nix::unistd::geteuid().is_root() {
        let queue = fs::Permissions::from_mode(0o777);
        fs::set_permissions(&site.directories.queue, queue).unwrap();
        let top = fs::Permissions::from_mode(0o777);
        fs::set_permissions(site.directories.queue.parent().unwrap(), top).unwrap();
    }
    let (waiting, refused) = as_nobody(|| {
        let waiting = site.ready();
        site.age(TIMEOUT);
        site.age(TIMEOUT);
        (waiting, site.arrivals.ready(usize::MAX))
    });
    assert_eq!(waiting, [""; 0], "a copier may be about to open it up");
    assert_eq!(refused.len(), 3);
    for arrival in refused {
        let Arrival::Refused(drop, error) = arrival else {
            panic!("it cannot be whole");
        };
        assert!(
            error.to_string().contains("may not be read"),
            "{}: {error}",
            drop.name
        );
    }
}

#[test]
fn a_long_queue_is_taken_up_by_degrees_and_urgent_drops_at_once() {
    let mut site = Site::new();
    let count = PENDING_MAX + 100;
    for number in 0..count {
        fs::write(site.directories.queue.join(format!("vm-{number}.raw")), "x").unwrap();
    }
    fs::write(site.directories.queue.join("z.json"), manifest(&["a.raw"])).unwrap();
    site.arrivals.scan().unwrap();
    let mut claimed = BTreeSet::new();
    assert!(site.arrivals.beyond() >= 100 && !site.arrivals.needs_scan());
    while claimed.len() <= count {
        if site.arrivals.needs_scan() {
            site.arrivals.scan().unwrap();
        }
        let ready = site.arrivals.ready(64);
        assert!(!ready.is_empty() && ready.len() <= 65);
        for arrival in ready {
            let Arrival::Whole(drop) = arrival else {
                panic!("{arrival:?}")
            };
            assert!(drop.name != "z.json" || claimed.len() <= 64);
            fs::remove_file(site.directories.queue.join(&drop.name)).unwrap();
            assert!(claimed.insert(drop.name));
        }
    }
    assert!(site.arrivals.ready(64).is_empty());
}

#[test]
fn a_large_text_is_parsed_once() {
    let mut site = Site::new();
    let text = format!("<a>{}", "<b c='d'/>".repeat(100_000));
    let writer = File::create(site.directories.queue.join("vm.ovf")).unwrap();
    site.write("vm.ovf", text.as_bytes());
    let started = Instant::now();
    for _ in 0..1000 {
        assert_eq!(site.ready(), [""; 0]);
    }
    std::mem::drop(writer);
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn nothing_is_remembered_of_what_is_gone() {
    let mut site = Site::new();
    let dir = site.directories.queue.join("dir");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("manifest.json"), manifest(&["a.raw"])).unwrap();
    fs::write(dir.join("a.raw"), "a").unwrap();
    site.arrivals.scan().unwrap();
    let _job = site.claim();
    site.arrivals.scan().unwrap();
    assert_eq!(site.arrivals.waiting(), 0);
    site.arrivals
        .stillness
        .retain(|path: &Path| panic!("{} is remembered", path.display()));
}

fn qcow2(backing: &str) -> Vec<u8> {
    let mut bytes = b"QFI\xfb\0\0\0\x03".to_vec();
    bytes.extend(if backing.is_empty() { 0_u64 } else { 104 }.to_be_bytes());
    bytes.extend((backing.len() as u32).to_be_bytes());
    bytes.resize(104, 0);
    bytes.extend(backing.as_bytes());
    bytes.resize(1024, 0);
    bytes
}

#[test]
fn a_chains_last_disk_owns_the_others() {
    let mut site = Site::new();
    site.write("base.qcow2", &qcow2(""));
    site.write("mid.qcow2", &qcow2("base.qcow2"));
    site.write("top.qcow2", &qcow2("C:\\elsewhere\\mid.qcow2"));
    let mut job = site.claim();
    assert_eq!(job.memory.drop, "top.qcow2");
    let gathered = site.arrivals.gather(&mut job).unwrap();
    assert!(matches!(gathered, Gathered::Whole));
    assert_eq!(site.ready(), [""; 0]);
    for name in ["base.qcow2", "mid.qcow2", "top.qcow2"] {
        assert!(job.source_dir().join(name).exists(), "{name}");
    }
}

#[test]
fn a_chain_without_an_end_is_nobodys() {
    let mut site = Site::new();
    site.write("a.qcow2", &qcow2("b.qcow2"));
    site.write("b.qcow2", &qcow2("a.qcow2"));
    assert_eq!(site.ready(), ["a.qcow2", "b.qcow2"]);
}
