//! The commands: each reads through `view`, decides, and shows through `render`.
mod control;
mod convert;
mod daemon;
mod follow;
mod list;
mod logs;
mod stats;
mod status;

use crate::args::Command;
use crate::outcome::{Exit, Result};

/// Runs a command to its exit code.
pub fn run(command: Command) -> Result<Exit> {
    match command {
        Command::Convert(args) => convert::run(&args),
        Command::Daemon(args) => daemon::run(&args),
        Command::List(args) => list::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Logs(args) => logs::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::Wait(args) => status::wait(&args),
        Command::Pause(args) => control::pause(&args),
        Command::Resume(args) => control::resume(&args),
        Command::Drain(args) => control::drain(&args),
        Command::Cancel(args) => control::job::cancel(&args),
        Command::Retry(args) => control::job::retry(&args),
        Command::Priority(args) => control::job::prioritise(&args),
        Command::Import(args) => control::job::import(&args),
    }
}
