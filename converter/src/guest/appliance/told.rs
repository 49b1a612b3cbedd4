//! What is told of a library that fails: its error in one line, and what QEMU and the appliance's
//! kernel print meanwhile.
use std::ffi::{c_char, c_int, c_void};
use std::io::Write;

use super::library::Handle;

/// What begins the advice at the end of an error (launch.c, errors.c of libguestfs).
const ADVICE: [&str; 3] = ["This usually means", "To see full error messages", "Do:"];
/// How much of an error is told.
const REASON_CHARS: usize = 500;

/// What QEMU and the appliance's kernel print (guestfs.h).
pub(super) const EVENT_APPLIANCE: u64 = 0x10;

/// `guestfs_event_callback`: handle, opaque, event, its number, flags, text, array.
pub(super) type Printer = unsafe extern "C" fn(
    Handle,
    *const c_void,
    u64,
    c_int,
    c_int,
    *const c_char,
    usize,
    *const u64,
    usize,
);

/// Passes on what was printed, for whoever wants to know why the appliance is gone.
pub(super) unsafe extern "C" fn print(
    _handle: Handle,
    _opaque: *const c_void,
    _event: u64,
    _number: c_int,
    _flags: c_int,
    text: *const c_char,
    length: usize,
    _array: *const u64,
    _array_length: usize,
) {
    // SAFETY: the library's buffer of that length, valid during the callback.
    let text = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), length) };
    // There is nobody else to tell.
    let _ = std::io::stderr().write_all(text);
}

/// A reason of the library's without its advice on how to debug it; of what a program printed, the
/// end.
pub(super) fn one_line(reason: &str) -> String {
    let lines = reason.lines().map(str::trim);
    let cause = lines.take_while(|line| !ADVICE.iter().any(|advice| line.starts_with(advice)));
    let cause: Vec<&str> = cause.filter(|line| !line.is_empty()).collect();
    let line = cause.join("; ").trim_end_matches('.').to_owned();
    let too_many = line.chars().count().saturating_sub(REASON_CHARS);
    match line.char_indices().nth(too_many) {
        Some((end, _)) if too_many > 0 => format!("…{}", line.split_at(end).1),
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_line_without_advice() {
        let launch = "guestfs_launch failed.\nThis usually means the libguestfs appliance failed \
                      to start or crashed.\nDo:\n  export LIBGUESTFS_DEBUG=1 X=1\n";
        let killed = "/usr/bin/qemu-system-x86_64 killed by signal 6 (Aborted).\nTo see full error \
                      messages you may need to enable debugging.\nDo:\n  export X=1\n";
        let long = format!("{}the\n end", "x".repeat(600));
        for (reason, line) in [
            (launch, "guestfs_launch failed".to_owned()),
            (
                killed,
                "/usr/bin/qemu-system-x86_64 killed by signal 6 (Aborted)".to_owned(),
            ),
            (
                "command: dracut: E: a\r\n\nE: b",
                "command: dracut: E: a; E: b".to_owned(),
            ),
            (&long, format!("…{}the; end", "x".repeat(492))),
            ("", String::new()),
        ] {
            assert_eq!(one_line(reason), line);
        }
    }
}
