//! A program on a terminal of its own, and somebody who reads and answers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a panic is how a test fails
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use nix::sys::termios::{LocalFlags, tcgetattr};

pub const DOWN: &str = "\x1b[B";
pub const ENTER: &str = "\r";
pub const ESC: &str = "\x1b";
pub const CTRL_C: &str = "\x03";
const LIMIT: Duration = Duration::from_secs(60);

/// On a terminal of 100 columns; killed with this value.
pub struct Dialog {
    pub child: Child,
    terminal: File,
    /// All that it has written, and how much of that was expected already.
    text: String,
    seen: usize,
}

impl Dialog {
    pub fn start(mut command: Command) -> Self {
        let size = Winsize {
            ws_row: 40,
            ws_col: 100,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(&size, None).unwrap();
        let slave = || Stdio::from(pty.slave.try_clone().unwrap());
        command.env("TERM", "xterm");
        command.stdin(slave()).stdout(slave()).stderr(slave());
        Self {
            child: command.spawn().unwrap(),
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
    pub fn expect(&mut self, text: &str) -> &mut Self {
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
    pub fn press(&mut self, keys: &str) -> &mut Self {
        self.write(keys, LocalFlags::ICANON)
    }

    /// Types a line once the terminal does not show what is typed.
    pub fn type_hidden(&mut self, line: &str) -> &mut Self {
        self.write(&format!("{line}\n"), LocalFlags::ECHO)
    }

    /// Writes when the terminal is without this flag.
    fn write(&mut self, keys: &str, flag: LocalFlags) -> &mut Self {
        let end = Instant::now() + LIMIT;
        while tcgetattr(&self.terminal)
            .unwrap()
            .local_flags
            .contains(flag)
        {
            assert!(Instant::now() < end, "no key is awaited: {}", self.text);
            std::thread::yield_now();
        }
        self.terminal.write_all(keys.as_bytes()).unwrap();
        self
    }

    /// Its exit code, and all that it wrote.
    pub fn end(mut self) -> (Option<i32>, String) {
        let end = Instant::now() + LIMIT;
        let text = |dialog: &mut Self| std::mem::take(&mut dialog.text);
        while self.read() {
            if let Some(status) = self.child.try_wait().unwrap() {
                while self.read() && Instant::now() < end {}
                return (status.code(), text(&mut self));
            }
            assert!(Instant::now() < end, "it does not end: {}", self.text);
        }
        let status = self.child.wait().unwrap();
        (status.code(), text(&mut self))
    }
}

impl Drop for Dialog {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
