//! `Job`: one record as it is shown, and the reading of one or all of an instance's records.
use std::time::SystemTime;

use queue::error::{Error, ErrorKind, Result};
use queue::instance::Directories;
use queue::job::record::parse_timestamp;
use queue::job::{JobId, JobState, Record, VmName};
use serde_json::{Value, json};

use super::file::{self, Tolerant};

const REQUIRED: [&str; 2] = ["job_id", "vm_name"];

/// A record, with what only its reader knows.
#[derive(Debug, Clone)]
pub struct Job {
    /// The instance whose directory holds the record.
    pub instance: String,
    /// 1 = next; computed from all queued records, so that it is never out of date.
    pub position: Option<u64>,
    read: Tolerant<Record>,
}

/// Why a job failed; like `Failure`, of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    pub kind: String,
    pub message: String,
    pub remedy: Option<String>,
}

impl Job {
    fn parse(bytes: &[u8], instance: &str) -> serde_json::Result<Self> {
        Ok(Self {
            instance: instance.to_owned(),
            position: None,
            read: Tolerant::parse(bytes, &REQUIRED)?,
        })
    }

    /// Many records are held at once; their logs would be most of it.
    fn without_log(mut self) -> Self {
        self.read.known.log = Vec::new();
        self.read.unknown.remove("log");
        self
    }

    pub fn record(&self) -> &Record {
        &self.read.known
    }

    pub fn id(&self) -> JobId {
        self.record().job_id
    }

    /// The state's name, also of a state that this program does not know.
    pub fn state(&self) -> String {
        let unknown = self.read.unknown_text("state");
        unknown.unwrap_or_else(|| self.record().state.as_str().to_owned())
    }

    pub fn phase(&self) -> String {
        let unknown = self.read.unknown_text("phase");
        unknown.unwrap_or_else(|| self.record().phase.as_str().to_owned())
    }

    pub fn priority(&self) -> String {
        let unknown = self.read.unknown_text("priority");
        unknown.unwrap_or_else(|| self.record().priority.as_str().to_owned())
    }

    pub fn is(&self, state: JobState) -> bool {
        self.record().state == state && !self.read.unknown.contains_key("state")
    }

    /// A state that is not known is not known to be final.
    pub fn is_final(&self) -> bool {
        self.record().state.is_final() && !self.read.unknown.contains_key("state")
    }

    /// Done as far as it goes, between 0 and 100.
    pub fn percent(&self) -> f64 {
        self.record().progress.percent.clamp(0.0, 100.0)
    }

    pub fn cause(&self) -> Option<Cause> {
        if let Some(failure) = &self.record().error {
            return Some(Cause::from_value(&json!(failure)));
        }
        self.read.unknown.get("error").map(Cause::from_value)
    }

    /// When a job that failed for the moment is tried again.
    pub fn retry_at(&self) -> Option<SystemTime> {
        let waits = self.is(JobState::Queued);
        parse_timestamp(self.record().not_before.as_deref().filter(|_| waits)?)
    }

    /// Whether `name` names this job's VM, as the source says it or as files are named.
    pub fn is_of(&self, name: &str) -> bool {
        let own = &self.record().vm_name;
        own == name
            || VmName::new(name).is_ok_and(|name| {
                name.as_str() == own || VmName::new(own).is_ok_and(|own| own == name)
            })
    }

    /// The record as JSON: what the file says, with the instance and the queue position of now.
    pub fn to_json(&self) -> Value {
        let mut value = json!(self.record());
        if let Some(fields) = value.as_object_mut() {
            for (name, unknown) in &self.read.unknown {
                fields.insert(name.clone(), unknown.clone());
            }
            fields.insert("instance".to_owned(), json!(self.instance));
            fields.insert("queue_position".to_owned(), json!(self.position));
        }
        value
    }
}

impl Cause {
    /// What a failure says, in whatever words a newer daemon says it.
    pub fn from_value(failure: &Value) -> Self {
        let text = |name: &str| failure.get(name).and_then(Value::as_str).map(str::to_owned);
        let mut message = text("message").unwrap_or_else(|| failure.to_string());
        let chain = failure.get("chain").and_then(Value::as_array);
        for below in chain.into_iter().flatten().filter_map(Value::as_str) {
            message.push_str(": ");
            message.push_str(below);
        }
        Self {
            kind: text("kind").unwrap_or_else(|| "unknown".to_owned()),
            message,
            remedy: text("remedy"),
        }
    }
}

/// All records of one instance, by id and without their logs, and a line for each unreadable file.
#[derive(Debug, Default)]
pub struct Jobs {
    pub jobs: Vec<Job>,
    pub skipped: Vec<String>,
}

/// Reads every record in one pass and numbers the queue.
pub fn read_all(directories: &Directories, instance: &str) -> Result<Jobs> {
    let mut read = Jobs::default();
    for id in ids(directories)? {
        match read_one(directories, instance, id) {
            Ok(job) => read.jobs.extend(job.map(Job::without_log)),
            Err(error) => read.skipped.push(describe(&error)),
        }
    }
    number(&mut read.jobs);
    Ok(read)
}

/// The jobs that have a record, oldest first.
fn ids(directories: &Directories) -> Result<Vec<JobId>> {
    let entries = super::entries(&directories.records())?;
    let ids = entries.iter().filter_map(|(name, _)| {
        let stem = name.strip_suffix(".json")?;
        stem.parse::<JobId>().ok()
    });
    let mut ids: Vec<JobId> = ids.collect();
    ids.sort_unstable();
    Ok(ids)
}

/// Reads the newest record that is meant; those that cannot be read are not.
pub fn newest(
    directories: &Directories,
    instance: &str,
    is_meant: impl Fn(&Job) -> bool,
) -> Result<Option<Job>> {
    let ids = ids(directories)?;
    let read = |id: &JobId| read_one(directories, instance, *id).ok().flatten();
    Ok(ids.iter().rev().filter_map(read).find(is_meant))
}

/// Reads one record, without its queue position; `None` if there is none.
pub fn read_one(directories: &Directories, instance: &str, id: JobId) -> Result<Option<Job>> {
    let path = directories.record(id);
    let bytes = file::read(&path).map_err(|error| Error::io("read record", &path, error))?;
    let Some(bytes) = bytes else { return Ok(None) };
    let job = Job::parse(&bytes, instance).map_err(|error| {
        corrupt(format!("the record {} cannot be read", path.display())).with_source(error)
    })?;
    if job.id() != id {
        return Err(corrupt(format!(
            "the record {} is of {}",
            path.display(),
            job.id()
        )));
    }
    Ok(Some(job))
}

fn corrupt(context: String) -> Error {
    Error::new(ErrorKind::Corrupt, context)
}

/// An error and what lies below it, in one line.
pub fn describe(error: &Error) -> String {
    let mut text = error.to_string();
    for below in error.chain() {
        text.push_str(": ");
        text.push_str(&below);
    }
    text
}

/// The order of the queue is priority, then arrival, which is the order of ids.
fn number(jobs: &mut [Job]) {
    let mut queued: Vec<&mut Job> = jobs
        .iter_mut()
        .filter(|job| job.is(JobState::Queued))
        .collect();
    queued.sort_by_key(|job| (job.record().priority, job.id()));
    for (position, job) in (1..).zip(queued) {
        job.position = Some(position);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use queue::job::Priority;

    fn job(fields: Value) -> Job {
        let mut record = json!(Record::new(JobId::new(), "web-01", "a", "web-01.vmdk"));
        for (name, value) in fields.as_object().unwrap() {
            record[name] = value.clone();
        }
        Job::parse(record.to_string().as_bytes(), "a").unwrap()
    }

    #[test]
    fn numbers_the_queue_by_priority_then_arrival() {
        let mut jobs = [
            job(json!({"priority": "low"})),
            job(json!({"priority": "normal"})),
            job(json!({"state": "processing", "priority": "high"})),
            job(json!({"priority": "high", "queue_position": 9})),
            job(json!({})),
            job(json!({"state": "frozen"})),
        ];
        number(&mut jobs);
        let positions: Vec<_> = jobs.iter().map(|job| job.position).collect();
        assert_eq!(positions, [Some(4), Some(2), None, Some(1), Some(3), None]);
        assert_eq!(jobs[3].to_json()["queue_position"], 1);
        assert_eq!(jobs[3].record().priority, Priority::High);
    }

    #[test]
    fn unknown_values_are_shown_as_they_are() {
        let job = job(json!({
            "state": "frozen", "phase": "upload", "priority": "urgent",
            "error": {"kind": "cosmic", "message": "a ray", "remedy": "wait"},
        }));
        assert_eq!(
            (job.state(), job.phase(), job.priority()),
            ("frozen".into(), "upload".into(), "urgent".into())
        );
        assert!(!job.is_final() && !job.is(JobState::Queued));
        let cause = job.cause().unwrap();
        assert_eq!(
            (cause.kind.as_str(), cause.message.as_str()),
            ("cosmic", "a ray")
        );
        assert_eq!(job.to_json()["state"], "frozen");
    }

    #[test]
    fn a_name_is_found_in_both_its_forms() {
        for (own, asked, found) in [
            ("web-01", "web-01", true),
            ("web-01", "web-02", false),
            ("a%2Fb", "a/b", true),
            ("a/b", "a%2Fb", false),
            ("a/b", "a/b", true),
            ("web-01", "", false),
        ] {
            assert_eq!(
                job(json!({"vm_name": own})).is_of(asked),
                found,
                "{own} {asked}"
            );
        }
    }
}
