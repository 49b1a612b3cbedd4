//! Another converter's jobs in the same queue: what they own is not ours to claim.
//!
//! A claim notes what it takes before it renames the owner. So whoever no longer sees an owner in
//! the queue directory, and looks here after that, sees its job.
use std::collections::BTreeSet;

use crate::arrival::tracker::{Arrivals, scope};
use crate::error::Result;
use crate::job::JobId;
use crate::spool::Spool;

impl Arrivals {
    /// The names that belong to jobs which are not `known`; `None` if there are no such jobs.
    pub fn owned_elsewhere(
        &mut self,
        spool: &Spool,
        known: &dyn Fn(JobId) -> bool,
    ) -> Result<Option<BTreeSet<String>>> {
        let directories = self.directories.clone();
        let mut owned = None;
        for id in spool.jobs()? {
            if known(id) {
                continue;
            }
            let owned = owned.get_or_insert_with(BTreeSet::new);
            // One whose memory is not written yet has taken nothing.
            let Some(memory) = spool.peek(id)? else {
                continue;
            };
            let source = spool.source_dir(id);
            let scope = scope(&directories, &source);
            let pieces = self.texts.pieces_if_sound(&scope, &memory.owner);
            owned.extend(pieces.into_iter().flat_map(|pieces| pieces.names));
            owned.extend(memory.takes.into_iter().skip(1).map(|take| take.from));
        }
        Ok(owned)
    }
}
