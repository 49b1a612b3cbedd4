//! Defines a published VM in libvirt with virsh(1), as often as it is asked: the domain's UUID
//! tells which one it is, and a name that another domain has is left to that one.
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use queue::job::{DefineState, Definition};

use crate::error::{Error, ErrorKind, Result};

const TOOL: &str = "virsh";
/// For one call: a libvirt that does not answer holds up nobody for longer.
const LIMIT: Duration = Duration::from_secs(60);
/// How to do what was not done.
const AGAIN: &str = "`hyperctl import --job` (without a daemon, `virsh define`) does it";

/// A domain as libvirt lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    uuid: String,
    name: String,
}

/// Defines the domain that the file describes; what became of it is never an error of the job.
pub fn define(uri: &str, domain_xml: &Path) -> Definition {
    let (state, message, remedy) = match attempt(uri, domain_xml) {
        Ok(None) => (DefineState::Defined, None, None),
        Ok(Some(taken)) => {
            let remedy = format!("rename or undefine that domain, then {AGAIN}");
            (DefineState::NameTaken, Some(taken), Some(remedy))
        }
        Err(error) => {
            let usual = || format!("see that `virsh -c {uri} list` works, then {AGAIN}");
            let remedy = error.remedy.clone().unwrap_or_else(usual);
            (DefineState::Failed, Some(error.to_line()), Some(remedy))
        }
    };
    Definition {
        state,
        uri: uri.to_owned(),
        message,
        remedy,
    }
}

/// Who has the name, if another domain has it.
fn attempt(uri: &str, domain_xml: &Path) -> Result<Option<String>> {
    let text = std::fs::read_to_string(domain_xml)
        .map_err(|error| Error::io("read", domain_xml, error))?;
    let ours = identity(&text).ok_or_else(|| {
        let what = format!("{} has no name and UUID", domain_xml.display());
        Error::invalid(what).with_remedy("define it by hand with virsh")
    })?;
    // Asked for all: virsh would take a name of digits for a number of its own.
    let listed = virsh(uri, &["list", "--all", "--uuid", "--name"])?;
    match conflict(&ours, &parse(&listed)) {
        Some(Conflict::Name(uuid)) => {
            let name = &ours.name;
            return Ok(Some(format!("another domain {name:?} is there ({uuid})")));
        }
        Some(Conflict::Uuid(name)) => {
            let what = format!("this VM is defined already, as {name:?}");
            let remedy = format!("undefine that domain, or keep it; then {AGAIN}");
            return Err(Error::invalid(what).with_remedy(remedy));
        }
        None => {}
    }
    let path = domain_xml.to_string_lossy();
    virsh(uri, &["define", "--file", &path]).map(|_| None)
}

/// The name and UUID in a domain.xml.
fn identity(text: &str) -> Option<Identity> {
    let document = roxmltree::Document::parse(text).ok()?;
    let field = |tag: &str| {
        let mut children = document.root_element().children();
        let element = children.find(|node| node.has_tag_name(tag))?;
        element.text().map(str::to_owned)
    };
    Some(Identity {
        uuid: field("uuid")?,
        name: field("name")?,
    })
}

/// Lines of a UUID, a space and a name, which may hold spaces.
fn parse(listed: &str) -> Vec<Identity> {
    let split = |line: &str| {
        let (uuid, name) = line.trim_start().split_once(' ')?;
        Some(Identity {
            uuid: uuid.to_owned(),
            name: name.to_owned(),
        })
    };
    listed.lines().filter_map(split).collect()
}

#[derive(Debug, PartialEq, Eq)]
enum Conflict {
    /// A domain with this UUID has the name.
    Name(String),
    /// A domain of this name has the UUID.
    Uuid(String),
}

fn conflict(ours: &Identity, listed: &[Identity]) -> Option<Conflict> {
    // virsh may end its lines with a space.
    let same_name = |other: &Identity| other.name.trim_end() == ours.name.trim_end();
    listed
        .iter()
        .find_map(|other| match (same_name(other), other.uuid == ours.uuid) {
            (true, false) => Some(Conflict::Name(other.uuid.clone())),
            (false, true) => Some(Conflict::Uuid(other.name.trim_end().to_owned())),
            _ => None,
        })
}

/// What virsh prints, within the time limit.
fn virsh(uri: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(TOOL);
    command.args(["--quiet", "--connect", uri]).args(arguments);
    command.env("LC_ALL", "C");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let failed = |error| Error::new(ErrorKind::Io, format!("start {TOOL}")).with_source(error);
    let child = command.spawn().map_err(|error| {
        failed(error).with_remedy(format!(
            "install it (Debian: libvirt-clients), then {AGAIN}"
        ))
    })?;
    let id = child.id();
    let (sender, ended) = channel();
    std::thread::Builder::new()
        .name(TOOL.to_owned())
        .spawn(move || {
            // Nobody listens any more after the time limit.
            let _ = sender.send(child.wait_with_output());
        })
        .map_err(failed)?;
    let output = match ended.recv_timeout(LIMIT) {
        Ok(output) => output.map_err(failed)?,
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            if let Ok(id) = i32::try_from(id) {
                // Not waited for yet, so the number is still its own.
                let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
            }
            let seconds = LIMIT.as_secs();
            let what = format!("libvirt at {uri} did not answer within {seconds} s");
            return Err(Error::new(ErrorKind::Timeout, what));
        }
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::new(ErrorKind::Io, complaint(&output.stderr)))
}

/// What virsh says went wrong, in one line.
fn complaint(stderr: &[u8]) -> String {
    let said = String::from_utf8_lossy(stderr);
    let lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines: Vec<&str> = lines
        .map(|line| line.strip_prefix("error: ").unwrap_or(line))
        .collect();
    match lines.is_empty() {
        true => "virsh does not say why it failed".to_owned(),
        false => lines.join(": "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(uuid: &str, name: &str) -> Identity {
        Identity {
            uuid: uuid.to_owned(),
            name: name.to_owned(),
        }
    }

    #[test]
    fn a_name_and_a_uuid_go_together_or_not_at_all() {
        let listed = parse("0a 5\n0b a b  \n\n0c web-01\n");
        assert_eq!(listed[0], of("0a", "5"));
        let ours = of("0c", "web-01");
        assert_eq!(conflict(&ours, &listed), None);
        assert_eq!(conflict(&of("0d", "new"), &listed), None);
        let taken = Some(Conflict::Name("0c".to_owned()));
        assert_eq!(conflict(&of("0d", "web-01"), &listed), taken);
        let renamed = Some(Conflict::Uuid("a b".to_owned()));
        assert_eq!(conflict(&of("0b", "ab"), &listed), renamed);
        assert_eq!(conflict(&of("0b", "a b"), &listed), None);
    }

    #[test]
    fn a_domain_says_who_it_is() {
        let text = "<domain><devices><name>no</name></devices><name>a &amp; b</name>\
                    <uuid>0a</uuid></domain>";
        assert_eq!(identity(text), Some(of("0a", "a & b")));
        assert_eq!(identity("<domain><name>a</name></domain>"), None);
        assert_eq!(identity("nonsense"), None);
    }

    #[test]
    fn complaints_are_one_line() {
        let said = b"error: Failed to define domain from x\nerror: unsupported: no kvm\n\n";
        assert_eq!(
            complaint(said),
            "Failed to define domain from x: unsupported: no kvm"
        );
        assert!(complaint(b"").contains("does not say"));
    }

    #[test]
    fn a_libvirt_that_is_not_there_is_told_with_a_remedy() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("domain.xml");
        std::fs::write(&path, "<domain><name>a</name><uuid>0a</uuid></domain>").unwrap();
        let uri = "qemu+unix:///system?socket=/nowhere/libvirt-sock";
        let told = define(uri, &path);
        assert_eq!(told.state, DefineState::Failed);
        assert_eq!(told.uri, uri);
        let message = told.message.unwrap();
        assert!(message.contains("/nowhere/libvirt-sock"), "{message}");
        assert!(told.remedy.unwrap().contains("hyperctl import"));
    }
}
