//! hyperctl: shows and steers the hyper2kvm daemons through their files.
//!
//! It reads records and heartbeats and drops request files; it never moves a job. Whatever it
//! prints of a file is data: control characters are taken out first.
mod args;
mod command;
mod outcome;
mod render;
mod view;
mod watch;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = args::Args::parse_from(args::normalise(std::env::args_os()));
    match command::run(args.command) {
        Ok(exit) => exit.into(),
        Err(stop) => {
            render::complain(&stop);
            stop.exit.into()
        }
    }
}
