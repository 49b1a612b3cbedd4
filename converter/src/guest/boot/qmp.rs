//! A running QEMU, driven over its machine protocol (QMP) on standard input and output.
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::super::accel::Accel;
use super::super::overlay::Overlays;
use super::emulator;
use super::machine::{self, Machine};
use crate::error::{Error, Result};

/// QEMU answers at once, unless it is stuck.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// The text screen of a VGA card: 80 by 25 characters, each with an attribute.
const TEXT_ADDRESS: u64 = 0xb8000;
const TEXT_BYTES: u64 = 80 * 25 * 2;
const COLUMNS: usize = 80;
/// A line of QMP that is longer is none.
const MAX_LINE_BYTES: usize = 1 << 20;

pub(super) struct Emulator {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    scratch: std::path::PathBuf,
}

impl Emulator {
    pub fn start(machine: &Machine, overlays: &Overlays, accel: Accel, log: &Path) -> Result<Self> {
        // What an earlier attempt wrote is not this one's evidence.
        std::fs::write(log, "").map_err(|error| Error::io("write", log, error))?;
        let scratch = overlays.directory().to_path_buf();
        let variables = scratch.join("variables.fd");
        let mut command = machine::command(machine, overlays.files(), accel, log, &variables)?;
        let stderr = scratch.join("qemu.log");
        let stderr = std::fs::File::create(&stderr).map_err(|e| Error::io("create", &stderr, e))?;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr);
        // SAFETY: prctl(2) is async-signal-safe and touches only the new process.
        unsafe {
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        let failed = |error| emulator("start QEMU").with_source(error);
        let mut child = command.spawn().map_err(failed)?;
        let input = child.stdin.take();
        let output = child.stdout.take();
        let (sender, lines) = channel();
        let read = move || {
            let Some(output) = output else { return };
            for line in BufReader::new(output).lines() {
                let Ok(line) = line else { return };
                if line.len() > MAX_LINE_BYTES || sender.send(line).is_err() {
                    return;
                }
            }
        };
        let mut emulator = Self {
            child,
            input,
            lines,
            scratch,
        };
        std::thread::Builder::new()
            .name("qmp".to_owned())
            .spawn(read)
            .map_err(failed)?;
        emulator.execute(&json!({"execute": "qmp_capabilities"}))?;
        Ok(emulator)
    }

    fn execute(&mut self, command: &Value) -> Result<()> {
        let sent = match &mut self.input {
            Some(input) => writeln!(input, "{command}").and_then(|()| input.flush()),
            None => Ok(()),
        };
        sent.map_err(|error| self.gone().with_source(error))?;
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                return Err(self.gone());
            };
            let answer: Value = serde_json::from_str(&line).unwrap_or_default();
            if answer.get("return").is_some() {
                return Ok(());
            }
            if let Some(error) = answer.get("error") {
                return Err(emulator(format!("QEMU refused {command}: {error}")));
            }
        }
    }

    /// An error with what QEMU last said.
    fn gone(&self) -> Error {
        let said = std::fs::read(self.scratch.join("qemu.log")).unwrap_or_default();
        let said = String::from_utf8_lossy(&said).into_owned();
        let last = said
            .lines()
            .last()
            .unwrap_or("it does not say why")
            .to_owned();
        emulator(format!("QEMU does not answer: {last}"))
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    pub fn screenshot(&mut self, path: &Path) -> Result<()> {
        self.execute(&json!({"execute": "screendump",
            "arguments": {"filename": path, "format": "png"}}))
    }

    /// What stands on the screen, as far as it is in text mode.
    pub fn text_screen(&mut self) -> Result<String> {
        let path = self.scratch.join("screen");
        self.execute(&json!({"execute": "pmemsave",
            "arguments": {"val": TEXT_ADDRESS, "size": TEXT_BYTES, "filename": path}}))?;
        let bytes = std::fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
        let mut text = String::from("\n");
        for (index, cell) in bytes.as_chunks::<2>().0.iter().enumerate() {
            let [character, _attribute] = *cell;
            let shown = character.is_ascii_graphic();
            text.push(if shown { char::from(character) } else { ' ' });
            if index % COLUMNS == COLUMNS - 1 {
                text.push('\n');
            }
        }
        Ok(text)
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // One that ended by itself cannot be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
