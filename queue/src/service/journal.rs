//! Where a daemon's log goes: the journal under systemd, with fields; plain text otherwise.
use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Begins to log at `level`, in the journal as `program`; RUST_LOG overrides it. In the journal, an
/// event's `job_id`, `vm_name` and `phase` become the fields JOB_ID, VM_NAME and PHASE.
pub fn start(program: &str, level: tracing::Level) {
    let filter = EnvFilter::builder()
        .with_default_directive(level.into())
        .from_env_lossy();
    let registry = tracing_subscriber::registry().with(filter);
    if std::env::var_os("JOURNAL_STREAM").is_some()
        && let Ok(journal) = tracing_journald::layer()
    {
        let journal = journal
            .with_field_prefix(None)
            .with_syslog_identifier(program.to_owned());
        registry.with(journal).init();
        return;
    }
    let text = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    registry.with(text).init();
}
