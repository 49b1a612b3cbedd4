//! The flags of provider vsphere, and where its password comes from: never the command line.
use std::io::{IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use exporter::error::{Error, ErrorKind, Result};
use exporter::export::Origin;
use exporter::provider::secret::Secret;
use exporter::provider::vsphere::{self, Server};
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use queue::instance::exports::Server as Section;

const CREDENTIAL: &str = "vcenter-password";
const PASSWORDS: [&str; 2] = ["HYPER2KVM_VCENTER_PASSWORD", "VSPHERE_PASSWORD"];
const USERNAMES: [&str; 2] = ["HYPER2KVM_VCENTER_USERNAME", "VSPHERE_USERNAME"];

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Provider vsphere, and https:// sources")]
pub struct VsphereArgs {
    /// The vCenter or ESXi host; implies --provider vsphere
    #[arg(long, value_name = "HOST[:PORT]")]
    pub vcenter: Option<String>,
    /// Its user [default: HYPER2KVM_VCENTER_USERNAME or VSPHERE_USERNAME in the environment]
    #[arg(long, value_name = "USER")]
    pub username: Option<String>,
    /// Holds the password [default: the systemd credential vcenter-password, then
    /// HYPER2KVM_VCENTER_PASSWORD or VSPHERE_PASSWORD in the environment, then the terminal]
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// SHA-256 (or SHA-1) of the server's certificate, which is then trusted
    #[arg(long, value_name = "HEX")]
    pub thumbprint: Option<String>,
    /// Certificate authorities to trust instead of this host's own (PEM)
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// How long the server may send nothing [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub vcenter_timeout: Option<u64>,
    /// Trusts whoever answers: anybody on the way can read the password and change the disks
    #[arg(long)]
    pub insecure: bool,
}

impl VsphereArgs {
    /// The first of the flags that were given; with `is_remote`, of those that vSphere alone has.
    pub fn given(&self, is_remote: bool) -> Option<&'static str> {
        [
            ("--vcenter", self.vcenter.is_some()),
            ("--username", self.username.is_some()),
            ("--password-file", self.password_file.is_some()),
            ("--thumbprint", self.thumbprint.is_some() && !is_remote),
            ("--ca-file", self.ca_file.is_some() && !is_remote),
            ("--vcenter-timeout", self.vcenter_timeout.is_some()),
            ("--insecure", self.insecure && !is_remote),
        ]
        .into_iter()
        .find_map(|(name, given)| given.then_some(name))
    }

    /// The file with the password, if others than its owner may open it.
    pub fn open_password_file(&self) -> Option<&Path> {
        let path = self.password_file.as_deref()?;
        let file = path.metadata().ok()?;
        (file.is_file() && file.mode() & 0o077 != 0).then_some(path)
    }

    pub fn origin(&self) -> Result<Origin> {
        let address = self.vcenter.as_deref().ok_or_else(|| {
            Error::invalid("provider vsphere needs the server").with_remedy("give --vcenter")
        })?;
        let mut origin = Origin::of(address, &self.section(), |server| self.secret(server))?;
        if let (Some(seconds), Origin::Vsphere { server, .. }) = (self.vcenter_timeout, &mut origin)
        {
            server.stall = Duration::from_secs(seconds);
        }
        Ok(origin)
    }

    /// What the service's configuration would say of the server.
    pub fn section(&self) -> Section {
        let set = |name: &&str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let username = self.username.clone();
        Section {
            provider: vsphere::NAME.to_owned(),
            username: username.or_else(|| USERNAMES.iter().find_map(set)),
            thumbprint: self.thumbprint.clone(),
            ca_file: self.ca_file.clone(),
            insecure: self.insecure,
            ..Section::default()
        }
    }

    fn secret(&self, server: &Server) -> Result<Secret> {
        if let Some(path) = &self.password_file {
            return Secret::from_file(path);
        }
        if let Some(secret) = Secret::find(CREDENTIAL, &PASSWORDS)? {
            return Ok(secret);
        }
        if !std::io::stdin().is_terminal() {
            return Err(Error::invalid("no password is given").with_remedy(
                "give --password-file, or set HYPER2KVM_VCENTER_PASSWORD in the environment",
            ));
        }
        ask(&format!(
            "Password of {} on {}: ",
            server.username, server.host
        ))
    }
}

/// Reads a line from the terminal without showing it.
fn ask(question: &str) -> Result<Secret> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::Io, "read the password from the terminal").with_source(error)
    };
    let stdin = std::io::stdin();
    let shown = tcgetattr(&stdin).map_err(|errno| failed(errno.into()))?;
    let mut hidden = shown.clone();
    hidden.local_flags.remove(LocalFlags::ECHO);
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &hidden).map_err(|errno| failed(errno.into()))?;
    eprint!("{question}");
    let _ = std::io::stderr().flush();
    let mut line = String::new();
    let read = stdin.read_line(&mut line);
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &shown).map_err(|errno| failed(errno.into()))?;
    eprintln!();
    read.map_err(failed)?;
    let text = line.trim_end_matches(['\n', '\r']);
    if text.is_empty() {
        return Err(Error::invalid("no password was typed").with_remedy("give --password-file"));
    }
    Ok(Secret::new(text))
}
