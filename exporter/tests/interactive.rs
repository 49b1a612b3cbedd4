//! hyperexport on a terminal without arguments: what it asks, what it comes to, and how it is left.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use nix::sys::termios::{LocalFlags, tcgetattr};

const DOWN: &str = "\x1b[B";
const ENTER: &str = "\r";
const ESC: &str = "\x1b";
const CTRL_C: &str = "\x03";
const LIMIT: Duration = Duration::from_secs(30);

/// hyperexport on a terminal of 100 columns, in a directory with one VM's disk.
struct Dialog {
    place: tempfile::TempDir,
    child: Child,
    terminal: File,
    /// All that it has written, and how much of that was expected already.
    text: String,
    seen: usize,
}

impl Dialog {
    fn start() -> Self {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        for name in ["vms", "vms/web-01", "config"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        std::fs::write(at("vms/web-01/web-01.raw"), vec![7; 1 << 16]).unwrap();
        let size = Winsize {
            ws_row: 40,
            ws_col: 100,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(&size, None).unwrap();
        let slave = || Stdio::from(pty.slave.try_clone().unwrap());
        let child = Command::new(env!("CARGO_BIN_EXE_hyperexport"))
            .env("TERM", "xterm")
            .env("HYPER2KVM_CONFIG_DIR", at("config"))
            .env("XDG_STATE_HOME", at("state"))
            .current_dir(place.path())
            .stdin(slave())
            .stdout(slave())
            .stderr(slave())
            .spawn()
            .unwrap();
        Self {
            place,
            child,
            terminal: File::from(pty.master),
            text: String::new(),
            seen: 0,
        }
    }

    /// Reads what there is, for a moment; false at the end.
    fn read(&mut self) -> bool {
        let mut polled = [PollFd::new(
            std::os::fd::AsFd::as_fd(&self.terminal),
            PollFlags::POLLIN,
        )];
        if poll(&mut polled, PollTimeout::from(50_u8)).unwrap() == 0 {
            return true;
        }
        let mut buffer = [0; 4096];
        match self.terminal.read(&mut buffer) {
            Ok(count @ 1..) => {
                self.text
                    .push_str(&String::from_utf8_lossy(&buffer[..count]));
                true
            }
            _ => false,
        }
    }

    /// Waits until this is written behind what was expected before.
    fn expect(&mut self, text: &str) -> &mut Self {
        let end = Instant::now() + LIMIT;
        loop {
            let behind = &self.text[self.seen..];
            if let Some(at) = behind.find(text) {
                self.seen += at + text.len();
                return self;
            }
            assert!(
                Instant::now() < end,
                "{text:?} does not come: {}",
                self.text
            );
            assert!(self.read(), "{text:?} never came: {}", self.text);
        }
    }

    /// Presses keys once they are awaited: before that the terminal itself makes something of them.
    fn press(&mut self, keys: &str) -> &mut Self {
        let end = Instant::now() + LIMIT;
        let is_raw = |terminal: &File| {
            let settings = tcgetattr(terminal).unwrap();
            !settings.local_flags.contains(LocalFlags::ICANON)
        };
        while !is_raw(&self.terminal) {
            assert!(Instant::now() < end, "no key is awaited: {}", self.text);
            std::thread::yield_now();
        }
        self.terminal.write_all(keys.as_bytes()).unwrap();
        self
    }

    /// Its exit code, and all that it wrote.
    fn end(mut self) -> (Option<i32>, String, tempfile::TempDir) {
        let end = Instant::now() + LIMIT;
        while self.read() {
            if let Some(status) = self.child.try_wait().unwrap() {
                while self.read() && Instant::now() < end {}
                return (status.code(), self.text, self.place);
            }
            assert!(Instant::now() < end, "it does not end: {}", self.text);
        }
        let status = self.child.wait().unwrap();
        (status.code(), self.text, self.place)
    }

    /// To the question of what becomes of the disks.
    fn reach_disks(&mut self) -> &mut Self {
        self.expect("Where does the VM come from?")
            .press(&format!("{DOWN}{ENTER}"))
            .expect("Directory of disks, or a disk file:")
            .press(&format!("vms{ENTER}"))
            .expect("What is to be done with its disks?")
    }

    /// To the last question of an export without a conversion.
    fn reach_start(&mut self) -> &mut Self {
        self.reach_disks()
            .press(&format!("{DOWN}{DOWN}{ENTER}"))
            .expect("Into which directory?")
            .press(&format!("out{ENTER}"))
            .expect("web-01: copy to out/web-01")
            .expect("disk-0 web-01.raw (raw, 65536 bytes)")
            .expect("The same as a command:")
            .expect("hyperexport --provider local --vm vms/web-01 --output out")
            .expect("Start?")
    }
}

/// The cursor is there again, if it was ever hidden.
fn has_cursor(text: &str) -> bool {
    text.rfind("\x1b[?25l") <= text.rfind("\x1b[?25h")
}

fn is_untouched(place: &Path) -> bool {
    let mut names: Vec<String> = std::fs::read_dir(place)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names == ["config", "vms"]
}

#[test]
fn the_answers_become_an_export() {
    let mut dialog = Dialog::start();
    dialog.reach_start().press(ENTER);
    let (code, text, place) = dialog.end();
    assert_eq!(code, Some(0), "{text}");
    assert!(has_cursor(&text), "{text:?}");
    let out = place.path().join("out/web-01");
    assert_eq!(
        std::fs::read(out.join("web-01.raw")).unwrap(),
        vec![7; 1 << 16]
    );
    assert!(out.join("manifest.json").exists());

    // What it said is what does the same.
    let again = Command::new(env!("CARGO_BIN_EXE_hyperexport"))
        .args("--provider local --vm vms/web-01 --output again".split(' '))
        .current_dir(place.path())
        .output()
        .unwrap();
    assert!(again.status.success(), "{again:?}");
    let again = place.path().join("again/web-01/web-01.raw");
    assert_eq!(std::fs::read(again).unwrap(), vec![7; 1 << 16]);
}

#[test]
fn leaving_at_any_question_leaves_nothing() {
    type Step = fn(&mut Dialog) -> &mut Dialog;
    let steps: [Step; 4] = [
        |dialog| dialog.expect("Where does the VM come from?"),
        |dialog| {
            dialog
                .expect("Where does the VM come from?")
                .press(&format!("{DOWN}{ENTER}"))
                .expect("Directory of disks, or a disk file:")
        },
        Dialog::reach_disks,
        Dialog::reach_start,
    ];
    for (number, step) in steps.into_iter().enumerate() {
        for key in [ESC, CTRL_C] {
            let mut dialog = Dialog::start();
            step(&mut dialog);
            dialog.press(key);
            let (code, text, place) = dialog.end();
            assert_eq!(code, Some(1), "{number} {key:?}: {text}");
            assert!(text.contains("left; nothing was done"), "{number}: {text}");
            assert!(has_cursor(&text), "{number} {key:?}: {text:?}");
            assert!(is_untouched(place.path()), "{number} {key:?}");
        }
    }
}

#[test]
fn wrong_answers_are_asked_again() {
    let mut dialog = Dialog::start();
    dialog
        .expect("Where does the VM come from?")
        .press(&format!("{DOWN}{ENTER}"))
        .expect("Directory of disks, or a disk file:")
        .press(ENTER)
        .expect("an answer is needed")
        .press(&format!("nowhere{ENTER}"))
        .expect("list nowhere")
        .expect("Directory of disks, or a disk file:")
        .press(&format!("vms/web-01{ENTER}"))
        .expect("What is to be done with its disks?")
        .press(&format!("{DOWN}{ENTER}"))
        .expect("Define the VM in libvirt")
        .press(ENTER)
        .expect("convert with")
        .expect("hyperexport --provider local --vm vms/web-01 --pipeline")
        .expect("Start?")
        .press(&format!("n{ENTER}"));
    let (code, text, place) = dialog.end();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("left; nothing was done"), "{text}");
    assert!(is_untouched(place.path()));
}

#[test]
fn without_a_terminal_nobody_is_asked() {
    let output = Command::new(env!("CARGO_BIN_EXE_hyperexport"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("--vm"));
}
