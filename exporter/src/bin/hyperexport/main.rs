//! `hyperexport`: one export now, then its conversion. Exit codes: 0, 1, 2, 3 (commands.md).
mod args;
mod interactive;
mod show;
mod vsphere;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use args::{Args, Format, Target};
use clap::Parser;
use exporter::error::{Error, ErrorKind, Result};
use exporter::export::Export;
use exporter::machine::{Ledger, Provider};
use exporter::transfer::Monitor;
use exporter::worker::follow::Ending;
use exporter::worker::ledger::FileLedger;
use exporter::worker::{Outcome, Task, end_streams};
use indicatif::MultiProgress;
use nix::sys::signal::{SigSet, Signal};
use queue::instance::Instance;

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const TIMED_OUT: u8 = 3;

fn main() -> ExitCode {
    let is_asked = interactive::is_wanted();
    let typed = (!is_asked).then(Args::parse);
    let cancelled = Arc::new(AtomicBool::new(false));
    if let Err(error) = listen_for_interrupts(&cancelled) {
        eprint!("{}", show::error_text(&error));
        return ExitCode::from(FAILED);
    }
    let code = match typed {
        Some(args) => run(args, cancelled),
        None => interactively(cancelled),
    };
    ExitCode::from(code)
}

fn run(args: Args, cancelled: Arc<AtomicBool>) -> u8 {
    let origin = match args.check().and_then(|()| args.origin()) {
        Ok(origin) => origin,
        Err(error) => {
            eprint!("{}", show::error_text(&error));
            return USAGE;
        }
    };
    if args.vsphere.insecure {
        eprintln!("warning: --insecure: whoever answers for the server is believed");
    }
    if let Some(path) = args.vsphere.open_password_file().filter(|_| !args.quiet) {
        let path = path.display();
        eprintln!("warning: {path} is open to others than its owner; run: chmod 600 {path}");
    }
    let (program, targets) = match origin.connect() {
        Ok(provider) => match prepare(args, provider, cancelled) {
            Ok(prepared) => prepared,
            Err(code) => return code,
        },
        Err(error) => {
            eprint!("{}", show::error_text(&error));
            return FAILED;
        }
    };
    program.clean_up();
    match &program.args.list {
        Some(pattern) => program.list(pattern),
        None => program.run(&targets),
    }
}

/// Asks for the arguments, shows what they come to, and does it.
fn interactively(cancelled: Arc<AtomicBool>) -> u8 {
    let answered = interactive::ask().and_then(|answers| {
        let (args, provider) = (answers.args.clone(), Arc::clone(&answers.provider));
        let (mut program, targets) = match prepare(args, provider, Arc::clone(&cancelled)) {
            Ok(prepared) => prepared,
            Err(code) => return Ok(code),
        };
        program.clean_up();
        program.args.dry_run = true;
        let code = program.run(&targets);
        if code != 0 {
            return Ok(code);
        }
        answers.confirm()?;
        if cancelled.load(Ordering::Relaxed) {
            return Err(interactive::Stop::Left);
        }
        program.args.dry_run = false;
        Ok(program.run(&targets))
    });
    match answered {
        Ok(code) => code,
        Err(interactive::Stop::Left) => {
            eprintln!("left; nothing was done");
            FAILED
        }
        Err(interactive::Stop::Failed(error)) => {
            eprint!("{}", show::error_text(&error));
            FAILED
        }
    }
}

/// What the arguments come to; an exit code if they come to nothing.
fn prepare(
    args: Args,
    provider: Arc<dyn Provider>,
    cancelled: Arc<AtomicBool>,
) -> std::result::Result<(Program, Vec<Target>), u8> {
    let prepared = args
        .instance()
        .and_then(|instance| Ok((instance, args.targets()?)));
    let (instance, targets) = prepared.map_err(|error| {
        eprint!("{}", show::error_text(&error));
        USAGE
    })?;
    let program = Program {
        args,
        provider,
        instance,
        cancelled,
        bars: MultiProgress::new(),
        standard_output: Mutex::new(()),
    };
    Ok((program, targets))
}

/// The first SIGINT or SIGTERM ends the work tidily, the second at once.
fn listen_for_interrupts(cancelled: &Arc<AtomicBool>) -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    let failed = |errno: nix::errno::Errno| {
        Error::new(ErrorKind::Internal, "listen for signals").with_source(errno)
    };
    signals.thread_block().map_err(failed)?;
    let cancelled = Arc::clone(cancelled);
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            if cancelled.swap(true, Ordering::Relaxed) {
                std::process::exit(FAILED.into());
            }
        }
    });
    Ok(())
}

/// Where runs note what they owe to servers: of the service, or of this user.
fn debts_directory() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let state = set("STATE_DIRECTORY").or_else(|| set("XDG_STATE_HOME"));
    let state = state.map(PathBuf::from).or_else(|| {
        let home = PathBuf::from(set("HOME")?);
        Some(home.join(".local/state"))
    });
    let state = state.unwrap_or_else(|| PathBuf::from("/var/tmp"));
    state.join("hyperexport/debts")
}

struct Program {
    args: Args,
    provider: Arc<dyn Provider>,
    instance: Instance,
    cancelled: Arc<AtomicBool>,
    bars: MultiProgress,
    standard_output: Mutex<()>,
}

impl Program {
    /// Removes what runs that died left on the server, and ends the conversions that wait for them.
    /// A failure is told and stops nothing.
    fn clean_up(&self) {
        let cleaned = FileLedger::abandoned(&debts_directory()).and_then(|ledgers| {
            ledgers.iter().try_for_each(|ledger| {
                let ended = end_streams(ledger, "hyperexport died");
                let cleaned = self.provider.clean_up(&ledger.debts(), ledger);
                ended.and(cleaned)
            })
        });
        if let Err(error) = cleaned {
            self.say_error(&format!("warning: {}", show::error_text(&error)));
        }
    }

    fn list(&self, pattern: &str) -> u8 {
        match self.provider.discover(pattern) {
            Ok(found) => {
                self.print(&show::list(&found, self.args.json));
                0
            }
            Err(error) => {
                self.say_error(&show::error_text(&error));
                FAILED
            }
        }
    }

    /// Exports all targets, some at a time; the exit code is that of the worst.
    fn run(&self, targets: &[Target]) -> u8 {
        let next = AtomicUsize::new(0);
        let worst = AtomicU8::new(0);
        let work = || {
            while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
                let code = self.run_one(target);
                // Failed outweighs timed out.
                let rank = |code: u8| if code == FAILED { u8::MAX } else { code };
                let _ = worst.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |worst| {
                    (rank(code) > rank(worst)).then_some(code)
                });
            }
        };
        let threads = usize::try_from(self.args.parallel)
            .unwrap_or(1)
            .min(targets.len());
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(work);
            }
        });
        worst.into_inner()
    }

    fn run_one(&self, target: &Target) -> u8 {
        match self.export(target) {
            Ok(code) => code,
            Err(error) => {
                let name = target.name.as_deref().unwrap_or(&target.vm);
                self.say_failure(name, &show::error_text(&error));
                if self.args.json {
                    self.print(&format!("{}\n", show::failure(name, &error)));
                }
                FAILED
            }
        }
    }

    fn export(&self, target: &Target) -> Result<u8> {
        let ledger = Arc::new(FileLedger::new(&debts_directory()));
        let mut export = Export::describe(
            Arc::clone(&self.provider),
            &target.vm,
            target.name.as_deref(),
            Arc::clone(&ledger) as Arc<dyn Ledger>,
        )?;
        export.as_ova = self.args.format == Some(Format::Ova);
        let task = Task {
            export,
            instance: self.instance.clone(),
            route: self.args.route(),
            ledger,
            define: self.args.libvirt,
            quiet: self.args.quiet || self.args.json || self.args.batch.is_some(),
        };
        if self.args.dry_run {
            self.print(&show::plan(&task, self.args.json));
            return Ok(0);
        }
        let quiet = self.args.quiet;
        let name = task.export.name.as_str();
        let bar = show::Bar::new(&self.bars, name, quiet, Arc::clone(&self.cancelled));
        if self.args.hyper2kvm_daemon && self.args.output.is_some() {
            bar.warn("--output is not used: the disks go into the queue, the result comes from it");
        }
        let started = Instant::now();
        let ended = task.run(&bar);
        drop(bar);
        let outcome = ended?;
        Ok(self.report(&task, &outcome, started.elapsed().as_secs_f64()))
    }

    fn report(&self, task: &Task, outcome: &Outcome, seconds: f64) -> u8 {
        if self.args.json {
            self.print(&format!("{}\n", show::outcome(task, outcome, seconds)));
        }
        match &outcome.ending {
            Ending::Completed { outputs } => {
                if !self.args.json && !self.args.quiet {
                    let paths: Vec<String> = outputs
                        .iter()
                        .map(|path| path.display().to_string())
                        .collect();
                    self.print(&format!("{}: {}\n", task.export.name, paths.join(" ")));
                }
                0
            }
            Ending::Failed(text) => {
                self.say_failure(task.export.name.as_str(), text);
                FAILED
            }
            Ending::TimedOut => {
                let minutes = self.args.hyper2kvm_daemon_timeout;
                self.say_error(&format!(
                    "{} did not end within {minutes} minutes; its job goes on\n{}\n",
                    task.export.name,
                    how_to_follow(outcome)
                ));
                TIMED_OUT
            }
            Ending::Interrupted => {
                self.say_error(&format!(
                    "interrupted while {} was being converted\n{}\n",
                    task.export.name,
                    how_to_follow(outcome)
                ));
                FAILED
            }
        }
    }

    /// One of several says which it is.
    fn say_failure(&self, name: &str, text: &str) {
        match self.args.batch {
            Some(_) => self.say_error(&format!("{name}: {text}")),
            None => self.say_error(text),
        }
    }

    fn say_error(&self, text: &str) {
        self.bars.suspend(|| eprint!("{text}"));
    }

    /// One whole answer at a time, whoever else is printing.
    fn print(&self, text: &str) {
        let _turn = self.standard_output.lock();
        self.bars.suspend(|| print!("{text}"));
    }
}

fn how_to_follow(outcome: &Outcome) -> String {
    match outcome.job {
        Some(job) => format!("follow it with hyperctl status --job {job} --follow"),
        None => "see hyperctl list for what became of it".to_owned(),
    }
}
