//! A VM of 1 GiB from the vCenter simulator over TLS on loopback, by hyperexport: received, hashed
//! for the server's manifest (SHA-256) and for the converter (BLAKE3), written.
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use exporter::transfer::download::{Sink, Source, fetch};
use exporter::transfer::http::{Client, Url};
use exporter::transfer::tls::Trust;
use exporter::transfer::{Algorithm, Steady};
use hyper2kvm_tests::vcsim::{PASSWORD, Simulator, USERNAME};
use nix::sys::resource::{UsageWho, getrusage};

use crate::load::row;
use crate::measure::{Measure, measure, median};
use crate::report::Line;
use crate::{run, streaming};

const ROUNDS: usize = 5;
const VM: &str = "big";
/// Memory with a file system's face: what is written there waits for no disk.
const TMPFS: &str = "/dev/shm";
/// Stands in for the converter: takes the disk as its result.
const TAKE: &str = "#!/bin/sh\nexec ln \"$2\"/*.vmdk \"$4/big.qcow2\"\n";

pub fn download(programs: &Path, top: &Path) -> Result<Vec<Line>> {
    fs::create_dir_all(top.join("etc"))?;
    let disk = top.join("disk.vmdk");
    streaming::build(&disk)?;
    fs::write(top.join("password"), PASSWORD)?;
    let converter = top.join("take");
    fs::write(&converter, TAKE)?;
    fs::set_permissions(&converter, PermissionsExt::from_mode(0o755))?;
    let vm = format!("{VM}={}", disk.display());
    let bench = Bench {
        hyperexport: programs.join("hyperexport"),
        simulator: Simulator::start(top, &[vm], &["-tls"]),
        top,
        converter,
        disk: &disk,
    };
    let memory = tempfile::tempdir_in(TMPFS)?;
    // The simulator reads the disk's checksum once.
    bench.ours(memory.path())?;
    let mut measured = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        let [unwritten, to_memory, to_disk, theirs] = &mut measured;
        unwritten.push(bench.unwritten()?);
        theirs.push(bench.theirs(memory.path())?);
        to_memory.push(bench.ours(memory.path())?);
        to_disk.push(bench.ours(&top.join("results"))?);
    }
    let bytes = fs::metadata(&disk)?.len();
    let rows = [
        ("download of 1 GiB, TLS, two hashes", "≥ 500 MB per CPU s"),
        ("a whole export of it, written to tmpfs", ""),
        ("the same to the file system of the results", ""),
        ("curl piped to tee and sha256sum, to tmpfs", ""),
    ];
    let lines = rows.into_iter().zip(&measured);
    Ok(lines
        .map(|((what, target), measures)| row(what, rates(bytes, measures), target))
        .collect())
}

struct Bench<'a> {
    hyperexport: PathBuf,
    simulator: Simulator,
    top: &'a Path,
    converter: PathBuf,
    disk: &'a Path,
}

impl Bench<'_> {
    fn authority(&self) -> PathBuf {
        self.simulator.certificates.join("ca.pem")
    }

    fn ours(&self, place: &Path) -> Result<Measure> {
        fs::create_dir_all(place)?;
        let mut command = Command::new(&self.hyperexport);
        command
            .args(["--vcenter", &self.simulator.address])
            .args(["--username", USERNAME, "--vm", VM, "--pipeline", "--quiet"])
            .arg("--password-file")
            .arg(self.top.join("password"))
            .arg("--ca-file")
            .arg(self.authority())
            .arg("--hyper2kvm-path")
            .arg(&self.converter)
            .arg("--hyper2kvm-output-dir")
            .arg(place)
            .env("HYPER2KVM_CONFIG_DIR", self.top.join("etc"))
            .env("XDG_STATE_HOME", self.top.join("state"));
        let measured = measure(&mut command, place)?;
        self.judge(&place.join(format!("{VM}.qcow2")))?;
        Ok(measured)
    }

    fn url(&self) -> String {
        let (server, disk) = (&self.simulator.address, self.disk.display());
        format!("https://{server}/file{disk}")
    }

    /// Received and hashed by hyperexport's own code, within this process, and written nowhere.
    fn unwritten(&self) -> Result<Measure> {
        let url: Url = self.url().parse()?;
        let trust = Trust {
            ca_file: Some(self.authority()),
            ..Trust::default()
        };
        let client = Client::of(&url, &trust, Duration::from_secs(60))?;
        let source = Source {
            url,
            name: VM,
            size_bytes: None,
            algorithms: &[Algorithm::Blake3, Algorithm::Sha256],
        };
        let (begun, before) = (Instant::now(), cpu_seconds()?);
        let fetched = fetch(&client, &source, &mut Nowhere, &Steady)?;
        let (seconds, after) = (begun.elapsed().as_secs_f64(), cpu_seconds()?);
        anyhow::ensure!(fetched.size_bytes == fs::metadata(self.disk)?.len());
        Ok(Measure {
            seconds,
            cpu_seconds: after - before,
            peak_bytes: 0,
        })
    }

    fn theirs(&self, place: &Path) -> Result<Measure> {
        let to = place.join("theirs.vmdk");
        let pipe = r#"set -o pipefail; curl -sSf --cacert "$1" "$2" | tee "$3" | sha256sum"#;
        let mut command = Command::new("bash");
        command.args(["-c", pipe, "bash"]);
        let measured = measure(
            command.arg(self.authority()).arg(self.url()).arg(&to),
            place,
        )?;
        self.judge(&to)?;
        Ok(measured)
    }

    /// It is the disk, and is not needed any more.
    fn judge(&self, got: &Path) -> Result<()> {
        run(Command::new("cmp").arg(self.disk).arg(got))?;
        Ok(fs::remove_file(got)?)
    }
}

struct Nowhere;

impl Sink for Nowhere {
    fn cut(&mut self, _: u64) -> exporter::error::Result<()> {
        Ok(())
    }

    fn append(&mut self, _: &[u8]) -> exporter::error::Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> exporter::error::Result<()> {
        Ok(())
    }
}

/// User and system time of this process so far.
fn cpu_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let times = [usage.user_time(), usage.system_time()];
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(times.into_iter().map(seconds).sum())
}

/// `612 MB per CPU s (480 MB/s)`: the medians of both, each by itself.
fn rates(bytes: u64, measures: &[Measure]) -> String {
    let rate = |seconds: fn(&Measure) -> f64| {
        median(measures.iter().map(|one| bytes as f64 / 1e6 / seconds(one)))
    };
    let (per_cpu, rate) = (rate(|one| one.cpu_seconds), rate(|one| one.seconds));
    format!("{per_cpu:.0} MB per CPU s, {rate:.0} MB/s")
}
