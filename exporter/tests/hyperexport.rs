//! The program as users run it, against a daemon that a thread plays.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use exporter::transfer::Steady;
use exporter::worker::follow::{Ending, Follow, Marks, Patience};
use queue::error::{Error, ErrorKind};
use queue::instance::{Config, DEFAULT, Instance};
use queue::job::record::timestamp;
use queue::job::{Failure, JobId, JobState, Manifest, Record, Status, VmName};

/// A queue, an output directory, a VM's disks, and a PATH of its own.
struct Bench {
    top: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        for name in [
            "queue/.incoming",
            "queue/.processing",
            "output/.daemon/jobs",
            "bin",
            "vm",
        ] {
            std::fs::create_dir_all(top.path().join(name)).unwrap();
        }
        let bench = Self { top };
        std::fs::write(bench.path("vm/web.vmdk"), DESCRIPTOR).unwrap();
        std::fs::write(bench.path("vm/web-flat.vmdk"), vec![7; 4096]).unwrap();
        std::fs::write(bench.path("vm/web_1.raw"), vec![9; 8192]).unwrap();
        bench.script("systemctl", "exit 3");
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.top.path().join(name)
    }

    fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path("bin").join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let path = format!("{}:/usr/bin:/bin", self.path("bin").display());
        let mut command = Command::new(env!("CARGO_BIN_EXE_hyperexport"));
        command
            .env("PATH", path)
            .env("HYPER2KVM_CONFIG_DIR", self.path("etc"))
            .arg("--hyper2kvm-watch-dir")
            .arg(self.path("queue"))
            .arg("--hyper2kvm-output-dir")
            .arg(self.path("output"))
            .args(["--hyper2kvm-poll-interval", "1"])
            .args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Exports `vm/` through the daemon.
    fn submit(&self, more: &[&str]) -> Output {
        let vm = self.path("vm");
        let mut arguments = vec!["--vm", "web", "--hyper2kvm-daemon", "--source"];
        arguments.push(vm.to_str().unwrap());
        arguments.extend(more);
        self.run(&arguments)
    }

    fn names(&self, directory: &str) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.path(directory))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn instance(&self) -> Instance {
        let mut instance = Instance::with_config(DEFAULT, Config::default());
        instance.directories.queue = self.path("queue");
        instance.directories.output = self.path("output");
        instance
    }

    fn beat(&self, time: SystemTime) {
        let status = Status {
            updated_at: timestamp(time),
            ..Status::default()
        };
        let text = serde_json::to_vec(&status).unwrap();
        std::fs::write(self.instance().directories.status(), text).unwrap();
    }

    /// Plays a daemon that handles one drop by `act`.
    fn daemon(&self, act: fn(&Bed)) -> Daemon {
        self.beat(SystemTime::now());
        let bed = Bed {
            queue: self.path("queue"),
            output: self.path("output"),
            drop: String::new(),
        };
        let ended = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&ended);
        let thread = std::thread::spawn(move || {
            let mut bed = bed;
            while !stop.load(Ordering::Relaxed) {
                if let Some(drop) = bed.next() {
                    std::fs::rename(bed.queue.join(&drop), bed.taken(&drop)).unwrap();
                    bed.drop = drop;
                    act(&bed);
                    return;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Daemon {
            ended,
            thread: Some(thread),
        }
    }
}

struct Daemon {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(std::thread::panicking() || ended.is_ok());
    }
}

/// Where the played daemon works.
struct Bed {
    queue: PathBuf,
    output: PathBuf,
    drop: String,
}

impl Bed {
    fn next(&self) -> Option<String> {
        let entries = std::fs::read_dir(&self.queue).unwrap();
        let mut names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.find(|name| !name.starts_with('.'))
    }

    fn taken(&self, drop: &str) -> PathBuf {
        self.queue.join(".processing").join(drop)
    }

    fn record(&self, state: JobState, change: impl Fn(&mut Record)) {
        let mut record = Record::new(JobId::new(), "web", DEFAULT, &self.drop);
        record.state = state;
        change(&mut record);
        let path = self
            .output
            .join(format!(".daemon/jobs/{}.json", record.job_id));
        std::fs::write(path, serde_json::to_vec(&record).unwrap()).unwrap();
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.output.join(name), text).unwrap();
    }
}

const DESCRIPTOR: &str = "# Disk DescriptorFile\nversion=1\nRW 8 FLAT \"web-flat.vmdk\" 0\n";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn expect(output: &Output, code: i32) {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}\n{err}");
}

#[test]
fn submits_a_whole_job_and_follows_it_to_its_end() {
    let bench = Bench::new();
    let output = {
        let _daemon = bench.daemon(|bed| {
            let job = bed.taken(&bed.drop);
            let bytes = std::fs::read(job.join("manifest.json")).unwrap();
            let manifest = Manifest::parse(&bytes).unwrap();
            assert_eq!(manifest.vm_name().as_deref(), Some("web"));
            assert!(manifest.unknown_fields().is_empty());
            let paths: Vec<&str> = manifest
                .disks
                .iter()
                .map(|disk| disk.local_path.as_str())
                .collect();
            assert_eq!(paths, ["web.vmdk", "web_1.raw"]);
            for disk in &manifest.disks {
                let content = std::fs::read(job.join(&disk.local_path)).unwrap();
                let sum = format!("blake3:{}", blake3::hash(&content).to_hex());
                assert_eq!(disk.checksum.as_deref(), Some(sum.as_str()));
            }
            assert_eq!(std::fs::read(job.join("web-flat.vmdk")).unwrap(), [7; 4096]);
            // Somebody else's failure is not ours.
            let mut other = Record::new(JobId::new(), "web", DEFAULT, "web.vmdk");
            other.state = JobState::Failed;
            let path = format!(".daemon/jobs/{}.json", other.job_id);
            bed.write(&path, &serde_json::to_string(&other).unwrap());
            let result = bed.output.join("web.qcow2");
            bed.record(JobState::Completed, |record| {
                record.outputs = vec![result.clone()]
            });
        });
        bench.submit(&["--json"])
    };
    expect(&output, 0);
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["outcome"], "completed");
    assert_eq!(
        answer["outputs"][0],
        bench.path("output/web.qcow2").to_str().unwrap()
    );
    assert!(answer["job_id"].as_str().unwrap().starts_with("job-"));
    assert!(bench.names("queue/.incoming").is_empty());
    assert_eq!(
        bench.names("vm"),
        ["web-flat.vmdk", "web.vmdk", "web_1.raw"]
    );
    assert_eq!(
        std::fs::read(bench.path("vm/web_1.raw")).unwrap(),
        [9; 8192]
    );
}

#[test]
fn a_failure_ends_with_its_text() {
    let bench = Bench::new();
    let output = {
        let _daemon = bench.daemon(|bed| {
            let error = Error::new(ErrorKind::Corrupt, "web.vmdk ends early").with_remedy("copy");
            bed.record(JobState::Failed, |record| {
                record.error = Some(Failure::from(&error))
            });
        });
        bench.submit(&[])
    };
    expect(&output, 1);
    assert_eq!(
        text(&output.stderr),
        "web.vmdk ends early\ncopy\nkind: corrupt\n"
    );
}

#[test]
fn a_daemon_without_records_is_believed_but_not_its_past() {
    for (act, code) in [
        (
            (|bed: &Bed| bed.write("web.error", "new cause\n")) as fn(&Bed),
            1,
        ),
        (|bed: &Bed| bed.write("web.qcow2", "result"), 0),
    ] {
        let bench = Bench::new();
        bench.script("systemctl", "test \"$3\" = hyper2kvm.service");
        std::fs::write(bench.path("output/web.error"), "old cause\n").unwrap();
        let output = {
            let _daemon = bench.daemon(act);
            // The service is active although its heart does not beat.
            bench.beat(SystemTime::now() - Duration::from_secs(60));
            bench.submit(&[])
        };
        expect(&output, code);
        assert!(!text(&output.stderr).contains("old cause"));
        assert_eq!(text(&output.stderr).contains("new cause"), code == 1);
    }
}

#[test]
fn without_a_daemon_it_warns_and_converts_directly() {
    let bench = Bench::new();
    let script = "test \"$1 $3\" = 'convert --output' && test -f \"$2/manifest.json\" || exit 9\n\
                  case \"$*\" in *--overwrite*) ;; *) exit 8 ;; esac\n\
                  case \"$*\" in *--libvirt=qemu:///system) ;; *) exit 7 ;; esac\n\
                  cp \"$2/web_1.raw\" \"$4/web.qcow2\"";
    let converter = bench.script("converter", script);
    let path = ["--hyper2kvm-path", converter.to_str().unwrap()];
    let output = bench.submit(&[path[0], path[1], "--libvirt"]);
    expect(&output, 0);
    let warning = "warning: hyper2kvm.service is not running";
    assert!(
        text(&output.stderr).starts_with(warning),
        "{}",
        text(&output.stderr)
    );
    let result = bench.path("output/web.qcow2");
    assert_eq!(text(&output.stdout), format!("web: {}\n", result.display()));
    assert_eq!(std::fs::read(result).unwrap(), [9; 8192]);
    assert_eq!(bench.names("output"), [".daemon", "web.qcow2"]);

    bench.script("converter", "echo 'the source is damaged' >&2; exit 1");
    let failed = bench.submit(&[path[0], path[1], "--json"]);
    expect(&failed, 1);
    let answer: serde_json::Value = serde_json::from_slice(&failed.stdout).unwrap();
    assert_eq!(
        (&answer["outcome"], &answer["error"]),
        (&"failed".into(), &"the source is damaged".into())
    );
    assert_eq!(bench.names("output"), [".daemon", "web.qcow2"]);
    assert!(bench.names("queue/.incoming").is_empty());

    let missing = bench.submit(&["--hyper2kvm-path", "/nowhere/hyper2kvm"]);
    expect(&missing, 1);
    assert!(text(&missing.stderr).contains("--hyper2kvm-path"));
}

#[test]
fn exports_to_a_directory_and_never_over_another() {
    let bench = Bench::new();
    let (vm, out) = (bench.path("vm"), bench.path("export"));
    let export = |more: &[&str]| {
        let mut arguments = vec![
            "--vm",
            vm.to_str().unwrap(),
            "--output",
            out.to_str().unwrap(),
        ];
        arguments.extend(more);
        bench.run(&arguments)
    };
    expect(&export(&["--dry-run"]), 0);
    assert!(!out.exists());
    let output = export(&["--json"]);
    expect(&output, 0);
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["outcome"], "exported");
    assert_eq!(bench.names("export"), ["vm"]);
    assert_eq!(
        bench.names("export/vm"),
        ["manifest.json", "web-flat.vmdk", "web.vmdk", "web_1.raw"]
    );
    let manifest = std::fs::read(out.join("vm/manifest.json")).unwrap();
    let manifest = Manifest::parse(&manifest).unwrap();
    assert!(
        manifest.disks[0]
            .checksum
            .as_ref()
            .unwrap()
            .starts_with("sha256:")
    );
    let again = export(&[]);
    expect(&again, 1);
    assert!(text(&again.stderr).contains("is there already"));
    let named = export(&["--source", vm.to_str().unwrap(), "--manifest=false"]);
    expect(&named, 0);
}

#[test]
fn a_batch_does_what_it_can_and_tells_the_rest() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("empty")).unwrap();
    let lines: String = ["vm", "empty", "absent"]
        .map(|name| format!("{}\n", bench.path(name).display()))
        .concat();
    std::fs::write(bench.path("list"), format!("# all\n{lines}")).unwrap();
    let (list, out) = (bench.path("list"), bench.path("export"));
    let arguments = [
        "--batch",
        list.to_str().unwrap(),
        "--output",
        out.to_str().unwrap(),
    ];
    let output = bench.run(&[&arguments[..], &["--json", "--parallel", "3"]].concat());
    expect(&output, 1);
    let outcomes: Vec<String> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|answer| answer["outcome"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(outcomes.len(), 3);
    assert_eq!(
        outcomes.iter().filter(|word| *word == "exported").count(),
        1
    );
    assert_eq!(bench.names("export"), ["vm"]);
    // Each failure says of which VM it is, also what a conversion said.
    let again = bench.run(&arguments);
    expect(&again, 1);
    for name in ["vm", "empty", "absent"] {
        let start = format!("{}: ", bench.path(name).display());
        let told = text(&again.stderr);
        assert!(told.lines().any(|line| line.starts_with(&start)), "{told}");
    }
    let converter = bench.script("converter", "echo boom >&2; exit 1");
    let converter = converter.to_str().unwrap();
    let pipeline = ["--batch", list.to_str().unwrap(), "--pipeline"];
    let converted = bench.run(&[&pipeline[..], &["--hyper2kvm-path", converter]].concat());
    let told = text(&converted.stderr);
    assert!(told.contains("vm: boom"), "{told}");
}

#[test]
fn dry_run_tells_and_does_nothing() {
    let bench = Bench::new();
    bench.beat(SystemTime::now());
    let output = bench.submit(&["--dry-run"]);
    expect(&output, 0);
    let said = text(&output.stdout);
    assert!(
        said.starts_with("web: submit to ") && said.contains("disk-1 web_1.raw"),
        "{said}"
    );
    let bytes = DESCRIPTOR.len() + 4096 + 8192;
    assert!(said.contains("about 1 second at 200 MB/s"), "{said}");
    assert!(bench.names("queue/.incoming").is_empty());
    let output = bench.submit(&["--dry-run", "--quiet", "--json"]);
    expect(&output, 0);
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan["expected_bytes"], bytes);
    assert_eq!(plan["expected_seconds"], 1);
}

#[test]
fn wrong_usage_and_wrong_queue_have_their_codes() {
    let bench = Bench::new();
    expect(&bench.run(&[]), 2);
    expect(
        &bench.run(&["--vm", "a", "--provider", "vsphere", "--pipeline"]),
        2,
    );
    expect(
        &bench.run(&[
            "--vm",
            "a",
            "--hyper2kvm-daemon",
            "--hyper2kvm-instance",
            "../x",
        ]),
        2,
    );
    // A mistyped instance would get directories of its own.
    let mistyped = Command::new(env!("CARGO_BIN_EXE_hyperexport"))
        .env("HYPER2KVM_CONFIG_DIR", bench.path("etc"))
        .args(["--vm", "vm", "--hyper2kvm-daemon"])
        .args(["--hyper2kvm-instance", "nosuch"])
        .output()
        .unwrap();
    expect(&mistyped, 2);
    assert!(text(&mistyped.stderr).contains("no instance nosuch"));
    bench.beat(SystemTime::now());
    std::fs::remove_dir(bench.path("queue/.incoming")).unwrap();
    let output = bench.submit(&[]);
    expect(&output, 1);
    assert!(text(&output.stderr).contains("is not a queue"));
}

#[test]
fn an_interrupt_ends_the_waiting_and_says_so() {
    let bench = Bench::new();
    bench.beat(SystemTime::now());
    let vm = bench.path("vm");
    let arguments = ["--hyper2kvm-daemon", "--vm", vm.to_str().unwrap()];
    let mut command = bench.command(&arguments);
    let child = command
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let limit = Instant::now() + Duration::from_secs(30);
    while !bench
        .names("queue")
        .iter()
        .any(|name| !name.starts_with('.'))
    {
        assert!(Instant::now() < limit, "nothing was submitted");
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    expect(&output, 1);
    assert!(
        text(&output.stderr).starts_with("interrupted"),
        "{}",
        text(&output.stderr)
    );
}

fn follow(bench: &Bench, drop: &str) -> Ending {
    let instance = bench.instance();
    let marks = Marks::take(&instance, &VmName::new("web").unwrap());
    let patience = Patience {
        interval: Duration::from_millis(5),
        timeout: Duration::from_millis(50),
    };
    Follow::new(&instance.directories, drop, marks)
        .run(patience, &Steady)
        .unwrap()
}

#[test]
fn patience_ends_but_not_before_the_last_look() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("queue/drop")).unwrap();
    assert_eq!(follow(&bench, "drop"), Ending::TimedOut);
    let bed = Bed {
        queue: bench.path("queue"),
        output: bench.path("output"),
        drop: "drop".to_owned(),
    };
    bed.record(JobState::Processing, |_| {});
    assert_eq!(follow(&bench, "drop"), Ending::TimedOut);
    let other = bench.path("output/.daemon/jobs/job-nonsense.json");
    std::fs::write(Path::new(&other), "{").unwrap();
    let bed = Bed {
        drop: "late".to_owned(),
        ..bed
    };
    bed.record(JobState::Cancelled, |_| {});
    assert!(matches!(follow(&bench, "late"), Ending::Failed(text) if text.contains("cancelled")));
}
