//! Export requests: whole as soon as they parse and nobody writes them; all else is refused.
use std::fs::Metadata;

use crate::arrival::drops::{Arrival, lone};
use crate::arrival::examine::Verdict;
use crate::arrival::tracker::Arrivals;
use crate::arrival::{pieces, whole};
use crate::error::{Error, Result};
use crate::job::{ExportRequest, export};
use crate::spool::{Drop, DropKind};

impl Arrivals {
    pub(super) fn examine_request(&mut self, name: &str, metadata: &Metadata) -> Verdict {
        let path = self.path(name);
        let is_request = metadata.is_file() && name.to_ascii_lowercase().ends_with(".json");
        if !is_request {
            if !self.stillness.is_still(&path) || whole::is_open_for_writing(&path) {
                return Verdict::Wait;
            }
            let error = Error::invalid(format!("{name} is no export request"))
                .with_remedy("requests are *.json files; disks go into an instance's queue");
            return Verdict::Ready(Arrival::Refused(drop_of(name, None), error));
        }
        if let Some(error) = self.unreadable(name) {
            return Verdict::Ready(Arrival::Refused(drop_of(name, None), error));
        }
        if whole::is_open_for_writing(&path) || !whole::is_complete_json(&path) {
            return self.wait_or_refuse(name, &[], DropKind::Request, "is not complete JSON");
        }
        let read = pieces::head(&path, export::MAX_BYTES + 1);
        let request = read
            .map_err(|error| Error::io("read", &path, error))
            .and_then(|bytes| parse(name, &bytes));
        Verdict::Ready(match request {
            Ok(request) => Arrival::Whole(drop_of(name, Some(&request))),
            Err(error) => Arrival::Refused(drop_of(name, None), error),
        })
    }
}

fn parse(name: &str, bytes: &[u8]) -> Result<ExportRequest> {
    if bytes.len() as u64 > export::MAX_BYTES {
        return Err(Error::invalid(format!("{name} is larger than 1 MiB"))
            .with_remedy("write one request for one VM"));
    }
    ExportRequest::parse(bytes)
}

/// Two running exports never share instance and name, and no more share a server than it bears.
fn drop_of(name: &str, request: Option<&ExportRequest>) -> Drop {
    let mut drop = lone(name, DropKind::Request);
    if let Some(request) = request {
        drop.vm_name = request.vm_name();
        request.instance.clone_into(&mut drop.place);
        request.server.clone_into(&mut drop.lane);
        drop.priority = request.options.priority;
    }
    drop
}
