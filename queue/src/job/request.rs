//! Requests that `hyperctl` drops into `.control/`, one small JSON file each.
use serde::{Deserialize, Serialize};

use crate::job::{JobId, Priority};

/// The largest request file that is read, in bytes.
pub const MAX_BYTES: u64 = 64 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Start no more jobs; running ones go on.
    Pause,
    Resume,
    /// Claim nothing more, finish what is claimed, stay idle until resumed.
    Drain,
    Cancel {
        job_id: JobId,
    },
    /// Try a failed job again.
    Retry {
        job_id: JobId,
    },
    RetryAllFailed,
    SetPriority {
        job_id: JobId,
        priority: Priority,
    },
    /// Define the result of a job in libvirt, once it is published.
    Import {
        job_id: JobId,
    },
}
