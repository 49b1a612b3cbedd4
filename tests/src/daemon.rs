//! The real daemon on real directories: finds or builds the program, starts it, waits for what it
//! shows, and ends it. Nothing that a test starts outlives the test.
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use queue::instance::Directories;
use queue::job::{JobState, Record};

/// The program, built by cargo into the directory that this test was built into.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let test = std::env::current_exe().unwrap();
        let profile = test
            .ancestors()
            .find(|dir| dir.ends_with("debug") || dir.ends_with("release"))
            .expect("a test lies beneath target/debug or target/release");
        let program = profile.join("hyper2kvm");
        if !program.is_file() {
            let mut cargo = Command::new(env!("CARGO"));
            cargo.args(["build", "-p", "hyper2kvm", "--bins", "--target-dir"]);
            cargo.arg(profile.parent().unwrap());
            if profile.ends_with("release") {
                cargo.arg("--release");
            }
            let status = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status();
            assert!(
                status.is_ok_and(|status| status.success()),
                "cargo build failed"
            );
        }
        assert!(program.is_file(), "{} is missing", program.display());
        program
    })
}

/// Waits until `holds`; `false` if it does not within `limit`.
pub fn wait(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// One queue with its output, in a directory of its own; tells the logs of its daemons if the test
/// is failing.
pub struct Site {
    pub top: tempfile::TempDir,
    pub directories: Directories,
    config: PathBuf,
    /// What its daemons have in their environment besides the test's own.
    pub environment: Vec<(&'static str, String)>,
    /// Whether its daemons leave guests alone, as most tests want it.
    no_fix: bool,
}

impl Site {
    /// `config` is TOML; the directories come by options.
    pub fn new(config: &str) -> Self {
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| top.path().join(name);
        let path = at("test.toml");
        fs::write(&path, config).unwrap();
        let directories = Directories {
            queue: at("queue"),
            output: at("output"),
            work: at("work"),
        };
        Self {
            directories,
            config: path,
            environment: Vec::new(),
            no_fix: true,
            top,
        }
    }

    /// One whose daemons do with guests what `config` says.
    pub fn repairing(config: &str) -> Self {
        let mut site = Self::new(config);
        site.no_fix = false;
        site
    }

    /// Has its daemons find programs in `dir` before any others.
    pub fn prefer_programs(&mut self, dir: &Path) {
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{path}", dir.display());
        self.environment.push(("PATH", path));
    }

    pub fn start(&self) -> Daemon {
        self.launch().ready()
    }

    /// Starts a daemon without waiting for it.
    pub fn launch(&self) -> Daemon {
        let mut command = Command::new(program());
        command
            .arg("daemon")
            .args(self.no_fix.then_some("--no-fix"))
            .arg("--config")
            .arg(&self.config)
            .env("LIBGUESTFS_CACHEDIR", "/var/tmp");
        command.arg("--watch-dir").arg(&self.directories.queue);
        command.arg("--output-dir").arg(&self.directories.output);
        command.arg("--work-dir").arg(&self.directories.work);
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        Daemon::spawn(command, self.top.path())
    }

    /// hyperexport through this daemon, if it runs, with the same configuration.
    pub fn hyperexport(&self) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "150"]);
        command.arg(crate::programs::program("hyperexport"));
        command.args(["--hyper2kvm-daemon", "--hyper2kvm-poll-interval", "1"]);
        command.args(["--hyper2kvm-instance", "test"]);
        command
            .arg("--hyper2kvm-watch-dir")
            .arg(&self.directories.queue);
        command
            .arg("--hyper2kvm-output-dir")
            .arg(&self.directories.output);
        command
            .env("HYPER2KVM_CONFIG_DIR", self.top.path())
            .env("XDG_STATE_HOME", self.top.path().join("state"))
            .env("LIBGUESTFS_CACHEDIR", "/var/tmp");
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        command
    }

    /// Copies a file in under an unfinished name, then renames it.
    pub fn deliver(&self, source: &Path, name: &str) {
        let unfinished = self.directories.queue.join(format!("{name}.part"));
        fs::create_dir_all(&self.directories.queue).unwrap();
        fs::copy(source, &unfinished).unwrap();
        fs::rename(&unfinished, self.directories.queue.join(name)).unwrap();
    }

    pub fn link(&self, vm: &str) -> PathBuf {
        self.directories.output.join(format!("{vm}.qcow2"))
    }

    pub fn error(&self, vm: &str) -> PathBuf {
        self.directories.output.join(format!("{vm}.error"))
    }

    /// Every record that can be read, by job.
    pub fn records(&self) -> Vec<Record> {
        records(&self.directories)
    }

    pub fn count(&self, state: JobState) -> usize {
        self.records()
            .iter()
            .filter(|record| record.state == state)
            .count()
    }

    /// The names in the queue directory that are drops.
    pub fn drops(&self) -> Vec<String> {
        let mut drops = names(&self.directories.queue);
        drops.retain(|name| !name.starts_with('.'));
        drops
    }

    /// Nothing is being worked on, and nothing of it is left behind.
    pub fn is_quiet(&self) -> bool {
        let directories = &self.directories;
        names(&directories.processing()).is_empty() && names(&directories.staging()).is_empty()
    }

    pub fn config(&self) -> &Path {
        &self.config
    }
}

/// The names in a directory; none if it is not there.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Every record in these directories that can be read, by job.
pub fn records(directories: &Directories) -> Vec<Record> {
    let entries = names(&directories.records()).into_iter();
    let mut records: Vec<Record> = entries
        .filter(|name| !name.starts_with('.'))
        .filter_map(|name| fs::read(directories.records().join(name)).ok())
        .filter_map(|bytes| serde_json::from_slice(&bytes).ok())
        .collect();
    records.sort_by_key(|record: &Record| record.job_id);
    records
}

/// A running daemon; it dies with this value, and tells its log if the test is failing.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts a program of ours that logs to a new file in `place`.
    pub fn spawn(mut command: Command, place: &Path) -> Self {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let log = place.join(format!("daemon-{number}.log"));
        let output = File::create(&log).unwrap();
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        command
            .env_remove("NOTIFY_SOCKET")
            .env_remove("JOURNAL_STREAM");
        // SAFETY: prctl(2) is async-signal-safe and touches only the new process.
        unsafe {
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        let child = command.spawn().unwrap();
        Self { child, log }
    }

    /// Waits until it says that it works.
    pub fn ready(self) -> Self {
        let log = self.log.clone();
        let is_ready = || fs::read_to_string(&log).is_ok_and(|log| log.contains("ready: watching"));
        assert!(
            wait(on_a_shared_machine(30), is_ready),
            "the daemon is not ready"
        );
        self
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until `holds`, and fails if it does not or the daemon ends before. The limit is that
    /// of a machine of one's own.
    pub fn wait(&mut self, limit_seconds: u64, what: &str, mut holds: impl FnMut() -> bool) {
        let limit = on_a_shared_machine(limit_seconds);
        let mut alive = true;
        let met = wait(limit, || {
            alive = self.child.try_wait().unwrap().is_none();
            holds() || !alive
        });
        assert!(
            met && (alive || holds()),
            "{what}: not within {limit:?} (daemon alive: {alive})"
        );
    }

    /// Waits until its log holds `text`.
    pub fn wait_for_log(&mut self, limit_seconds: u64, text: &str) {
        let log = self.log.clone();
        let holds = || fs::read_to_string(&log).is_ok_and(|log| log.contains(text));
        self.wait(limit_seconds, text, holds);
    }

    /// SIGTERM, then its exit; failure is a panic.
    pub fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let mut status = None;
        let ended = wait(on_a_shared_machine(30), || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(ended, "the daemon does not stop");
        assert!(
            status.is_some_and(|status| status.success()),
            "{}",
            self.log()
        );
    }

    /// SIGKILL; it is gone when this returns.
    pub fn kill(mut self) {
        self.end();
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            tell(&self.log);
        }
    }
}

/// What a limit becomes where other things run, too: whoever waits for what comes loses nothing.
fn on_a_shared_machine(seconds: u64) -> Duration {
    Duration::from_secs(seconds * 4)
}

/// Prints the end of a log, once.
fn tell(log: &Path) {
    let Ok(text) = fs::read_to_string(log) else {
        return;
    };
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines.len().saturating_sub(60);
    println!("-- {} --\n{}", log.display(), lines[tail..].join("\n"));
    let _ = fs::remove_file(log);
}
