//! What systemd says of the services, where there is a systemd to ask.
use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(2);
const MAX_BYTES: u64 = 1024 * 1024;

/// A unit's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// `active`, `inactive`, `failed`, `activating`, …
    pub active: String,
    /// The main process, while there is one.
    pub pid: Option<u32>,
}

/// Asks `systemctl show` once for all services; those it says nothing about are not in the answer.
pub fn units(services: &[String]) -> BTreeMap<String, Unit> {
    if services.is_empty() {
        return BTreeMap::new();
    }
    parse(&show(services).unwrap_or_default())
}

/// The output of `systemctl show`, unless it is missing, fails or takes too long.
fn show(services: &[String]) -> Option<String> {
    let mut child = Command::new("systemctl")
        .args([
            "show",
            "--no-pager",
            "--property=Id,ActiveState,MainPID",
            "--",
        ])
        .args(services)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let output = child.stdout.take()?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let read = output.take(MAX_BYTES).read_to_string(&mut text);
        // The receiver may have given up.
        let _ = sender.send(read.map(|_| text));
    });
    let answer = receiver.recv_timeout(LIMIT);
    if answer.is_err() {
        // It may have ended meanwhile; either way it is reaped below.
        let _ = child.kill();
    }
    let ended = child.wait().ok()?;
    answer.ok()?.ok().filter(|_| ended.success())
}

fn parse(text: &str) -> BTreeMap<String, Unit> {
    let mut units = BTreeMap::new();
    for block in text.split("\n\n") {
        let properties: BTreeMap<&str, &str> = block
            .lines()
            .filter_map(|line| line.split_once('='))
            .collect();
        if let (Some(id), Some(active)) = (properties.get("Id"), properties.get("ActiveState")) {
            let pid = properties.get("MainPID").and_then(|pid| pid.parse().ok());
            let unit = Unit {
                active: (*active).to_owned(),
                pid: pid.filter(|pid| *pid != 0),
            };
            units.insert((*id).to_owned(), unit);
        }
    }
    units
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_become_units() {
        let text = "Id=hyper2kvm.service\nActiveState=active\nMainPID=42\n\n\
                    MainPID=0\nId=hyper2kvm@a.service\nActiveState=inactive\n\nnonsense\n";
        let units = parse(text);
        assert_eq!(units.len(), 2);
        let unit = &units["hyper2kvm.service"];
        assert_eq!((unit.active.as_str(), unit.pid), ("active", Some(42)));
        assert_eq!(units["hyper2kvm@a.service"].pid, None);
        assert!(parse("").is_empty());
    }
}
