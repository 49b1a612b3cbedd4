//! The service: what all daemons of the product share. It watches one queue, claims what arrives,
//! gives each job its turn, records, retries, recovers and obeys; the turn itself is a `Work`.
//!
//! One dispatcher thread decides, one thread per running job works, and this file's loop beats the
//! heart, answers signals and feeds systemd's watchdog — only while all of them move.
mod activity;
mod adopt;
mod backlog;
mod board;
mod claims;
mod control;
mod dispatch;
mod import;
pub mod journal;
mod launch;
pub mod log;
mod reporter;
#[cfg(test)]
mod tests;
pub mod turn;
mod work;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::arrival::watch::{self, Hint};
use crate::durable::HostVolume;
use crate::error::{Error, ErrorKind, Result};
use crate::instance::Instance;
use crate::job::record::DaemonState;
use crate::spool::{Policy, Spool};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use self::activity::lock;
pub use self::activity::{Activity, Command};
use self::board::Board;
use self::dispatch::{Dispatcher, Message};
pub use self::reporter::Reporter;
pub use self::work::{Outcome, Service, Work};

/// Hints that may wait for the dispatcher.
const UNREAD_MAX: usize = 256;
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Changes are shown at once, but not more often than this.
const HEARTBEAT_FASTEST: Duration = Duration::from_millis(250);

/// Runs the daemon until SIGTERM or SIGINT; `reload` reads its configuration again.
pub fn run(service: Service, reload: &dyn Fn() -> Result<Service>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed("start the runtime", error))?;
    runtime.block_on(serve(service, reload))
}

fn failed(doing: &str, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Internal, doing).with_source(error)
}

/// The signals that the daemon answers.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).map_err(|error| failed("listen to signals", error));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }
}

async fn serve(service: Service, reload: &dyn Fn() -> Result<Service>) -> Result<()> {
    // Before anything else, so that no signal finds its default handler.
    let mut signals = Signals::listen()?;
    for line in service.work.not_heeded() {
        tracing::warn!("{line}");
    }
    let host = host_name();
    let mut instance = service.instance.clone();
    let directories = instance.directories.clone();
    let policy = Policy::of(&instance);
    let spool = Spool::open(Arc::new(HostVolume), directories.clone(), policy, &host)?;
    let board = Arc::new(Board::new());
    let (sender, receiver) = channel();
    // Armed before the first scan: what comes between is seen twice, not never.
    let unread = Arc::new(AtomicUsize::new(0));
    let _watch = watch::arm(&directories, pass_on(sender.clone(), unread.clone()))?;
    let channel = (sender.clone(), receiver, unread);
    let mut dispatcher = Dispatcher::new(service, spool.clone(), board.clone(), channel)?;
    dispatcher.look()?;
    let (thread, mut end) = dispatch(dispatcher)?;

    let mut heart = Heart::new(spool, board.clone(), host);
    heart.beat(&instance);
    tell(&[NotifyState::Ready]);
    let (queue, output) = (directories.queue.display(), directories.output.display());
    tracing::info!("ready: watching {queue}, results in {output}");
    loop {
        tokio::select! {
            _ = &mut end => break,
            _ = signals.terminate.recv() => stop(&sender),
            _ = signals.interrupt.recv() => stop(&sender),
            _ = signals.hangup.recv() => match reload() {
                Ok(fresh) => {
                    let kept = instance.directories.clone();
                    instance = Instance { directories: kept, ..fresh.instance.clone() };
                    // A dispatcher that is gone reloads nothing.
                    let _ = sender.send(Message::Reload(Box::new(fresh)));
                }
                Err(error) => tracing::error!("the earlier configuration stays: {error}"),
            },
            () = board.changed.notified() => heart.calm().await,
            () = tokio::time::sleep(HEARTBEAT) => {}
        }
        heart.beat(&instance);
    }
    let joined = thread.join();
    lock(&board.shown).state = DaemonState::Stopping;
    heart.beat(&instance);
    tracing::info!("stopped");
    joined.map_err(|_| {
        Error::new(ErrorKind::Internal, "the dispatcher panicked")
            .with_remedy("this is a defect: report it with the journal's last lines")
    })
}

/// Passes hints on to the dispatcher, as long as it reads them: what it has no time for is one hint
/// to look at everything, so that a burst costs no memory.
fn pass_on(sender: Sender<Message>, unread: Arc<AtomicUsize>) -> impl FnMut(Hint) + Send {
    move |hint| {
        let hint = match unread.fetch_add(1, Ordering::Relaxed) {
            count if count < UNREAD_MAX => hint,
            UNREAD_MAX => Hint::Rescan,
            _ => {
                unread.fetch_sub(1, Ordering::Relaxed);
                return;
            }
        };
        // The receiver goes when the daemon ends; hints are of no use then.
        let _ = sender.send(Message::Hint(hint));
    }
}

/// Starts the dispatcher's thread; the receiver learns of its end, by panic too.
fn dispatch(dispatcher: Dispatcher) -> Result<(JoinHandle<()>, oneshot::Receiver<()>)> {
    let (ended, end) = oneshot::channel();
    let thread = std::thread::Builder::new().name("dispatcher".to_owned());
    let work = move || {
        let _ended: oneshot::Sender<()> = ended;
        dispatcher.run();
    };
    let handle = thread.spawn(work);
    Ok((
        handle.map_err(|error| failed("start the dispatcher", error))?,
        end,
    ))
}

fn stop(sender: &Sender<Message>) {
    tell(&[NotifyState::Stopping]);
    tracing::info!("stopping: running jobs go back to the queue at their next safe point");
    // A dispatcher that is gone has stopped already.
    let _ = sender.send(Message::Stop);
}

fn tell(states: &[NotifyState<'_>]) {
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(states);
}

/// This host, as records and results name it.
pub fn host_name() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "localhost".to_owned())
}

/// Writes the heartbeat and the metrics, and feeds the watchdog.
struct Heart {
    spool: Spool,
    board: Arc<Board>,
    host: String,
    watchdog: Option<Duration>,
    last: Instant,
    summary: String,
    trouble: bool,
}

impl Heart {
    fn new(spool: Spool, board: Arc<Board>, host: String) -> Self {
        Self {
            spool,
            board,
            host,
            watchdog: sd_notify::watchdog_enabled(),
            last: Instant::now(),
            summary: String::new(),
            trouble: false,
        }
    }

    /// Keeps quick changes from making the heart race.
    async fn calm(&self) {
        tokio::time::sleep(HEARTBEAT_FASTEST.saturating_sub(self.last.elapsed())).await;
    }

    fn beat(&mut self, instance: &Instance) {
        self.last = Instant::now();
        let status = self.board.status(instance, &self.host);
        let saved = self
            .spool
            .save_status(&status)
            .and_then(|()| self.spool.save_metrics(&board::metrics(&status)));
        match saved {
            Ok(()) => self.trouble = false,
            Err(error) if !self.trouble => {
                self.trouble = true;
                tracing::error!("the heartbeat cannot be written: {}", error.to_line());
            }
            Err(_) => {}
        }
        let summary = board::summary(&status);
        if summary != self.summary {
            tell(&[NotifyState::Status(&summary)]);
            self.summary = summary;
        }
        // Beaten every two seconds, so half a watchdog period of extra patience is always met.
        if let Some(period) = self.watchdog
            && self.board.is_moving(period / 2)
        {
            tell(&[NotifyState::Watchdog]);
        }
    }
}
