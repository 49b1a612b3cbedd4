//! What a terminal of 80 columns gets to see: colours, bars, and lines that fit.
use std::fs::File;
use std::io::Read;
use std::process::{Child, Command, Stdio};

use nix::pty::{Winsize, openpty};
use queue::job::{JobState, Record};

use crate::fixture::{Fixture, change, record};

/// Starts a command on a terminal of this many columns.
pub fn start(command: &mut Command, columns: u16) -> (Child, File) {
    let size = Winsize {
        ws_row: 24,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pty = openpty(&size, None).unwrap();
    command
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .stdout(pty.slave.try_clone().unwrap())
        .stderr(pty.slave);
    let child = command.spawn().unwrap();
    // The command's own copies of the terminal must close for its end to be seen.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    (child, File::from(pty.master))
}

/// All that was written until the command ended; reading then fails with EIO.
pub fn rest(mut master: File) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = master.read(&mut buffer) {
        bytes.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8(bytes).unwrap()
}

fn show(command: &mut Command, columns: u16) -> String {
    let (mut child, master) = start(command, columns);
    let text = rest(master);
    child.wait().unwrap();
    text
}

fn fixture() -> Fixture {
    let fixture = Fixture::running();
    fixture.add(
        "a-rather-long-name-of-a-virtual-machine.example.com",
        JobState::Processing,
    );
    fixture.add("broken", JobState::Failed);
    fixture.add("done", JobState::Completed);
    fixture
}

#[test]
fn tables_fit_and_are_coloured() {
    let fixture = fixture();
    for args in ["list", "daemon list"] {
        let text = show(&mut fixture.command(args), 80);
        assert!(text.contains("\x1b[32m"), "{text}");
        for line in console::strip_ansi_codes(&text).lines() {
            let width = console::measure_text_width(line);
            assert!(width <= 80, "{width}: {line}");
        }
    }
    let text = show(&mut fixture.command("list"), 80);
    assert!(text.contains('…'), "{text}");
}

#[test]
fn no_color_is_honoured() {
    let fixture = fixture();
    for args in ["list", "status --vm broken", "daemon status", "stats"] {
        let text = show(fixture.command(args).env("NO_COLOR", "1"), 80);
        assert!(!text.contains('\x1b'), "{text}");
    }
    let text = show(
        fixture
            .command("list")
            .env("TERM", "dumb")
            .env("NO_COLOR", "1"),
        80,
    );
    assert!(!text.contains('\x1b'), "{text}");
    let text = show(fixture.command("status --vm done").env("LC_ALL", "C"), 80);
    assert!(text.is_ascii(), "{text}");
}

#[test]
fn following_draws_a_bar_that_fits() {
    let fixture = Fixture::running();
    let id = fixture.add("web-01", JobState::Processing);
    let (mut child, mut master) = start(&mut fixture.command("status --vm web-01 --follow"), 80);
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains("46%") {
        let count = master.read(&mut buffer).unwrap();
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    change(&fixture.spool, id, |job| {
        *job = Record {
            job_id: id,
            ..record("web-01", JobState::Completed)
        };
    });
    text.push_str(&rest(master));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let plain = console::strip_ansi_codes(&text);
    assert!(
        plain.contains("web-01 ━━━━━━━━━───────────  46% convert  310 MiB/s"),
        "{plain}"
    );
    assert!(plain.contains("✔ web-01: completed in 2m 0s"), "{plain}");
    assert!(plain.contains("/out/web-01/web-01.qcow2"), "{plain}");
    for line in plain.split(['\r', '\n']) {
        assert!(console::measure_text_width(line) <= 80, "{line}");
    }
}
