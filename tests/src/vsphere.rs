//! A simulated vCenter with VMs whose disks are real file systems, and hyperexport run on it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a panic is how a test fails
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

use crate::images::{noise, qemu_img, run, text};
use crate::programs::program;
use crate::proxy::{Proxy, Rule};
use crate::vcsim::{PASSWORD, Simulator, USERNAME};

/// In the order in which they end.
pub struct Scene {
    pub proxy: Proxy,
    pub simulator: Simulator,
    pub place: tempfile::TempDir,
}

impl Scene {
    /// `web` is off and has both disks, `live` is on and has the second. Talks through the proxy.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self::with(rules, &[])
    }

    pub fn with(rules: Vec<Rule>, more: &[&str]) -> Self {
        Self::start(rules, more, false)
    }

    /// Beside them `many`, which has the second disk five times.
    pub fn with_many(rules: Vec<Rule>) -> Self {
        Self::start(rules, &[], true)
    }

    fn start(rules: Vec<Rule>, more: &[&str], has_many: bool) -> Self {
        let place = tempfile::tempdir().unwrap();
        disks(place.path());
        let (a, b) = (place.path().join("a.vmdk"), place.path().join("b.vmdk"));
        let mut vms = vec![
            format!("web={},{}", text(&a), text(&b)),
            format!("live:on={}", text(&b)),
            format!("web-02={}", text(&b)),
        ];
        if has_many {
            vms.push(format!("many={}", [text(&b); 5].join(",")));
        }
        let simulator = Simulator::start(place.path(), &vms, more);
        let proxy = Proxy::start(&simulator.address, &simulator.certificates, rules);
        let password = place.path().join("password");
        std::fs::write(&password, format!("{PASSWORD}\n")).unwrap();
        std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o600)).unwrap();
        Self {
            proxy,
            simulator,
            place,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// hyperexport with the server's address, and nothing of the environment but PATH.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command
            .arg("120")
            .arg(program("hyperexport"))
            .args(["--vcenter", &self.proxy.address, "--username", USERNAME])
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HYPER2KVM_CONFIG_DIR", self.path("etc"))
            .env("XDG_STATE_HOME", self.path("state"));
        command
    }

    /// With the password and the certificate's authority.
    pub fn trusting(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(arguments);
        command.args(self.secrets());
        command
    }

    fn secrets(&self) -> [String; 4] {
        let file = |path: PathBuf| text(&path).to_owned();
        [
            "--password-file".into(),
            file(self.path("password")),
            "--ca-file".into(),
            file(self.simulator.certificates.join("ca.pem")),
        ]
    }

    /// What tells hyperexport of the server.
    pub fn server(&self) -> Vec<String> {
        let address = self.proxy.address.clone();
        let mut server = vec!["--vcenter".into(), address];
        server.extend(["--username".into(), USERNAME.into()]);
        server.extend(self.secrets());
        server
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        let output = self.trusting(arguments).output().unwrap();
        self.assert_secret(&output);
        output
    }

    /// Exports to `out/<vm>`.
    pub fn export(&self, vm: &str, more: &[&str]) -> Output {
        let out = self.path("out");
        let mut arguments = vec!["--vm", vm, "--output", out.to_str().unwrap()];
        arguments.extend(more);
        self.run(&arguments)
    }

    /// Neither what was said nor any file that was left knows the password.
    #[track_caller]
    pub fn assert_secret(&self, output: &Output) {
        let (out, err) = said(output);
        for text in [&out, &err] {
            assert!(!text.contains("s3cret"), "{text}");
        }
        for name in ["out", "state"] {
            assert_nowhere("s3cret", &self.path(name));
        }
    }

    /// `out/<vm>` holds these disks of ours, sector for sector.
    #[track_caller]
    pub fn assert_same(&self, vm: &str, disks: &[&str]) {
        for (number, disk) in (1..).zip(disks) {
            let exported = self.path(&format!("out/{vm}/{vm}-disk{number}.vmdk"));
            let original = self.path(&format!("{disk}.raw"));
            let formats = ["-f", "raw", "-F", "vmdk"];
            let (original, exported) = (text(&original), text(&exported));
            qemu_img(&[&["compare"], &formats[..], &[original, exported]].concat());
        }
    }

    /// Nothing is left of a failed export but, perhaps, what it owes.
    #[track_caller]
    pub fn assert_nothing_exported(&self) {
        let left = std::fs::read_dir(self.path("out"))
            .into_iter()
            .flatten()
            .count();
        assert_eq!(left, 0, "{:?}", self.path("out"));
    }

    pub fn manifest(&self, vm: &str) -> Value {
        let path = self.path(&format!("out/{vm}/manifest.json"));
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }
}

/// No file in a directory, which need not be there, holds this.
#[track_caller]
pub fn assert_nowhere(secret: &str, place: &Path) {
    let mut grep = Command::new("grep");
    let found = grep.args(["-rlsaF", secret]).arg(place).output().unwrap();
    let names = String::from_utf8_lossy(&found.stdout);
    assert!(names.is_empty() && found.status.code().is_some(), "{names}");
}

pub fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[track_caller]
pub fn expect(output: &Output, code: i32, about: &str) {
    let (out, err) = said(output);
    assert_eq!(output.status.code(), Some(code), "{out}\n{err}");
    assert!(err.contains(about), "no {about:?} in {err}");
}

/// To what timeout(1), the child, runs; itself would send it twice.
pub fn signal(child: &Child, signal: Signal) {
    let id = child.id();
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    let pid = Pid::from_raw(children.trim().parse().unwrap());
    nix::sys::signal::kill(pid, signal).unwrap();
}

/// Looks until it is so, for at most two minutes.
#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(120);
    while !is_so() {
        assert!(Instant::now() < end, "{what}: not within two minutes");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `a` of 64 MiB and `b` of 24 MiB: ext4 file systems with files of ours, as the raw original and
/// as a streamOptimized VMDK.
fn disks(place: &Path) {
    for (seed, name, size) in [(1, "a", 64 << 20), (2, "b", 24 << 20)] {
        let files = place.join(format!("{name}.d"));
        std::fs::create_dir(&files).unwrap();
        std::fs::write(files.join("noise"), noise(seed, size / 4)).unwrap();
        std::fs::write(files.join("text"), "grain by grain\n".repeat(100_000)).unwrap();
        let (raw, vmdk) = (
            place.join(format!("{name}.raw")),
            place.join(format!("{name}.vmdk")),
        );
        std::fs::File::create(&raw)
            .unwrap()
            .set_len(size as u64)
            .unwrap();
        let (files, raw, vmdk) = (text(&files), text(&raw), text(&vmdk));
        run(
            "e2fsprogs",
            "mke2fs",
            &["-q", "-F", "-t", "ext4", "-d", files, raw],
        );
        let subformat = ["-o", "subformat=streamOptimized"];
        qemu_img(
            &[
                &["convert", "-f", "raw", "-O", "vmdk"],
                &subformat[..],
                &[raw, vmdk],
            ]
            .concat(),
        );
    }
}
