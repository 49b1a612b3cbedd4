//! A libvirtd of the test's own: it touches nothing of the host, and nothing of it survives. What
//! the product defines is of the type `kvm`; the test's virsh makes it `qemu`, which any host has.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a panic is how a test fails
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::daemon::wait;

pub struct Libvirt {
    child: Child,
    dir: PathBuf,
}

impl Libvirt {
    /// Starts it; `dir` is its own. Takes root.
    pub fn start(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("setup/libvirtd.sh");
        let log = fs::File::create(dir.join("libvirtd.log")).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "--pid", "--fork", "--kill-child"]);
        command.args(["--mount-proc", "sh"]).arg(script).arg(dir);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap());
        command.stderr(log).process_group(0);
        // SAFETY: prctl(2) is async-signal-safe and touches only the new process.
        unsafe {
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        let child = command.spawn().expect("unshare(1) of util-linux");
        let dir = dir.to_path_buf();
        let mut libvirt = Self { child, dir };
        let mut is_over = false;
        let answers = wait(Duration::from_secs(240), || {
            is_over = libvirt.child.try_wait().unwrap().is_some();
            is_over || libvirt.try_virsh(&["net-info", "default"]).is_ok()
        });
        let log = || fs::read_to_string(libvirt.dir.join("libvirtd.log")).unwrap_or_default();
        assert!(
            answers && !is_over,
            "libvirtd (libvirt-daemon-system): {}",
            log()
        );
        libvirt.write_shim();
        libvirt
    }

    pub fn uri(&self) -> String {
        let socket = self.dir.join("libvirt-sock");
        format!("qemu+unix:///system?socket={}", socket.display())
    }

    /// A directory for the PATH of a daemon: its virsh defines domains that are emulated.
    pub fn programs(&self) -> PathBuf {
        self.dir.join("bin")
    }

    fn write_shim(&self) {
        let virsh = Command::new("sh")
            .args(["-c", "command -v virsh"])
            .output()
            .unwrap();
        let virsh = String::from_utf8(virsh.stdout).unwrap();
        let script = format!(
            "#!/bin/sh\nset -eu\nfor last; do :; done\ncase \"$*\" in\n*' define --file '*)\n\
             made=$(mktemp)\n\
             sed 's/domain type=\"kvm\"/domain type=\"qemu\"/' \"$last\" >\"$made\"\n\
             rc=0\n{virsh} --connect \"$3\" define --file \"$made\" || rc=$?\nrm \"$made\"\n\
             exit $rc ;;\n*) exec {virsh} \"$@\" ;;\nesac\n",
            virsh = virsh.trim()
        );
        fs::create_dir(self.programs()).unwrap();
        let path = self.programs().join("virsh");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// What virsh prints, or complains.
    pub fn try_virsh(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "60", "virsh", "--quiet", "--connect"]);
        let output = command.arg(self.uri()).args(arguments).output().unwrap();
        assert_ne!(
            output.status.code(),
            Some(127),
            "virsh (libvirt-clients) is missing"
        );
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    }

    pub fn virsh(&self, arguments: &[&str]) -> String {
        let said = self.try_virsh(arguments);
        said.unwrap_or_else(|error| panic!("virsh {arguments:?}: {error}"))
    }

    /// Defines a domain as the product does.
    pub fn define(&self, domain: &Path) {
        let mut command = Command::new(self.programs().join("virsh"));
        command.args(["--quiet", "--connect", &self.uri(), "define", "--file"]);
        assert!(command.arg(domain).status().unwrap().success());
    }

    /// Listens to the serial line of a running domain.
    pub fn terminal(&self, domain: &str) -> Terminal {
        let said = self.dir.join(format!("{domain}.serial"));
        let mut command = Command::new("timeout");
        command.args(["900", "cat", &self.virsh(&["ttyconsole", domain])]);
        command.stdout(fs::File::create(&said).unwrap());
        let child = command.spawn().expect("timeout(1) of coreutils");
        Terminal { child, said }
    }

    /// The names of the domains, defined or running.
    pub fn domains(&self) -> Vec<String> {
        let listed = self.virsh(&["list", "--all", "--name"]);
        let names = listed
            .lines()
            .map(str::trim)
            .filter(|name| !name.is_empty());
        names.map(str::to_owned).collect()
    }

    /// From now on it answers nothing, until `Signal::SIGCONT`.
    pub fn signal(&self, signal: Signal) {
        killpg(pid(&self.child), signal).unwrap();
    }
}

/// What a domain says on its serial line.
pub struct Terminal {
    child: Child,
    said: PathBuf,
}

impl Terminal {
    /// Waits until it has said `sign`, and fails with all it said if it does not.
    pub fn wait(&self, limit_seconds: u64, sign: &str) {
        let read = || String::from_utf8_lossy(&fs::read(&self.said).unwrap()).into_owned();
        let limit = Duration::from_secs(limit_seconds);
        assert!(wait(limit, || read().contains(sign)), "{}", read());
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // timeout(1) passes the signal on; it ends with the domain, too.
        let _ = kill(pid(&self.child), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        // With the first process of its namespace go all the others, machines too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
