//! The work that a daemon does with what it claims: the trait between the queue's moves, which are
//! the same for all daemons, and one job's turn, which is each one's own.
use std::path::Path;
use std::sync::Arc;

use super::activity::Activity;
use crate::arrival::Intake;
use crate::error::Error;
use crate::instance::Instance;
use crate::job::{DefineState, Definition};
use crate::spool::recover::Waiting;
use crate::spool::{Fate, Job};

/// One daemon's craft. It is replaced when the configuration is read again; running turns keep the
/// one they began with.
pub trait Work: Send + Sync {
    /// Works on a held job until it is published, failed or put back.
    fn turn(&self, job: Box<Job>, activity: &Activity) -> Outcome;

    /// Whether one more turn may start beside those that run.
    fn has_room(&self, running: &mut dyn Iterator<Item = &Activity>) -> bool;

    /// How many jobs of a lane may run at once.
    fn lane_limit(&self, _lane: &str) -> usize {
        usize::MAX
    }

    /// Defines the VM of a published domain.xml in libvirt; whatever comes of it, the job is done.
    fn define(&self, domain: &Path) -> Definition {
        Definition {
            state: DefineState::Failed,
            uri: String::new(),
            message: Some(format!("{} is not of this service", domain.display())),
            remedy: Some("ask the converter's instance".to_owned()),
        }
    }

    /// What the configuration asks for and this version does not do.
    fn not_heeded(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What a daemon serves, and how.
#[derive(Clone)]
pub struct Service {
    /// Its name, its directories, and what its configuration says about the queue.
    pub instance: Instance,
    pub intake: Intake,
    pub work: Arc<dyn Work>,
}

/// How a turn ended.
pub enum Outcome {
    Published {
        bytes_in: u64,
        bytes_out: u64,
    },
    Failed(Fate),
    /// The job went back unharmed, because the daemon stops.
    Stopped,
    /// Another running job has its VM's name: try again soon.
    NameTaken(Waiting),
    /// The queue itself could not be written: recovery takes the job up.
    Trouble(Error),
}
