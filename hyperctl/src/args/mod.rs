//! The command line: what may be typed, as types. Nothing here touches a file.
mod normalise;

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Parser, Subcommand, ValueEnum};
use queue::instance::DEFAULT;
use queue::job::{JobId, Priority};

pub use normalise::normalise;

const DAEMON: &str = "Which daemon";
const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  the work failed, or the daemon refused the request
  2  wrong usage or configuration
  3  timed out
  4  the daemon is not there
130  Ctrl-C ended the following; the work goes on";

/// Shows and steers the hyper2kvm daemons and hypervisord, the export service.
///
/// Everything is read from files that the daemons write; requests are files that they pick up.
#[derive(Debug, Parser)]
#[command(name = "hyperctl", version, after_help = EXIT_CODES)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Convert(Convert),
    Daemon(Daemon),
    List(List),
    Status(Status),
    Logs(Logs),
    Stats(Stats),
    Wait(Wait),
    /// Start no more jobs; the running ones go on.
    Pause(Control),
    /// Take up work again after `pause` or `drain`.
    Resume(Control),
    /// Finish what is claimed, claim nothing more, and return when the daemon is idle.
    ///
    /// The daemon stays idle until `hyperctl resume`; without --timeout it takes what it takes.
    Drain(Drain),
    Cancel(Cancel),
    Retry(Retry),
    Priority(Prioritise),
    Import(Import),
}

/// Which daemon's files are meant.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Place {
    /// The instance, or hypervisord [default: all of them when reading, `default` when steering].
    #[arg(long, value_name = "NAME", help_heading = DAEMON)]
    pub instance: Option<String>,
    /// The daemon's queue directory, where it is not the instance's.
    #[arg(long, value_name = "DIR", requires = "output_dir", help_heading = DAEMON)]
    pub watch_dir: Option<PathBuf>,
    /// The daemon's output directory, where it is not the instance's.
    #[arg(long, value_name = "DIR", requires = "watch_dir", help_heading = DAEMON)]
    pub output_dir: Option<PathBuf>,
}

/// Export a VM and convert it, from a vCenter, an ESXi host or disks of this host to a qcow2.
///
/// Drops a request for hypervisord, the export service, which puts the VM into the instance's
/// queue, and follows it: exporting, queued, converting, repaired, done. Ctrl-C ends the
/// following, not the work. Passwords belong to the service: none is asked for or written here.
#[derive(Debug, clap::Args)]
pub struct Convert {
    /// The VM, in the provider's words: a name, an inventory path, a UUID, an id; with provider
    /// local the path of its disks.
    #[arg(long, value_name = "NAME")]
    pub vm: String,
    /// The vCenter or ESXi host: a section [server."HOST"] of hypervisord.toml.
    #[arg(long, visible_alias = "server", value_name = "HOST")]
    #[arg(required_unless_present = "provider")]
    pub vcenter: Option<String>,
    /// Where the VM comes from [default: as the server's section says].
    #[arg(long, value_name = "P", value_parser = ["vsphere", "local"])]
    pub provider: Option<String>,
    /// What the VM is called from here on [default: as the provider calls it].
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// The instance that converts it.
    #[arg(long, value_name = "NAME", default_value = DEFAULT)]
    pub instance: String,
    /// Of the export and of the conversion.
    #[arg(long, value_name = "LEVEL", default_value = "normal")]
    pub priority: Level,
    /// Drop the request and return.
    #[arg(long, visible_alias = "no-follow")]
    pub detach: bool,
    /// Stop following after this time: 90, 90s, 5m; the work goes on [default: no limit].
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with = "detach")]
    pub timeout: Option<Duration>,
    #[arg(long, help = "Print JSON, one line per change")]
    pub json: bool,
}

/// Which job is meant: the newest of a VM, or one by its id.
#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Which {
    /// The VM's name; its newest job is meant.
    #[arg(long, value_name = "NAME")]
    pub vm: Option<String>,
    /// The job's id, as `hyperctl list` shows it.
    #[arg(long, value_name = "ID")]
    pub job: Option<JobId>,
}

/// Which jobs are meant: of VMs or by ids, several of either.
#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = true)]
pub struct Several {
    /// A VM's name; its newest job is meant. May be given again.
    #[arg(long, value_name = "NAME")]
    pub vm: Vec<String>,
    /// A job's id, as `hyperctl list` shows it. May be given again.
    #[arg(long, value_name = "ID")]
    pub job: Vec<JobId>,
}

impl From<&Which> for Several {
    fn from(which: &Which) -> Self {
        Self {
            vm: which.vm.iter().cloned().collect(),
            job: which.job.iter().copied().collect(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Operation {
    /// One block per daemon.
    Status,
    /// One line per daemon.
    List,
}

/// Show the daemons: service, PID, uptime, directories, queue depth, running jobs.
///
/// `hyperctl daemon -op status` and `hyperctl daemon --op status` mean the same as
/// `hyperctl daemon status`. The exit code of `status` is 4 when a daemon that is shown does not
/// respond, or none runs, and 2 when a configuration that is told cannot be read.
#[derive(Debug, clap::Args)]
#[command(group(ArgGroup::new("what").required(true).args(["operation", "op"])))]
pub struct Daemon {
    pub operation: Option<Operation>,
    /// The same as the plain word.
    #[arg(long, value_name = "OPERATION", hide_possible_values = true)]
    pub op: Option<Operation>,
    #[command(flatten)]
    pub place: Place,
    #[arg(long, help = "Print JSON")]
    pub json: bool,
}

/// What `list --status` selects by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Filter {
    /// Dropped, not yet claimed.
    New,
    Queued,
    Processing,
    Completed,
    Failed,
    Cancelled,
}

impl Filter {
    /// The word that stands in the STATE column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Queued => "queued",
            Self::Processing => "processing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// List the jobs: the running ones, the queue in its order, then the finished, newest first.
#[derive(Debug, clap::Args)]
pub struct List {
    /// Only jobs in these states.
    #[arg(long, value_name = "STATE", value_delimiter = ',')]
    pub status: Vec<Filter>,
    #[command(flatten)]
    pub place: Place,
    #[arg(long, help = "Print a JSON array")]
    pub json: bool,
}

/// Show a job in full; with --follow, until it ends.
///
/// With --follow the exit code is 0 when every job was completed, 1 when one failed or was
/// cancelled.
#[derive(Debug, clap::Args)]
pub struct Status {
    #[command(flatten)]
    pub which: Several,
    /// Go on showing progress until the job ends.
    #[arg(long, short)]
    pub follow: bool,
    /// Stop following after this time: 90, 90s, 5m [default: no limit].
    #[arg(long, value_name = "TIME", value_parser = time, requires = "follow")]
    pub timeout: Option<Duration>,
    #[command(flatten)]
    pub place: Place,
    #[arg(long, help = "Print JSON; with --follow one line per change")]
    pub json: bool,
}

/// Print the last lines of a job's log.
///
/// The record holds the newest lines; all of them are in the journal: `journalctl JOB_ID=ID`.
#[derive(Debug, clap::Args)]
pub struct Logs {
    #[command(flatten)]
    pub which: Which,
    /// Print new lines as they come, until the job ends.
    #[arg(long, short)]
    pub follow: bool,
    /// Only the last N lines.
    #[arg(long, short = 'n', value_name = "N")]
    pub tail: Option<usize>,
    #[command(flatten)]
    pub place: Place,
    #[arg(long, help = "Print JSON; with --follow one line per log line")]
    pub json: bool,
}

/// Sum up what each instance has done: jobs by outcome, bytes, time, reasons of failure.
#[derive(Debug, clap::Args)]
pub struct Stats {
    #[command(flatten)]
    pub place: Place,
    #[arg(long, help = "Print a JSON array, one object per instance")]
    pub json: bool,
}

/// Wait until jobs have ended, saying nothing before.
///
/// A VM that has no job yet is waited for as well. The exit code is 0 when every job was
/// completed, 1 when one failed or was cancelled.
#[derive(Debug, clap::Args)]
pub struct Wait {
    #[command(flatten)]
    pub which: Several,
    /// Give up after this time: 90, 90s, 5m [default: no limit].
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub timeout: Option<Duration>,
    #[command(flatten)]
    pub place: Place,
    #[arg(long, help = "Print the finished records as JSON")]
    pub json: bool,
}

/// A request to the daemon as a whole.
#[derive(Debug, clap::Args)]
pub struct Control {
    #[command(flatten)]
    pub place: Place,
    #[command(flatten)]
    pub patience: Patience,
}

#[derive(Debug, clap::Args)]
pub struct Drain {
    #[command(flatten)]
    pub place: Place,
    /// Give up waiting after this time: 90, 90s, 5m [default: no limit].
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub timeout: Option<Duration>,
    #[arg(long, help = "Print the effect as JSON")]
    pub json: bool,
}

/// How long the effect of a request is waited for, and how it is told.
#[derive(Debug, clap::Args)]
pub struct Patience {
    /// Give up waiting for the effect after this time: 90, 90s, 5m.
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "30s")]
    pub timeout: Duration,
    #[arg(long, help = "Print the effect as JSON")]
    pub json: bool,
}

/// Cancel a job that has not ended.
#[derive(Debug, clap::Args)]
pub struct Cancel {
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub place: Place,
    #[command(flatten)]
    pub patience: Patience,
}

/// Try a failed job again, or all failed jobs of an instance.
#[derive(Debug, clap::Args)]
#[command(group(ArgGroup::new("jobs").required(true).args(["vm", "job", "all_failed"])))]
pub struct Retry {
    /// The VM's name; its newest job is meant.
    #[arg(long, value_name = "NAME")]
    pub vm: Option<String>,
    /// The job's id, as `hyperctl list` shows it.
    #[arg(long, value_name = "ID")]
    pub job: Option<JobId>,
    /// Every failed job of the instance.
    #[arg(long)]
    pub all_failed: bool,
    #[command(flatten)]
    pub place: Place,
    #[command(flatten)]
    pub patience: Patience,
}

/// The levels of urgency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Level {
    High,
    Normal,
    Low,
}

impl From<Level> for Priority {
    fn from(level: Level) -> Self {
        match level {
            Level::High => Self::High,
            Level::Normal => Self::Normal,
            Level::Low => Self::Low,
        }
    }
}

/// Change how urgent a job is.
#[derive(Debug, clap::Args)]
#[command(name = "priority")]
pub struct Prioritise {
    pub level: Level,
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub place: Place,
    #[command(flatten)]
    pub patience: Patience,
}

/// Define a published VM in libvirt, at the URI of its instance's configuration.
///
/// The daemon does it, as it does by itself with libvirt.define = true. Doing it again changes
/// nothing. A name that another domain has is left to that domain: exit code 1.
#[derive(Debug, clap::Args)]
pub struct Import {
    #[command(flatten)]
    pub which: Which,
    #[command(flatten)]
    pub place: Place,
    #[command(flatten)]
    pub patience: Patience,
}

/// `90` is seconds; `90s`, `5m`, `1h 30m` are what they say.
fn time(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn times_are_seconds_or_say_their_unit() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("5m", 300), ("1h 30m", 5400)] {
            assert_eq!(time(text), Ok(Duration::from_secs(seconds)));
        }
        assert!(time("soon").is_err() && time("-1").is_err());
    }

    #[test]
    fn what_is_refused_and_what_is_not() {
        for (typed, accepted) in [
            ("daemon status", true),
            ("daemon --op status", true),
            ("daemon --op status --instance a", true),
            ("daemon", false),
            ("daemon status --op list", false),
            ("daemon restart", false),
            ("list --status failed,cancelled", true),
            ("list --status lost", false),
            ("list --watch-dir /q", false),
            ("list --watch-dir /q --output-dir /o", true),
            ("convert --vm a --vcenter h", true),
            ("convert --vm a --server h --no-follow", true),
            ("convert --vm /srv/a --provider local --priority high", true),
            ("convert --vm a", false),
            ("convert --vcenter h", false),
            ("convert --vm a --provider nowhere", false),
            ("convert --vm a --vcenter h --password p", false),
            ("convert --vm a --vcenter h --detach --timeout 5", false),
            ("status", false),
            ("status --vm a --vm b", true),
            ("status --job nonsense", false),
            ("status --vm a --timeout 5", false),
            ("logs --vm a --tail 5 --follow", true),
            ("logs --vm a --job job-01ARZ3NDEKTSV4RRFFQ69G5FAV", false),
            ("wait --vm a --timeout 5m", true),
            ("pause --timeout 5", true),
            ("cancel", false),
            ("retry --all-failed", true),
            ("retry", false),
            ("retry --vm a --all-failed", false),
            ("priority high --vm a", true),
            ("priority urgent --vm a", false),
            ("import --vm a", true),
            ("import", false),
        ] {
            let argv = std::iter::once("hyperctl").chain(typed.split_whitespace());
            let parsed = Args::try_parse_from(argv);
            assert_eq!(parsed.is_ok(), accepted, "{typed}: {parsed:?}");
        }
    }
}
