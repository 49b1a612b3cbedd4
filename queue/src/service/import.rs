//! Defining published results in libvirt, one at a time beside the dispatcher: libvirt may be slow.
use std::path::Path;

use super::control::Answer;
use super::dispatch::{Dispatcher, Message};
use crate::error::{Error, ErrorKind, Result};
use crate::job::{DefineState, Definition, JobId};
use crate::spool::{Importable, Spool};

impl Dispatcher {
    /// Begins to define the job's result; the request is consumed when libvirt has answered. One
    /// that comes too early, or while another is being served, stays where it is.
    pub(super) fn import(&mut self, request: &Path, id: JobId) -> Result<Answer> {
        if self.is_importing {
            return Ok(Answer::NotMine);
        }
        let Importable::Domain(domain) = self.spool.importable(id)? else {
            return Ok(Answer::NotMine);
        };
        let Some(taken) = self.spool.take_request(request)? else {
            return Ok(Answer::NotMine);
        };
        let (spool, sender) = (self.spool.clone(), self.sender.clone());
        let (request, craft) = (request.to_owned(), self.work.clone());
        let errand = move || {
            let definition = craft.define(&domain);
            tell(&spool, id, &definition);
            let told = spool.tell_import(id, definition);
            // What is not told is not answered: it is done again at the next rescan.
            let answered = told.and_then(|()| spool.answer(&request));
            if let Err(error) = &answered {
                tracing::error!(job_id = %id, "libvirt's answer cannot be kept: {error}");
            }
            drop(taken);
            // The dispatcher may be gone: then the daemon stops.
            let _ = sender.send(Message::Imported(answered.is_ok()));
        };
        let thread = std::thread::Builder::new().name("import".to_owned());
        thread.spawn(errand).map_err(|error| {
            Error::new(ErrorKind::Internal, "start a thread").with_source(error)
        })?;
        self.is_importing = true;
        Ok(Answer::NotMine)
    }
}

fn tell(spool: &Spool, job_id: JobId, definition: &Definition) {
    let record = spool.record(job_id).ok().flatten();
    let vm_name = record.map(|record| record.vm_name).unwrap_or_default();
    let (uri, state) = (&definition.uri, definition.state.as_str());
    if definition.state == DefineState::Defined {
        tracing::info!(%job_id, vm_name, "{vm_name}: defined in libvirt at {uri}");
        return;
    }
    let said = |text: &Option<String>| text.clone().unwrap_or_default();
    let (message, remedy) = (said(&definition.message), said(&definition.remedy));
    tracing::warn!(%job_id, vm_name, state, "{vm_name}: not defined at {uri}: {message}; {remedy}");
}
