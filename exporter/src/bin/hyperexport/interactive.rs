//! The interactive form: what is answered on a terminal becomes the arguments that could have been
//! typed. Nothing is exported or written here; leaving it at any question leaves nothing.
use std::fmt;
use std::io::IsTerminal;
use std::sync::Arc;

use clap::Parser;
use exporter::error::{Error, ErrorKind, Result};
use exporter::export::Origin;
use exporter::machine::{Provider, Summary};
use exporter::provider::local::Reach;
use indicatif::HumanBytes;
use inquire::validator::Validation;
use inquire::{Confirm, InquireError, Select, Text};
use queue::instance::{DEFAULT, Instance};

use super::args::Args;
use super::show;

/// What the answers come to.
pub struct Answers {
    pub args: Args,
    /// Connected already: a password is asked for once.
    pub provider: Arc<dyn Provider>,
    /// The arguments as they could have been typed.
    line: Vec<String>,
}

/// Why there are no answers.
#[derive(Debug)]
pub enum Stop {
    /// Esc or Ctrl-C.
    Left,
    Failed(Error),
}

type Asked<T> = std::result::Result<T, Stop>;

impl From<InquireError> for Stop {
    fn from(error: InquireError) -> Self {
        match error {
            InquireError::OperationCanceled | InquireError::OperationInterrupted => Self::Left,
            InquireError::IO(error) if error.kind() == std::io::ErrorKind::Interrupted => {
                Self::Left
            }
            error => Self::Failed(
                Error::new(ErrorKind::Io, "ask on the terminal").with_source(error.to_string()),
            ),
        }
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Whether the program was started by somebody who can be asked, without a word of what to do.
pub fn is_wanted() -> bool {
    std::env::args_os().len() <= 1
        && std::io::stdin().is_terminal()
        && std::io::stderr().is_terminal()
}

/// An answer to choose: what is shown, and what it means.
struct Choice<T> {
    text: String,
    value: T,
}

impl<T> fmt::Display for Choice<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn choose<T>(question: &str, choices: Vec<(&str, T)>) -> Asked<T> {
    let choices = choices.into_iter().map(|(text, value)| Choice {
        text: text.to_owned(),
        value,
    });
    let chosen = Select::new(question, choices.collect()).prompt()?;
    Ok(chosen.value)
}

fn text(question: &str, default: Option<&str>) -> Asked<String> {
    let mut asked = Text::new(question).with_validator(|text: &str| {
        let is_empty = text.trim().is_empty();
        Ok(match is_empty {
            true => Validation::Invalid("an answer is needed; Esc leaves".into()),
            false => Validation::Valid,
        })
    });
    asked.default = default;
    Ok(asked.prompt()?.trim().to_owned())
}

/// Asks for everything that an export needs.
pub fn ask() -> Asked<Answers> {
    eprintln!("hyperexport asks for what an export needs. Esc or Ctrl-C leaves with nothing done.");
    let is_vsphere = choose(
        "Where does the VM come from?",
        vec![
            ("vsphere: a vCenter or an ESXi host", true),
            ("local: files of this host, or on a web server", false),
        ],
    )?;
    let (mut line, provider) = match is_vsphere {
        true => vsphere()?,
        false => {
            let provider = Origin::Local(Reach::default()).connect()?;
            (vec!["--provider".into(), "local".into()], provider)
        }
    };
    let vm = match is_vsphere {
        true => vsphere_vm(&*provider)?,
        false => local_vm(&*provider)?,
    };
    line.extend(["--vm".to_owned(), vm]);
    line.extend(what_then(is_vsphere)?);
    let args = parse(&line)?;
    args.check()?;
    Ok(Answers {
        args,
        provider,
        line,
    })
}

impl Answers {
    /// Says how the same is typed, and asks for the last time.
    pub fn confirm(&self) -> Asked<()> {
        eprintln!(
            "The same as a command:\n  hyperexport {}",
            command(&self.line)
        );
        match Confirm::new("Start?").with_default(true).prompt()? {
            true => Ok(()),
            false => Err(Stop::Left),
        }
    }
}

/// The arguments so far, as if they had been typed.
fn parse(line: &[String]) -> Result<Args> {
    let typed = std::iter::once("hyperexport".to_owned()).chain(line.iter().cloned());
    Args::try_parse_from(typed).map_err(|error| {
        Error::invalid("the answers do not go together").with_source(error.to_string())
    })
}

/// The server, until one answers that lets this user in.
fn vsphere() -> Asked<(Vec<String>, Arc<dyn Provider>)> {
    let mut host: Option<String> = None;
    let mut user = std::env::var("VSPHERE_USERNAME").ok();
    loop {
        let typed = text("vCenter or ESXi host:", host.as_deref())?;
        let name = text("User:", user.as_deref())?;
        let mut line = vec![
            "--vcenter".into(),
            typed.clone(),
            "--username".into(),
            name.clone(),
        ];
        let certificate = vec![
            ("signed by an authority that this host trusts", Some(None)),
            ("known by its thumbprint", Some(Some("--thumbprint"))),
            ("not checked: whoever answers is believed", None),
        ];
        match choose("Its certificate is:", certificate)? {
            Some(None) => {}
            Some(Some(flag)) => {
                line.extend([
                    flag.to_owned(),
                    text("Thumbprint (SHA-256 or SHA-1):", None)?,
                ]);
            }
            None => line.push("--insecure".to_owned()),
        }
        match connect(&line) {
            Ok(provider) => return Ok((line, provider)),
            Err(error) => eprint!("{}", show::error_text(&error)),
        }
        (host, user) = (Some(typed), Some(name));
    }
}

fn connect(line: &[String]) -> Result<Arc<dyn Provider>> {
    let listing = [line, &["--list".to_owned()]].concat();
    let args = parse(&listing)?;
    args.check()?;
    // Asks for the password, unless a file or the environment has it.
    args.origin()?.connect()
}

fn vsphere_vm(provider: &dyn Provider) -> Asked<String> {
    let found = provider.discover("")?;
    if found.is_empty() {
        return Err(Error::invalid("this user sees no VM on this server")
            .with_remedy("give the user a role that may read the inventory")
            .into());
    }
    pick(&found)
}

fn local_vm(provider: &dyn Provider) -> Asked<String> {
    loop {
        let path = text("Path of the VM or of a datastore, or an address:", None)?;
        match provider.discover(&path) {
            Ok(found) => match found.as_slice() {
                [] => eprintln!("{path} holds no VM"),
                [only] => return Ok(only.id.clone()),
                _ => return pick(&found),
            },
            Err(error) => eprint!("{}", show::error_text(&error)),
        }
    }
}

/// One of several VMs, in the words that `--vm` takes.
fn pick(found: &[Summary]) -> Asked<String> {
    let choices = found.iter().map(|vm| Choice {
        text: row(vm),
        value: vm,
    });
    let question = Select::new("Which VM? (type to filter)", choices.collect());
    let chosen = question.with_page_size(12).prompt()?.value;
    Ok(typed_as(chosen, found))
}

/// Names come from the server: what would steer the terminal is taken out.
fn row(vm: &Summary) -> String {
    let mut text = format!("{:<24} {}", vm.name, vm.power.as_str());
    if let (Some(cpus), Some(memory)) = (vm.cpus, vm.memory_bytes) {
        text.push_str(&format!("  {cpus} CPUs  {}", HumanBytes(memory)));
    }
    if let Some(location) = &vm.location {
        text.push_str(&format!("  {location}"));
    }
    let steers = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}');
    text.replace(steers, "?")
}

/// The VM's name where it means no other VM and no pattern, else its id.
fn typed_as(vm: &Summary, all: &[Summary]) -> String {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | ' ');
    let is_alone = all.iter().filter(|other| other.name == vm.name).count() == 1;
    let is_path = vm.id.contains('/');
    match is_alone && !is_path && vm.name.chars().all(plain) {
        true => vm.name.clone(),
        false => vm.id.clone(),
    }
}

enum Then {
    Daemon,
    Direct,
    Export,
}

/// What becomes of the disks.
fn what_then(is_vsphere: bool) -> Asked<Vec<String>> {
    let then = choose(
        "What is to be done with its disks?",
        vec![
            ("convert, through the daemon of an instance", Then::Daemon),
            ("convert, here and now", Then::Direct),
            ("export, no conversion", Then::Export),
        ],
    )?;
    let mut line: Vec<String> = Vec::new();
    match then {
        Then::Export => {
            line.extend(["--output".to_owned(), text("Into which directory?", None)?]);
            let formats = vec![("vmdk: one file for each disk", None), ("ova", Some("ova"))];
            if is_vsphere && let Some(format) = choose("Form of the disks?", formats)? {
                line.extend(["--format".to_owned(), format.to_owned()]);
            }
            return Ok(line);
        }
        Then::Daemon => line.push("--hyper2kvm-daemon".to_owned()),
        Then::Direct => line.push("--pipeline".to_owned()),
    }
    let mut instances = Instance::discover()?;
    if !instances.iter().any(|name| name == DEFAULT) {
        instances.insert(0, DEFAULT.to_owned());
    }
    if instances.len() > 1 {
        let instance = Select::new("Which instance?", instances).prompt()?;
        if instance != DEFAULT {
            line.extend(["--hyper2kvm-instance".to_owned(), instance]);
        }
    }
    let defines = Confirm::new("Define the VM in libvirt when it is converted?");
    if defines.with_default(false).prompt()? {
        line.push("--libvirt".to_owned());
    }
    Ok(line)
}

/// The arguments as a shell takes them.
fn command(line: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    let quoted = line
        .iter()
        .map(|word| match word.chars().all(plain) && !word.is_empty() {
            true => word.clone(),
            false => format!("'{}'", word.replace('\'', r"'\''")),
        });
    let words: Vec<String> = quoted.collect();
    words.join(" ").replace(char::is_control, "?")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(name: &str, id: &str) -> Summary {
        Summary {
            name: name.to_owned(),
            id: id.to_owned(),
            ..Summary::default()
        }
    }

    #[test]
    fn a_vm_is_typed_so_that_no_other_is_meant() {
        let all = [
            vm("web 01", "vm-1"),
            vm("twin", "vm-2"),
            vm("twin", "vm-3"),
            vm("a*", "vm-4"),
            vm("disks", "/srv/disks"),
        ];
        let typed = all.iter().map(|one| typed_as(one, &all));
        let typed: Vec<String> = typed.collect();
        assert_eq!(typed, ["web 01", "vm-2", "vm-3", "vm-4", "/srv/disks"]);
        assert!(!row(&vm("a\u{1b}[2J\u{202e}b", "x")).contains(['\u{1b}', '\u{202e}']));
    }

    #[test]
    fn the_command_is_one_for_a_shell() {
        let line = ["--vm", "web 01's", "--output", "/srv/out", ""].map(str::to_owned);
        assert_eq!(command(&line), r"--vm 'web 01'\''s' --output /srv/out ''");
    }
}
