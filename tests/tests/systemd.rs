//! The installed units under a real systemd: a small Debian boots in a container, runs the checks
//! of tests/systemd/checks.sh on them and powers off; qemu-img judges the results afterwards.
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The longest that the booted system may take.
const LIMIT: &str = "600";

const EXPORTS: &str = "[server.store]\nprovider = \"local\"\nroots = [\"/srv/store\"]\n";

const VSPHERE: &str = "max_concurrent_jobs = 2\n[guest]\nfix = \"off\"\n";

/// What the checks drop, and which disk each result has to equal.
const RESULTS: [(&str, &str); 12] = [
    ("output/default-vm.qcow2", "small"),
    ("output/moved.qcow2", "small"),
    ("output/of-root.qcow2", "small"),
    ("vsphere-prod-output/exported.qcow2", "small"),
    ("aws-prod-output/asked.qcow2", "small"),
    ("output/written.qcow2", "small"),
    ("output/reloaded.qcow2", "small"),
    ("vsphere-prod-output/vsphere-vm.qcow2", "small"),
    ("vsphere-prod-output/stopped.qcow2", "large"),
    ("aws-prod-output/aws-vm.qcow2", "small"),
    ("aws-prod-output/aws-vm2.qcow2", "sparse"),
    ("aws-prod-output/killed.qcow2", "large"),
];

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs a program to its end; a failure tells all it said.
fn run(program: impl AsRef<OsStr>, args: &[&dyn AsRef<OsStr>]) -> Result<String> {
    let program = program.as_ref();
    let args: Vec<&OsStr> = args.iter().map(|arg| (*arg).as_ref()).collect();
    let needed = || format!("{program:?} is needed; tests/setup/packages.sh installs it");
    let output = Command::new(program)
        .args(&args)
        .output()
        .with_context(needed)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{program:?} {args:?} failed:\n{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(said)
}

/// The programs that cargo built beside this test.
fn programs() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let dir = test
        .ancestors()
        .nth(2)
        .context("the test lies in no target directory")?;
    for program in ["hyper2kvm", "hyperctl", "hyperexport", "hypervisord"] {
        let path = dir.join(program);
        ensure!(
            path.exists(),
            "no {}: `cargo build --workspace` makes it",
            path.display()
        );
    }
    Ok(dir.to_path_buf())
}

/// Every sector differs and none compresses, so that converting it takes its time.
fn write_noise(path: &Path, mebibytes: u64) -> Result<()> {
    let mut block = Vec::with_capacity(1 << 20);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    while block.len() < 1 << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        block.extend(state.to_le_bytes());
    }
    let mut file = fs::File::create(path)?;
    for number in 0..mebibytes {
        for (sector, at) in (0_u64..).zip((0..1 << 20).step_by(512)) {
            let stamp = (number << 20 | sector).to_le_bytes();
            block
                .get_mut(at..at + 8)
                .context("a sector")?
                .copy_from_slice(&stamp);
        }
        file.write_all(&block)?;
    }
    Ok(())
}

/// Makes NAME.raw and NAME.vmdk of each disk, and one file that only claims to be a disk.
fn make_disks(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    let raw = |name: &str| dir.join(format!("{name}.raw"));
    let file_system = |name: &str, bytes: u64| -> Result<()> {
        fs::File::create(raw(name))?.set_len(bytes)?;
        let files = top().join("queue/src");
        run(
            "mke2fs",
            &[&"-q", &"-F", &"-t", &"ext4", &"-d", &files, &raw(name)],
        )?;
        Ok(())
    };
    file_system("small", (32 << 20) + 512)?;
    file_system("sparse", 64 << 30)?;
    write_noise(&raw("large"), 512)?;
    for (name, subformat) in [
        ("small", "subformat=streamOptimized"),
        ("sparse", "subformat=streamOptimized"),
        ("large", "subformat=monolithicSparse"),
    ] {
        let vmdk = dir.join(format!("{name}.vmdk"));
        run(
            "qemu-img",
            &[
                &"convert",
                &"-O",
                &"vmdk",
                &"-o",
                &subformat,
                &raw(name),
                &vmdk,
            ],
        )?;
    }
    fs::write(dir.join("garbage.vmdk"), "this is no disk\n".repeat(100))?;
    Ok(())
}

/// Puts programs, units, a configuration and a script of checks where the booted system finds them.
fn furnish(upper: &Path, script: &str) -> Result<()> {
    let destdir = format!("DESTDIR={}", upper.display());
    let programs = format!("BIN_DIR={}", programs()?.display());
    run(
        "make",
        &[&"-s", &"-C", &top(), &"install", &destdir, &programs],
    )?;

    let config = upper.join("etc/hyper2kvm");
    fs::create_dir_all(&config)?;
    fs::copy(
        top().join("examples/hyper2kvm.toml"),
        config.join("hyper2kvm.toml"),
    )?;
    fs::write(config.join("vsphere-prod.toml"), VSPHERE)?;
    fs::write(config.join("hypervisord.toml"), EXPORTS)?;

    let checks = upper.join("test");
    fs::create_dir_all(&checks)?;
    let script = top().join("tests/systemd").join(script);
    fs::copy(script, checks.join("checks.sh"))?;
    let units = upper.join("etc/systemd/system");
    let wanted = units.join("multi-user.target.wants");
    fs::create_dir_all(&wanted)?;
    fs::copy(
        top().join("tests/systemd/checks.service"),
        units.join("checks.service"),
    )?;
    std::os::unix::fs::symlink("../checks.service", wanted.join("checks.service"))?;
    Ok(())
}

fn names_of_checks() -> Result<Vec<String>> {
    let script = fs::read_to_string(top().join("tests/systemd/checks.sh"))?;
    let names = script
        .lines()
        .filter_map(|line| line.strip_prefix("check "));
    Ok(names.map(str::to_owned).collect())
}

#[test]
fn the_installed_units_work_under_systemd() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this test boots a container: run it as root"
    );
    let root = run(top().join("tests/setup/root.sh"), &[])?;
    let work = tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR"))?;
    let (upper, state) = (work.path().join("upper"), work.path().join("state"));
    furnish(&upper, "checks.sh")?;
    let disks = state.join("disks");
    make_disks(&disks)?;

    let boot = top().join("tests/systemd/boot.sh");
    let limit = ["--kill-after=10", LIMIT];
    let booted = run(
        "timeout",
        &[&limit[0], &limit[1], &boot, &root.trim(), &work.path()],
    );
    let log = fs::read_to_string(upper.join("test/log")).unwrap_or_default();
    booted.with_context(|| format!("the container ended badly; the checks said:\n{log}"))?;

    let names = names_of_checks()?;
    ensure!(names.len() >= 20, "only {} checks", names.len());
    for name in names {
        let is_fine = log.lines().any(|line| line == format!("ok {name}"));
        ensure!(is_fine, "{name} failed:\n{log}");
    }
    ensure!(log.ends_with("all checks were run\n"), "{log}");
    for (result, disk) in RESULTS {
        let (result, raw) = (state.join(result), disks.join(format!("{disk}.raw")));
        run("qemu-img", &[&"check", &"-q", &result])?;
        run("qemu-img", &[&"compare", &"-q", &raw, &result])?;
    }
    Ok(())
}

const GUEST: &str = "[guest]\nfix = \"try\"\nboot_check = \"try\"\naccel = \"tcg\"\n";

/// The installed unit on this host's own system (which has libguestfs and QEMU), booted under an
/// overlay: its sandbox lets an appliance and a boot check run, as the service's user.
#[test]
fn the_sandbox_lets_an_appliance_and_a_boot_check_run() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this test boots a container: run it as root"
    );
    let work = tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR"))?;
    let (upper, state) = (work.path().join("upper"), work.path().join("state"));
    furnish(&upper, "guest.sh")?;
    fs::write(upper.join("etc/hyper2kvm/hyper2kvm.toml"), GUEST)?;
    // Nothing of the host's disks is mounted.
    fs::write(upper.join("etc/fstab"), "")?;
    fs::create_dir_all(state.join("disks"))?;
    hyper2kvm_tests::images::tiny(&state.join("disks/tiny.raw"));
    let boot = top().join("tests/systemd/boot.sh");
    let limit = ["--kill-after=10", LIMIT];
    let booted = run(
        "timeout",
        &[
            &limit[0],
            &limit[1],
            &boot,
            &"/",
            &work.path(),
            &"checks.service",
        ],
    );
    let log = fs::read_to_string(upper.join("test/log")).unwrap_or_default();
    booted.with_context(|| format!("the container ended badly; the checks said:\n{log}"))?;
    for check in ["devices", "appliance", "boot_check"] {
        let is_fine = log.lines().any(|line| line == format!("ok {check}"));
        ensure!(is_fine, "{check} failed:\n{log}");
    }
    Ok(())
}
