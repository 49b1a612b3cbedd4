//! One command, measured: until it has ended and all that it wrote is on the disk.
use std::fs::File;
use std::mem::MaybeUninit;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::libc;

#[derive(Debug, Clone, Copy)]
pub struct Measure {
    pub seconds: f64,
    /// User and system time of the command, without the kernel's own threads.
    pub cpu_seconds: f64,
    pub peak_bytes: u64,
}

/// Runs `command`, which writes beneath `place`. Nothing waits to be written when it begins.
pub fn measure(command: &mut Command, place: &Path) -> Result<Measure> {
    let place = File::open(place)?;
    nix::unistd::sync();
    let begun = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("run {:?}", command.get_program()))?;
    let (status, usage) = wait(child.id())?;
    nix::unistd::syncfs(&place)?;
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(status == 0, "{command:?} ended with the status {status:#x}");
    let of = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    Ok(Measure {
        seconds,
        cpu_seconds: of(usage.ru_utime) + of(usage.ru_stime),
        peak_bytes: usage.ru_maxrss as u64 * 1024,
    })
}

/// Waits for a child of this process, for which nobody else waits.
fn wait(child: u32) -> Result<(i32, libc::rusage)> {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers are to variables that outlive the call; a rusage of zeros is valid.
    let (pid, usage) = unsafe {
        let pid = libc::wait4(child as libc::pid_t, &mut status, 0, usage.as_mut_ptr());
        (pid, usage.assume_init())
    };
    ensure!(
        pid == child as libc::pid_t,
        "wait for a child: {}",
        std::io::Error::last_os_error()
    );
    Ok((status, usage))
}

/// The middle one; of an even number the lower of the two.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len().saturating_sub(1) / 2;
    values.get(middle).copied().unwrap_or(f64::NAN)
}
