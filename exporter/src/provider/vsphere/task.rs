//! Waits for what the server does in the background: looks at it until it has ended.
use std::time::{Duration, Instant};

use super::session::Session;
use super::soap::{Fault, Moref};
use crate::error::{Error, ErrorKind, Result};
use crate::transfer::{Monitor, cancelled};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(50);

/// What a task has brought, if it brings an object.
pub fn wait(
    session: &Session,
    task: &Moref,
    doing: &str,
    limit: Duration,
    monitor: &dyn Monitor,
) -> Result<Option<Moref>> {
    let paths = ["info.state", "info.error", "info.result"];
    until(doing, limit, monitor, || {
        session.look(task, &paths, monitor, |found| {
            match found.text("info.state") {
                Some("success") => Ok(Some(found.reference("info.result"))),
                Some("error") => {
                    let fault = found.get("info.error").map(Fault::localized);
                    let unknown = || Error::new(ErrorKind::Io, doing);
                    Err(fault.map_or_else(unknown, |fault| fault.into_error(doing)))
                }
                // queued, running
                _ => Ok(None),
            }
        })
    })
}

/// Looks until there is something, less and less often.
pub fn until<T>(
    doing: &str,
    limit: Duration,
    monitor: &dyn Monitor,
    look: impl Fn() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + limit;
    let mut pause = FIRST_PAUSE;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() >= end {
            let seconds = limit.as_secs();
            return Err(Error::new(
                ErrorKind::Timeout,
                format!("{doing}: no end after {seconds} s"),
            )
            .with_remedy("see the task in the server's list of recent tasks"));
        }
        rest(pause, monitor)?;
        pause = LAST_PAUSE.min(pause * 2);
    }
}

/// Sleeps, unless the monitor cancels.
pub fn rest(pause: Duration, monitor: &dyn Monitor) -> Result<()> {
    let end = Instant::now() + pause;
    while Instant::now() < end {
        if monitor.is_cancelled() {
            return Err(cancelled());
        }
        std::thread::sleep(TICK.min(pause));
    }
    Ok(())
}
