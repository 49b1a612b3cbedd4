//! Gathering: a claimed job's pieces come together in its `source/`, those that arrive later too.
use std::path::Path;
use std::time::Instant;

use crate::arrival::tracker::{Arrivals, Intake, scope};
use crate::error::Result;
use crate::job::JobId;
use crate::spool::{DropKind, Job};

/// Whether a claimed job has all its pieces.
#[derive(Debug)]
pub enum Gathered {
    Whole,
    /// These are not there yet, or not whole; `overdue` if waiting longer makes no sense.
    Missing {
        names: Vec<String>,
        overdue: bool,
    },
}

/// What a claimed job waits for.
#[derive(Debug)]
pub(super) struct Wanted {
    pub names: Vec<String>,
    /// When a piece of it last came or grew, as far as this process saw.
    pub(super) moved: Instant,
}

impl Arrivals {
    /// The job is begun or over: nothing is kept for it any more.
    pub fn release(&mut self, job: JobId) {
        self.wanted.remove(&job);
    }

    /// Brings a claimed job's pieces together; those in the queue directory are taken when whole.
    pub fn gather(&mut self, job: &mut Job) -> Result<Gathered> {
        if self.terms.intake == Intake::Requests {
            return Ok(Gathered::Whole);
        }
        loop {
            let (gathered, has_taken) = self.gather_named(job)?;
            // What was taken may name more: a descriptor its extents, a parent its own parent.
            if !has_taken {
                return Ok(gathered);
            }
        }
    }

    /// Takes what the files in `source/` name; whether that was anything.
    fn gather_named(&mut self, job: &mut Job) -> Result<(Gathered, bool)> {
        let source = job.source_dir();
        let before = self.wanted.remove(&job.id());
        let directories = self.directories.clone();
        let owner = job.memory.owner.clone();
        let pieces = self.texts.pieces(&scope(&directories, &source), &owner)?;
        let mut moved = before.map_or_else(Instant::now, |wanted| wanted.moved);
        let mut missing = Vec::new();
        let mut has_taken = false;
        for name in pieces.names.iter().chain(&pieces.optional) {
            // What lies in `source/` was whole when it was taken.
            if std::fs::symlink_metadata(source.join(name)).is_ok() {
                continue;
            }
            let there = self.path(name);
            // One that may not be read is taken all the same: opening it says so in full.
            let is_due = self.is_whole_file(&there) || self.unreadable(name).is_some();
            if is_due && job.take(name)? {
                self.stillness.forget(&there);
                self.pending.remove(name);
                moved = Instant::now();
                has_taken = true;
            } else if !pieces.optional.contains(name) {
                missing.push(name.clone());
            }
        }
        for path in &pieces.outside {
            let is_ours = |root: &std::path::PathBuf| path.starts_with(root);
            if self.terms.source_roots.iter().any(is_ours) && !self.is_whole_file(path) {
                missing.push(path.to_string_lossy().into_owned());
            }
        }
        if missing.is_empty() {
            for name in pieces.names.iter().chain([&owner]) {
                self.texts.forget(&source.join(name));
            }
            return Ok((Gathered::Whole, has_taken));
        }
        let grown = missing
            .iter()
            .filter_map(|name| self.last_growth(name))
            .max();
        let moved = grown.map_or(moved, |grown| moved.max(grown));
        // What was published by one rename grows no more.
        let own = format!("{}/", job.memory.drop);
        let is_final = job.memory.kind == DropKind::Directory
            && missing.iter().all(|name| name.starts_with(&own));
        let overdue = is_final || moved.elapsed() >= self.terms.incomplete_timeout;
        let names = missing.clone();
        self.wanted.insert(job.id(), Wanted { names, moved });
        let names = missing;
        Ok((Gathered::Missing { names, overdue }, has_taken))
    }

    fn last_growth(&mut self, name: &str) -> Option<Instant> {
        let path = self.path(name);
        let quiet = self.stillness.unchanged_for(Path::new(&path))?;
        Instant::now().checked_sub(quiet)
    }
}
