//! The units as installed: complete, valid, hardened, alike; the user and directories they need.
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

const PROGRAMS: [&str; 4] = ["hyper2kvm", "hyperctl", "hyperexport", "hypervisord"];

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs a program to its end; a failure tells all it said.
fn run(program: &str, args: &[&OsStr], envs: &[(&str, &OsStr)]) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .envs(envs.iter().copied())
        .output()
        .with_context(|| format!("{program} is needed; tests/setup/packages.sh installs it"))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(
        output.status.success(),
        "{program} {args:?} failed:\n{said}"
    );
    Ok(said)
}

/// `make install` with empty programs.
fn install(destdir: &Path, prefix: &Path, work: &Path) -> Result<()> {
    let bin = work.join("programs");
    std::fs::create_dir_all(&bin)?;
    for program in PROGRAMS {
        let path = bin.join(program);
        std::fs::write(&path, "#!/bin/sh\n")?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    }
    let variable = |name: &str, value: &Path| format!("{name}={}", value.display());
    let args = [
        "-s".into(),
        "-C".into(),
        top().display().to_string(),
        "install".into(),
        variable("DESTDIR", destdir),
        variable("PREFIX", prefix),
        variable("BIN_DIR", &bin),
    ];
    let args: Vec<&OsStr> = args.iter().map(AsRef::as_ref).collect();
    run("make", &args, &[]).map(|_| ())
}

fn files_below(dir: &Path, at: &Path, files: &mut BTreeSet<String>) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files_below(&path, at, files)?;
        } else {
            files.insert(path.strip_prefix(at)?.display().to_string());
        }
    }
    Ok(())
}

#[test]
fn installs_these_files() -> Result<()> {
    let work = TempDir::new()?;
    let root = work.path().join("root");
    install(&root, Path::new("/usr"), work.path())?;
    let mut files = BTreeSet::new();
    files_below(&root, &root, &mut files)?;
    let wanted = [
        "usr/bin/hyper2kvm",
        "usr/bin/hyperctl",
        "usr/bin/hyperexport",
        "usr/bin/hypervisord",
        "usr/lib/systemd/system/hyper2kvm.service",
        "usr/lib/systemd/system/hyper2kvm.target",
        "usr/lib/systemd/system/hyper2kvm@.service",
        "usr/lib/systemd/system/hypervisord.service",
        "usr/lib/sysusers.d/hyper2kvm.conf",
        "usr/lib/tmpfiles.d/hyper2kvm.conf",
    ];
    let (documents, installed): (BTreeSet<_>, BTreeSet<_>) = files
        .iter()
        .map(String::as_str)
        .partition(|file| file.starts_with("usr/share/doc/hyper2kvm/"));
    ensure!(installed == BTreeSet::from(wanted), "{installed:#?}");
    for document in [
        "LICENSE",
        "examples/hyper2kvm.toml",
        "examples/hypervisord.toml",
        "examples/export-request.json",
        "examples/manifest.json",
    ] {
        let document = format!("usr/share/doc/hyper2kvm/{document}");
        ensure!(documents.contains(document.as_str()), "no {document}");
    }
    for file in &files {
        let mode = root.join(file).metadata()?.mode() & 0o777;
        let wanted = if file.starts_with("usr/bin/") {
            0o755
        } else {
            0o644
        };
        ensure!(mode == wanted, "{file} has mode {mode:o}");
    }
    Ok(())
}

#[test]
fn systemd_accepts_the_units_and_finds_them_safe() -> Result<()> {
    let work = TempDir::new()?;
    // Verified as installed below a prefix of their own, so that the programs are found.
    let prefix = work.path().join("prefix");
    install(Path::new(""), &prefix, work.path())?;
    let units = prefix.join("lib/systemd/system");
    let search = format!("{}:", units.display());
    let said = run(
        "systemd-analyze",
        &[
            "verify",
            "hyper2kvm.service",
            "hyper2kvm@a-b.service",
            "hyper2kvm.target",
            "hypervisord.service",
        ]
        .map(OsStr::new),
        &[("SYSTEMD_UNIT_PATH", search.as_ref())],
    )?;
    ensure!(!said.contains("hyper"), "{said}");
    // The export service may reach the network.
    for (unit, limit) in [
        ("hyper2kvm.service", "--threshold=15"),
        ("hyper2kvm@.service", "--threshold=15"),
        ("hypervisord.service", "--threshold=17"),
    ] {
        let path = units.join(unit);
        let options = ["security", "--offline=true", limit, "--no-pager"];
        let mut args: Vec<&OsStr> = options.map(OsStr::new).into();
        args.push(path.as_os_str());
        run("systemd-analyze", &args, &[])?;
    }
    Ok(())
}

#[test]
fn both_services_are_alike() -> Result<()> {
    let directives = |name: &str| -> Result<String> {
        let text = std::fs::read_to_string(top().join("units/systemd").join(name))?;
        let kept: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        Ok(kept.join("\n"))
    };
    let named = directives("hyper2kvm@.service")?;
    let default = directives("hyper2kvm.service")?;
    ensure!(named.replace("%i", "default") == default);
    Ok(())
}

fn field<'a>(table: &'a str, name: &str, index: usize) -> Result<&'a str> {
    let mut lines = table.lines().map(|line| line.split(':'));
    match lines.find_map(|mut line| (line.next() == Some(name)).then_some(line)) {
        Some(mut line) => line.nth(index - 1).context("no such field"),
        None => bail!("no {name} in {table}"),
    }
}

#[test]
fn makes_the_user_and_the_directories() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this test makes users: run it as root"
    );
    let work = TempDir::new()?;
    let root = work.path().join("root");
    install(&root, Path::new("/usr"), work.path())?;
    std::fs::create_dir_all(root.join("etc"))?;
    // The ACLs are left to the booted test: their names are looked up on the host.
    let option = format!("--root={}", root.display());
    run("systemd-sysusers", &[OsStr::new(&option)], &[])?;
    run(
        "systemd-tmpfiles",
        &["--create", &option].map(OsStr::new),
        &[],
    )?;

    let users = std::fs::read_to_string(root.join("etc/passwd"))?;
    let groups = std::fs::read_to_string(root.join("etc/group"))?;
    let user: u32 = field(&users, "hyper2kvm", 2)?.parse()?;
    let group: u32 = field(&groups, "hyper2kvm", 2)?.parse()?;
    let exporter: u32 = field(&users, "hypervisord", 2)?.parse()?;
    for name in ["hyper2kvm", "hypervisord"] {
        ensure!(field(&users, name, 6)? == "/usr/sbin/nologin", "{name}");
    }
    ensure!(field(&groups, "hyper2kvm", 3)? == "hypervisord");
    for (dir, mode, user) in [
        ("hyper2kvm", 0o0750, user),
        ("hyper2kvm/queue", 0o2770, user),
        ("hyper2kvm/output", 0o2750, user),
        ("hyper2kvm/work", 0o2750, user),
        ("hypervisord", 0o0750, exporter),
        ("hypervisord/requests", 0o2770, exporter),
        ("hypervisord/output", 0o2750, exporter),
        ("hypervisord/work", 0o2750, exporter),
    ] {
        let metadata = root.join("var/lib").join(dir).metadata()?;
        let found = metadata.mode() & 0o7777;
        ensure!(found == mode, "{dir:?} has mode {found:o}");
        ensure!((metadata.uid(), metadata.gid()) == (user, group), "{dir:?}");
    }
    Ok(())
}
