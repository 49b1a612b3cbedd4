//! What is told to libvirt, and what it answered: asked for by a request, kept in the record.
//!
//! A job asks before it is published, so that no crash forgets it; the request waits until then.
use std::path::PathBuf;
use std::time::SystemTime;

use super::{Job, Spool, memory, request};
use crate::durable;
use crate::error::{Error, Result};
use crate::job::{DefineState, Definition, JobId, JobState, Request, record};

/// What describes a result to libvirt, beside its disks.
const DOMAIN: &str = "domain.xml";
const REMEDY: &str = "`hyperctl list` shows what became of it";

/// Whether a job's result can be told to libvirt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Importable {
    /// Its domain.xml.
    Domain(PathBuf),
    /// It is not published yet.
    NotYet,
}

impl Job {
    /// Asks that the result be defined in libvirt as soon as it is published; once per job.
    pub fn ask_import(&mut self, uri: &str) -> Result<()> {
        self.record.libvirt = Some(Definition {
            state: DefineState::Pending,
            uri: uri.to_owned(),
            message: None,
            remedy: None,
        });
        let job_id = self.id();
        let control = self.spool.directories.control();
        let path = control.join(format!("{job_id}{}", request::SUFFIX));
        let bytes = memory::to_json(&Request::Import { job_id })?;
        durable::replace(&*self.spool.volume, &path, &bytes)
    }
}

impl Spool {
    /// Where the domain.xml of a job's result is, as long as that is its own.
    pub fn importable(&self, id: JobId) -> Result<Importable> {
        let refuse = |what: &str| Error::invalid(format!("{id} {what}")).with_remedy(REMEDY);
        let Some(record) = self.record(id)? else {
            return Err(refuse("is not known here"));
        };
        if !record.state.is_final() {
            return Ok(Importable::NotYet);
        }
        if record.state != JobState::Completed {
            return Err(refuse("was not converted"));
        }
        let is_domain = |path: &&PathBuf| path.file_name().is_some_and(|name| name == DOMAIN);
        let Some(domain) = record.outputs.iter().find(is_domain) else {
            let error = refuse("was published without a domain.xml");
            return Err(error.with_remedy("set libvirt.emit_domain_xml, then convert it again"));
        };
        if self.owner_of(durable::parent(domain))? != Some(id.to_string()) {
            return Err(refuse(
                "has no result any more: a later one replaced it, or it was moved",
            ));
        }
        Ok(Importable::Domain(domain.clone()))
    }

    /// Keeps in the record of a job that is over what libvirt answered.
    pub fn tell_import(&self, id: JobId, definition: Definition) -> Result<()> {
        let Some(mut record) = self.record(id)? else {
            return Ok(());
        };
        record.libvirt = Some(definition);
        record.updated_at = record::timestamp(SystemTime::now());
        let bytes = memory::to_json(&record)?;
        durable::replace(&*self.volume, &self.directories.record(id), &bytes)
    }
}
