//! `JobId`: `job-` and a ULID, so that ids sort by arrival.
use std::fmt;
use std::str::FromStr;
use std::sync::Mutex;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use ulid::{Generator, Ulid};

use crate::error::{Error, Result};

/// Names a job everywhere: directories, records, logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(Ulid);

static GENERATOR: Mutex<Option<Generator>> = Mutex::new(None);

impl JobId {
    /// A fresh id, greater than every earlier one of this process.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let mut generator = GENERATOR
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let generator = generator.get_or_insert_with(Generator::new);
        // The generator overflows only after 2^80 ids in one millisecond.
        Self(generator.generate().unwrap_or_else(|_| Ulid::new()))
    }

    /// When it was made.
    pub fn made_at(self) -> SystemTime {
        self.0.datetime()
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job-{}", self.0)
    }
}

impl FromStr for JobId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.strip_prefix("job-")
            .filter(|ulid| ulid.len() == 26 && ulid.bytes().all(|b| b.is_ascii_alphanumeric()))
            .and_then(|ulid| Ulid::from_string(ulid).ok())
            .map(Self)
            .filter(|id| id.to_string() == text)
            .ok_or_else(|| Error::invalid(format!("{text:?} is not a job id (job-<ULID>)")))
    }
}

impl TryFrom<String> for JobId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_rise_and_survive_their_text() {
        let first = JobId::new();
        let second = JobId::new();
        assert!(first < second);
        assert_eq!(first.to_string().parse::<JobId>().unwrap(), first);
        for bad in [
            "",
            "job-",
            "job-../../etc",
            "job-0",
            "JOB-01ARZ3NDEKTSV4RRFFQ69G5FAV",
        ] {
            assert!(bad.parse::<JobId>().is_err(), "{bad}");
        }
    }
}
