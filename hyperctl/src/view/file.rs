//! Reading one file of a daemon: bounded, never blocking, tolerant of what a newer daemon writes.
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc::{O_NOCTTY, O_NOFOLLOW, O_NONBLOCK};
use queue::job::record::MAX_BYTES;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The bytes of a regular file; `None` if there is no such file.
pub fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(O_NONBLOCK | O_NOFOLLOW | O_NOCTTY)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("is not a regular file"));
    }
    if metadata.len() > MAX_BYTES {
        return Err(io::Error::other(format!(
            "is larger than {MAX_BYTES} bytes"
        )));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or_default());
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// What a file says: the part that is understood, and the fields whose values are not.
#[derive(Debug, Clone)]
pub struct Tolerant<T> {
    pub known: T,
    /// Fields left out of `known`, as they stand in the file.
    pub unknown: Map<String, Value>,
}

impl<T: DeserializeOwned> Tolerant<T> {
    /// Parses an object; a field with a value that is not understood is set aside, unless it is
    /// one of `required`.
    pub fn parse(bytes: &[u8], required: &[&str]) -> serde_json::Result<Self> {
        let error = match serde_json::from_slice(bytes) {
            Ok(known) => {
                return Ok(Self {
                    known,
                    unknown: Map::new(),
                });
            }
            Err(error) => error,
        };
        let Ok(fields) = serde_json::from_slice::<Map<String, Value>>(bytes) else {
            return Err(error);
        };
        let (basis, optional): (Map<_, _>, Map<_, _>) = fields
            .into_iter()
            .partition(|(name, _)| required.contains(&name.as_str()));
        let mut known = basis.clone();
        let mut unknown = Map::new();
        for (name, value) in optional {
            let mut probe = basis.clone();
            probe.insert(name.clone(), value.clone());
            let understood = serde_json::from_value::<T>(Value::Object(probe)).is_ok();
            let place = if understood { &mut known } else { &mut unknown };
            place.insert(name, value);
        }
        Ok(Self {
            known: serde_json::from_value(Value::Object(known))?,
            unknown,
        })
    }

    /// The text of a field that was not understood; `None` if the field was.
    pub fn unknown_text(&self, field: &str) -> Option<String> {
        self.unknown.get(field).map(|value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use queue::job::{JobId, JobState, Record, Status};

    #[test]
    fn sets_aside_what_it_does_not_understand() {
        let text = format!(
            r#"{{"job_id":"{}","vm_name":"a","state":"frozen","attempts":2,"shape":[1]}}"#,
            JobId::new()
        );
        let record = Tolerant::<Record>::parse(text.as_bytes(), &["job_id", "vm_name"]).unwrap();
        assert_eq!(record.known.attempts, 2);
        assert_eq!(record.known.state, JobState::Queued);
        assert_eq!(record.unknown_text("state").as_deref(), Some("frozen"));
        assert_eq!(record.unknown_text("attempts"), None);
        let status = Tolerant::<Status>::parse(br#"{"pid":"x","host":"h"}"#, &[]).unwrap();
        assert_eq!((status.known.pid, status.known.host.as_str()), (0, "h"));
    }

    #[test]
    fn refuses_what_is_no_record() {
        for text in [
            "",
            "{",
            "[]",
            "null",
            r#"{"vm_name":"a"}"#,
            r#"{"job_id":"../x"}"#,
        ] {
            let parsed = Tolerant::<Record>::parse(text.as_bytes(), &["job_id", "vm_name"]);
            assert!(parsed.is_err(), "{text}");
        }
    }

    #[test]
    fn reads_regular_files_of_a_bounded_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        assert!(read(&path("absent")).unwrap().is_none());
        std::fs::write(path("whole"), "x").unwrap();
        assert_eq!(read(&path("whole")).unwrap().unwrap(), b"x");
        std::fs::File::create(path("huge"))
            .unwrap()
            .set_len(MAX_BYTES + 1)
            .unwrap();
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("whole", path("link")).unwrap();
        for name in ["huge", "fifo", "link"] {
            assert!(read(&path(name)).is_err(), "{name}");
        }
    }
}
