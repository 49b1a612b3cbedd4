//! A producer that appends whenever the converter has nothing left to do, and what comes of it.
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use converter::convert::Plan;
use converter::convert::metadata::Origin;
use converter::convert::vm::{self, Converted, Order};
use converter::disk::{Observer, Unobserved};
use converter::error::Result;
use converter::source::{self, Unpacker};
use queue::instance::Directories;
use queue::instance::config::Libvirt;
use queue::job::VmName;
use queue::roots::Roots;
use queue::spool::growing::Growing;
use queue::spool::submit;

/// What the producer declares when it has appended everything.
#[derive(Clone)]
pub enum Last {
    Whole(Option<String>),
    Aborted(&'static str),
    /// Nothing, ever.
    Silence,
}

/// How far the converter is behind at most: more than it holds back until a batch is full.
const MOST_AHEAD_BYTES: u64 = 5 << 20;

pub struct Producer {
    bytes: Vec<u8>,
    last: Last,
    idle_looks: u32,
    state: Mutex<State>,
}

struct State {
    growing: Growing,
    appended: usize,
    idle: u32,
    random: u64,
    is_over: bool,
    done_bytes: u64,
    /// What was converted before the last byte came.
    early_bytes: u64,
    told: Vec<String>,
}

impl Producer {
    fn append(&self, state: &mut State) {
        use std::io::Write;
        if state.is_over {
            return;
        }
        let rest = &self.bytes[state.appended..];
        if rest.is_empty() {
            state.is_over = true;
            state.early_bytes = state.done_bytes;
            match &self.last {
                Last::Whole(checksum) => state.growing.declare_end(checksum.as_deref()).unwrap(),
                Last::Aborted(why) => state.growing.declare_aborted(why).unwrap(),
                Last::Silence => {}
            }
            return;
        }
        // From single bytes to a third of a MiB.
        let random = &mut state.random;
        *random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let length = (1_usize << (*random >> 33 & 15)) + (*random >> 48) as usize * 4;
        let chunk = &rest[..length.min(rest.len())];
        state.growing.file().write_all(chunk).unwrap();
        state.appended += chunk.len();
    }
}

impl Observer for Producer {
    /// Who waits says that it does nothing.
    fn advance(&self, bytes: u64) {
        let mut state = self.state.lock().unwrap();
        state.done_bytes += bytes;
        state.idle = if bytes > 0 { 0 } else { state.idle + 1 };
        let ahead = (state.appended as u64).saturating_sub(state.done_bytes);
        // Where all of it has to come first, nothing is done meanwhile.
        if bytes == 0 && (ahead < MOST_AHEAD_BYTES || state.idle > self.idle_looks) {
            self.append(&mut state);
        }
    }

    fn is_cancelled(&self) -> bool {
        false
    }

    fn tell(&self, line: &str) {
        self.state.lock().unwrap().told.push(line.to_owned());
    }
}

/// What came of a disk, and how.
pub struct Outcome {
    pub result: Result<Converted>,
    pub image: PathBuf,
    pub told: String,
    pub early_bytes: u64,
}

impl Outcome {
    pub fn was_streamed(&self) -> bool {
        self.told.contains("is converted while it arrives")
            && !self.told.contains("is converted again")
    }
}

pub struct Bench {
    pub top: tempfile::TempDir,
    pub plan: Plan,
    pub patience: Duration,
    /// After so many looks at the file without any work, it is not behind: it waits.
    pub idle_looks: u32,
}

pub fn manifest(format: &str, growing: bool) -> String {
    serde_json::json!({"manifest_version": "1.0", "disks": [
        {"id": "disk-0", "source_format": format, "bytes": 0, "local_path": "vm.vmdk",
         "growing": growing}]})
    .to_string()
}

impl Bench {
    pub fn new(plan: Plan) -> Self {
        Self {
            top: tempfile::tempdir().unwrap(),
            plan,
            patience: Duration::from_secs(60),
            idle_looks: 40,
        }
    }

    fn directories(&self) -> Directories {
        let at = |name: &str| self.top.path().join(name);
        let directories = Directories {
            queue: at("queue"),
            output: at("output"),
            work: at("work"),
        };
        for place in [directories.incoming(), directories.processing()] {
            fs::create_dir_all(place).unwrap();
        }
        directories
    }

    /// Converts a disk of these bytes while they are appended.
    pub fn streams(&self, bytes: &[u8], last: Last) -> Outcome {
        self.streams_as("vmdk", bytes, last)
    }

    pub fn streams_as(&self, format: &str, bytes: &[u8], last: Last) -> Outcome {
        let directories = self.directories();
        let staged = submit::stage(&directories).unwrap();
        let growing = staged.grow("vm.vmdk").unwrap();
        fs::write(
            staged.directory().join("manifest.json"),
            manifest(format, true),
        )
        .unwrap();
        let job = directories.queue.join(staged.publish().unwrap());
        let producer = Producer {
            bytes: bytes.to_vec(),
            last,
            idle_looks: self.idle_looks,
            state: Mutex::new(State {
                growing,
                appended: 0,
                idle: 0,
                random: bytes.len() as u64,
                is_over: false,
                done_bytes: 0,
                early_bytes: 0,
                told: Vec::new(),
            }),
        };
        let (result, image) = self.convert(&job, "streamed", &producer);
        fs::remove_dir_all(&job).unwrap();
        let state = producer.state.into_inner().unwrap();
        Outcome {
            result,
            image,
            told: state.told.join("\n"),
            early_bytes: state.early_bytes,
        }
    }

    /// The same of the whole file.
    pub fn converts(&self, bytes: &[u8]) -> Outcome {
        self.converts_as("vmdk", bytes)
    }

    pub fn converts_as(&self, format: &str, bytes: &[u8]) -> Outcome {
        let job = self.top.path().join("whole-source");
        fs::create_dir(&job).unwrap();
        fs::write(job.join("vm.vmdk"), bytes).unwrap();
        fs::write(job.join("manifest.json"), manifest(format, false)).unwrap();
        let (result, image) = self.convert(&job, "whole", &Unobserved);
        fs::remove_dir_all(&job).unwrap();
        Outcome {
            result,
            image,
            told: String::new(),
            early_bytes: 0,
        }
    }

    fn convert(
        &self,
        job: &Path,
        name: &str,
        observer: &dyn Observer,
    ) -> (Result<Converted>, PathBuf) {
        let directory = self.top.path().join(name);
        // What an earlier case left.
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory).unwrap();
        let image = directory.join("vm.qcow2");
        let unpacker = Unpacker {
            directory: &directory,
            observer,
            patience: self.patience,
        };
        let roots = Roots::open(job, &[]).unwrap();
        let order = Order {
            name: &VmName::new("vm").unwrap(),
            first_file: None,
            plan: &self.plan,
            libvirt: &Libvirt::default(),
            directory: &directory,
            result: &directory,
            origin: Origin::default(),
            host: "test",
            resume: None,
        };
        let opened = source::open(&roots, &job.join("manifest.json"), true, &unpacker);
        let result = opened.and_then(|mut appliance| {
            vm::check_space(&appliance, &self.plan, &directory)?;
            vm::vm(&mut appliance, &order, observer, &mut |_, _| {})
        });
        (result, image)
    }
}

/// Two images, or a first difference.
pub fn assert_same(left: &Path, right: &Path) {
    let [left, right] = [left, right].map(hyper2kvm_tests::images::text);
    hyper2kvm_tests::images::run("diffutils", "cmp", &[left, right]);
}
