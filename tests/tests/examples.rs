//! Every example is read by the parser it is meant for, every configuration key is in one, and the
//! demo works.
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use queue::instance::Config;
use queue::instance::exports::{ExportsConfig, Server};
use queue::job::{ExportRequest, Firmware, Manifest};
use serde_json::Value;

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

fn read(name: &str) -> Result<String> {
    let path = examples().join(name);
    std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// `key` or `section.key` of a value, the way a TOML file spells them.
fn keys_of(value: &Value, section: &str, keys: &mut BTreeSet<String>) {
    for (key, value) in value.as_object().into_iter().flatten() {
        let name = format!("{section}{key}");
        if value.is_object() {
            keys_of(value, &format!("{name}."), keys);
        } else {
            keys.insert(name);
        }
    }
}

/// The example with its commented-out keys switched on.
fn uncommented(text: &str) -> String {
    let is_key = |line: &str| {
        let word = line.split_once(" = ").map_or("", |(key, _)| key);
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    };
    let switch_on = |line| match str::strip_prefix(line, "#") {
        Some(rest) if is_key(rest) => rest,
        _ => line,
    };
    text.lines().map(switch_on).collect::<Vec<_>>().join("\n")
}

fn keys_in(text: &str) -> BTreeSet<String> {
    let mut section = String::new();
    let mut keys = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = format!("{name}.");
        } else if let Some((key, _)) = line.split_once(" = ") {
            keys.insert(format!("{section}{key}"));
        }
    }
    keys
}

#[test]
fn every_file_is_parsed() -> Result<()> {
    let mut seen = 0;
    for entry in std::fs::read_dir(examples())? {
        let path = entry?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("toml") if path.ends_with("hypervisord.toml") => {
                ExportsConfig::parse(&std::fs::read_to_string(&path)?, &path)?;
                seen += 1;
            }
            Some("toml") => {
                Config::parse(&std::fs::read_to_string(&path)?, &path)?;
                seen += 1;
            }
            Some("json") if path.ends_with("export-request.json") => {
                let request = ExportRequest::parse(&std::fs::read(&path)?)?;
                ensure!(request.notes().is_empty(), "{}", path.display());
                seen += 1;
            }
            Some("json") => {
                let manifest = Manifest::parse(&std::fs::read(&path)?)?;
                ensure!(manifest.unknown_fields().is_empty(), "{}", path.display());
                seen += 1;
            }
            _ => {}
        }
    }
    ensure!(seen >= 6, "only {seen} examples");
    Ok(())
}

#[test]
fn the_default_example_states_the_defaults() -> Result<()> {
    let path = Path::new("hyper2kvm.toml");
    ensure!(Config::parse(&read("hyper2kvm.toml")?, path)? == Config::default());
    let path = Path::new("hypervisord.toml");
    ensure!(ExportsConfig::parse(&read("hypervisord.toml")?, path)? == ExportsConfig::default());
    Ok(())
}

#[test]
fn every_key_is_documented() -> Result<()> {
    let text = uncommented(&read("hyper2kvm.toml")?);
    let config = Config::parse(&text, Path::new("hyper2kvm.toml"))?;
    every_key_of(&serde_json::to_value(config)?, &text)?;
    let text = uncommented(&read("hypervisord.toml")?);
    let config = ExportsConfig::parse(&text, Path::new("hypervisord.toml"))?;
    every_key_of(&serde_json::to_value(config)?, &text)?;
    let servers = read("hypervisord.toml")?.replace("# ", "");
    for key in serde_json::to_value(Server::default())?
        .as_object()
        .context("a map")?
        .keys()
    {
        ensure!(
            servers.contains(&format!("\n{key} = ")),
            "no {key} of a server"
        );
    }
    Ok(())
}

fn every_key_of(config: &Value, text: &str) -> Result<()> {
    let mut wanted = BTreeSet::new();
    keys_of(config, "", &mut wanted);
    let written = keys_in(text);
    let missing: Vec<_> = wanted.difference(&written).collect();
    ensure!(missing.is_empty(), "not in the example: {missing:?}");
    Ok(())
}

#[test]
fn the_manifest_says_what_it_seems_to() -> Result<()> {
    let manifest = Manifest::parse(read("manifest.json")?.as_bytes())?;
    let machine = manifest.machine();
    ensure!(manifest.vm_name().as_deref() == Some("web-01"));
    ensure!(machine.memory_bytes == Some(4 << 30) && machine.cpus == Some(2));
    ensure!(machine.firmware == Firmware::Uefi && machine.nics.len() == 1);
    Ok(())
}

#[test]
fn the_demo_works() -> Result<()> {
    let test = std::env::current_exe()?;
    let programs = test.ancestors().nth(2).context("no target directory")?;
    ensure!(
        programs.join("hyper2kvm").exists(),
        "no programs in {}: `cargo build --workspace` makes them",
        programs.display()
    );
    let output = Command::new("timeout")
        .args(["--kill-after=10", "120"])
        .arg(examples().join("demo.sh"))
        .arg(programs)
        .stdin(Stdio::null())
        .output()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(output.status.success(), "{said}");
    ensure!(said.contains("Images are identical."), "{said}");
    Ok(())
}
