//! Deliver: how an export ends. Its job directory, staged in the target queue's `.incoming/`,
//! becomes a drop there by one rename. What was streamed is a drop already, and is declared whole.
//!
//! `Stage::Delivering` is noted when what is staged is whole and durable: from then on it is
//! renamed, by whoever finds it, and what is no longer staged was renamed.
use std::path::PathBuf;

use super::held::{Begun, Job};
use super::memory::{Stage, Target};
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::instance::INCOMING;
use crate::job::{Delivery, JobState, Phase};

impl Job {
    pub(super) fn incoming_of(&self, target: &Target) -> PathBuf {
        target.queue.join(INCOMING).join(self.id().to_string())
    }

    /// Begins an export into another queue: see `begin`. Its staging directory lies there.
    pub fn begin_into(&mut self, target: Target) -> Result<Begun> {
        self.check_target(&target)?;
        if self.memory.target.as_ref() != Some(&target) {
            self.clear_staging()?;
            self.memory.target = Some(target);
        }
        self.begin()
    }

    /// A queue that is not there now was there when its configuration was written.
    pub(super) fn check_target(&self, target: &Target) -> Result<()> {
        if self.volume().stat(&target.queue.join(INCOMING))?.is_some() {
            return Ok(());
        }
        let (queue, instance) = (target.queue.display(), &target.instance);
        Err(Error::new(
            ErrorKind::Io,
            format!("{queue} is not the queue of an instance ({instance})"),
        )
        .with_remedy("mount its file system, or start the converter of this instance once"))
    }

    /// Makes a begun export durable, then visible in its target queue. An error gives the job back;
    /// once the delivery is noted, it is taken up again by recovery.
    pub fn deliver(mut self: Box<Self>) -> std::result::Result<(), (Box<Self>, Error)> {
        match self.note_delivery().and_then(|()| self.finish_delivery()) {
            Ok(()) => Ok(()),
            Err(error) => Err((self, error)),
        }
    }

    fn note_delivery(&mut self) -> Result<()> {
        if matches!(self.memory.stage, Stage::Delivering { .. }) {
            return Ok(());
        }
        self.record.phase = Phase::Publish;
        self.save_record(false)?;
        let staging = self.staging_dir();
        durable::sync_tree(self.volume(), &staging)?;
        self.volume().sync(durable::parent(&staging))?;
        let name = self.id().to_string();
        self.note_delivering(Stage::Delivering { name })
    }

    pub(super) fn note_delivering(&mut self, stage: Stage) -> Result<()> {
        let running = std::mem::replace(&mut self.memory.stage, stage);
        if let Err(error) = self.spool.save_memory(&self.memory) {
            self.memory.stage = running;
            return Err(error);
        }
        Ok(())
    }

    /// From what is staged and whole to the end, as often as it takes.
    pub(super) fn finish_delivery(&mut self) -> Result<()> {
        let Stage::Delivering { name: drop } = self.memory.stage.clone() else {
            return Ok(());
        };
        if self.record.state != JobState::Completed {
            let Some(target) = self.memory.target.clone() else {
                return Err(Error::new(
                    ErrorKind::Internal,
                    format!("{} is delivered nowhere", self.id()),
                ));
            };
            // Else an unmounted file system would look like a drop that was renamed.
            self.check_target(&target)?;
            match self.memory.streamed {
                Some(_) => self.declare_ends()?,
                None => self.rename_staged(&target, &drop)?,
            }
            self.tell_delivered(target, drop)?;
        } else {
            // Whoever told it may have died before it was durable.
            self.volume().sync(&self.spool.directories.records())?;
        }
        self.finish_archive()
    }

    fn rename_staged(&self, target: &Target, drop: &str) -> Result<()> {
        let staging = self.incoming_of(target);
        let visible = target.queue.join(drop);
        if self.volume().stat(&visible)?.is_none() && self.volume().stat(&staging)?.is_some() {
            self.volume().rename(&staging, &visible)?;
        }
        self.volume().sync(&target.queue)?;
        self.volume().sync(durable::parent(&staging))
    }

    fn tell_delivered(&mut self, target: Target, drop: String) -> Result<()> {
        let Target { instance, queue } = target;
        self.record.delivered = Some(Delivery {
            instance,
            queue,
            drop,
        });
        self.tell_completed()
    }
}
