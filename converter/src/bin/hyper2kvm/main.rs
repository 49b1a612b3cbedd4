//! `hyper2kvm`: the converter's program. Each command is a file; this one only chooses.
mod args;
mod check_config;
mod convert;
mod daemon;
mod inspect;
mod output;
mod progress;
mod publish;
mod undo;
mod verify;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Daemon(args) => daemon::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::CheckConfig(args) => check_config::run(&args),
        Command::Undo(args) => undo::run(&args),
        Command::Appliance => match converter::guest::appliance::serve() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::from(output::FAILED),
        },
    }
}
