//! `hyper2kvm check-config`: parses a configuration as the daemon would and shows what it means.
use std::process::ExitCode;

use converter::convert::wishes;
use converter::error::Result;
use queue::instance::{self, Instance};

use crate::args::CheckConfigArgs;
use crate::output;

pub fn run(args: &CheckConfigArgs) -> ExitCode {
    match check(args) {
        Ok(lines) => {
            lines.iter().for_each(|line| output::line(line));
            ExitCode::SUCCESS
        }
        Err(error) => output::trouble(&error, false, output::WRONG_USAGE),
    }
}

fn check(args: &CheckConfigArgs) -> Result<Vec<String>> {
    let name = args.instance.as_deref().unwrap_or(instance::DEFAULT);
    let (shown, instance) = match &args.file {
        Some(path) => (path.display().to_string(), Instance::read(path)?),
        None => {
            let path = instance::config_path(name);
            let absent = if path.exists() {
                ""
            } else {
                " (absent: the defaults)"
            };
            (format!("{}{absent}", path.display()), Instance::load(name)?)
        }
    };
    let directories = &instance.directories;
    directories.check()?;
    let mut lines = vec![
        format!("{shown}: ok"),
        format!("  instance   {}", instance.name),
        format!("  service    {}", instance.service()),
    ];
    lines.extend(directories.lines("queue"));
    let passed_over = wishes::not_heeded(&instance.config);
    lines.extend(
        passed_over
            .iter()
            .map(|line| format!("  note       {line}")),
    );
    Ok(lines)
}
