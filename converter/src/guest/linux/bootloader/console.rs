//! A login prompt on the serial line where systemd does not start one by itself: inittab(5).
use crate::guest::linux::edit::{Edit, Fate, decode, refusal, revise};

/// Brings to life the line for ttyS0 that Debian and Alpine ship commented out, or adds one like
/// the first of the guest's own.
pub fn add_login(inittab: &[u8]) -> Edit {
    let edit = Edit::unchanged(inittab);
    if refusal(inittab).is_some() {
        return edit;
    }
    let text = decode(inittab);
    let is_login = |line: &&str| line.contains("getty") && line.contains(":respawn:");
    let is_live = |line: &&str| is_login(line) && !line.starts_with('#');
    let mut live = text.lines().filter(is_live);
    let Some(model) = live.clone().next() else {
        return edit;
    };
    if live.any(|line| line.contains("ttyS0")) {
        return edit;
    }
    let reason = "a login on the first serial line";
    let is_shipped =
        |line: &str| is_login(&line) && line.starts_with('#') && line.contains("ttyS0");
    if text.lines().any(is_shipped) {
        let mut is_done = false;
        return revise(inittab, |line, notes| {
            if is_done || !is_shipped(line) {
                return Fate::Keep;
            }
            is_done = true;
            notes.change(reason);
            Fate::Replace(
                line.trim_start_matches(['#', ' '])
                    .replace(" 9600 ", " 115200 "),
            )
        });
    }
    // busybox's first field is the terminal, System V's a name of at most four letters.
    let is_busybox = model.starts_with("tty") && model.split(':').nth(1) == Some("");
    let path = model
        .split([':', ' '])
        .find(|word| word.ends_with("getty"))
        .unwrap_or("/sbin/getty");
    // mingetty knows screens only.
    let path = if path.ends_with("mingetty") {
        "/sbin/agetty"
    } else {
        path
    };
    if !path.starts_with('/') || path.len() > 64 || !path.is_ascii() {
        return edit;
    }
    let line = if is_busybox {
        format!("ttyS0::respawn:{path} -L 115200 ttyS0 vt100")
    } else {
        format!("S0:12345:respawn:{path} -L 115200 ttyS0 vt100")
    };
    edit.append(&[&line], reason)
}
