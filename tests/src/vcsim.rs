//! The vCenter simulator of `tests/vcsim`: built once, started per test on a port of its own.
//!
//! It ends with its standard input, and so with the test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a panic is how a test fails
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;

use crate::images::{checked, run, text};

pub const USERNAME: &str = "export";
/// With what XML would trip over.
pub const PASSWORD: &str = "s3cret&<pass>";

const GOPATH: &str = "/usr/share/gocode";

pub struct Simulator {
    child: Child,
    /// Its end is the simulator's.
    stdin: Option<ChildStdin>,
    /// `127.0.0.1:port`.
    pub address: String,
    pub certificates: PathBuf,
}

impl Simulator {
    /// `vms` are `name[:on]=disk.vmdk[,disk.vmdk]`. Certificates are written into `place`.
    pub fn start(place: &Path, vms: &[String], more: &[&str]) -> Self {
        let certificates = place.join("certificates");
        std::fs::create_dir_all(&certificates).unwrap();
        let mut command = Command::new("timeout");
        command
            .arg("240")
            .arg(built())
            .arg("-certificates")
            .arg(&certificates)
            .args(more);
        for vm in vms {
            command.args(["-vm", vm]);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("timeout(1) of coreutils");
        let stdin = child.stdin.take();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line.trim().split("://").nth(1).map(str::to_owned);
        Self {
            address: address.unwrap_or_else(|| panic!("the simulator said {line:?}")),
            child,
            stdin,
            certificates,
        }
    }

    /// Changes how a plain (not TLS) simulator behaves; see control.go. What it has now.
    pub fn control(&self, query: &str) -> Value {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let host = &self.address;
        write!(
            stream,
            "GET /control?{query} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        assert!(head.contains(" 200 "), "{answer}");
        serde_json::from_str(body).unwrap()
    }

    /// SHA-256 of its certificate, as openssl writes it.
    pub fn thumbprint(&self) -> String {
        let pem = self.certificates.join("server.pem");
        let arguments = ["x509", "-noout", "-fingerprint", "-sha256", "-in"];
        let arguments = [&arguments[..], &[text(&pem)]].concat();
        let shown = String::from_utf8(run("openssl", "openssl", &arguments).stdout).unwrap();
        shown.trim().split_once('=').unwrap().1.to_owned()
    }

    /// Neither a snapshot nor a lease is left.
    #[track_caller]
    pub fn assert_clean(&self) {
        let state = self.control("");
        assert_eq!(state["Snapshots"], serde_json::json!([]), "{state}");
        assert_eq!(state["Leases"], serde_json::json!([]), "{state}");
    }

    /// How often a method was called.
    pub fn calls(&self, method: &str) -> u64 {
        self.control("")["Calls"][method].as_u64().unwrap_or(0)
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

/// The program; built by whichever test comes first.
fn built() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let target = test.ancestors().nth(2).unwrap();
    let program = target.join("vcsim");
    let lock = std::fs::File::create(target.join("vcsim.lock")).unwrap();
    let _turn = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .unwrap();
    let library = Path::new(GOPATH).join("src/github.com/vmware/govmomi/simulator");
    assert!(
        library.is_dir(),
        "govmomi is missing: apt-get install golang-github-vmware-govmomi-dev"
    );
    let mut build = Command::new("timeout");
    build
        .args(["200", "go", "build", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("vcsim"))
        .env("GO111MODULE", "off")
        .env("GOPATH", GOPATH)
        .env("GOFLAGS", "");
    checked("golang-go", build);
    program
}
