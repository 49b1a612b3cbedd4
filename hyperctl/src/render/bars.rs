//! One updating line per job on a terminal, while jobs are followed.
use std::collections::BTreeMap;
use std::time::SystemTime;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use queue::job::{JobId, JobState};

use super::style::Style;
use super::text::{clean, pad};
use super::{job, quantity};
use crate::outcome::{Result, Stop};
use crate::view::Job;

const NAME_COLUMNS: usize = 20;
const BAR_COLUMNS: usize = 20;

/// The lines at the bottom of the terminal.
#[derive(Debug)]
pub struct Bars {
    style: Style,
    all: MultiProgress,
    bars: BTreeMap<JobId, ProgressBar>,
}

impl Bars {
    pub fn new(style: Style) -> Self {
        Self {
            style,
            all: MultiProgress::with_draw_target(ProgressDrawTarget::stdout()),
            bars: BTreeMap::new(),
        }
    }

    /// Redraws the line of a job.
    pub fn show(&mut self, job: &Job, now: SystemTime) -> Result<()> {
        if !self.bars.contains_key(&job.id()) {
            let template = ProgressStyle::with_template("{msg}")
                .map_err(|error| Stop::new(crate::outcome::Exit::Failed, error.to_string()))?;
            let bar = self.all.add(ProgressBar::new(1).with_style(template));
            self.bars.insert(job.id(), bar);
        }
        if let Some(bar) = self.bars.get(&job.id()) {
            bar.set_message(self.line(job, now));
        }
        Ok(())
    }

    /// Takes a job's line away and leaves text above the others in its place.
    pub fn end(&mut self, id: JobId, text: &str) -> Result<()> {
        if let Some(bar) = self.bars.remove(&id) {
            bar.finish_and_clear();
        }
        self.above(text)
    }

    /// Prints text above the lines.
    pub fn above(&self, text: &str) -> Result<()> {
        self.all.suspend(|| super::print(text))
    }

    fn line(&self, job: &Job, now: SystemTime) -> String {
        if !job.is(JobState::Processing) {
            return self.cut(&job::line(job, now));
        }
        let name = self.style.fit(&clean(&job.record().vm_name), NAME_COLUMNS);
        let several = self.bars.len() > 1;
        let name = pad(&name, if several { NAME_COLUMNS } else { 0 });
        let bar = self.style.bar(job.percent(), BAR_COLUMNS);
        let columns = self.style.columns.unwrap_or(80);
        let percent = format!("{:>3.0}%", job.percent().floor());
        let taken = super::text::width(&name) + BAR_COLUMNS + percent.len() + 3;
        let rest = format!("{}  {}", clean(&job.phase()), facts(job));
        let room = columns.saturating_sub(taken + 1);
        format!("{name} {bar} {percent} {}", self.style.fit(&rest, room))
    }

    fn cut(&self, text: &str) -> String {
        self.style
            .fit(text, self.style.columns.unwrap_or(80).saturating_sub(1))
    }
}

/// Rate first: on a narrow terminal the end is cut.
fn facts(job: &Job) -> String {
    let progress = &job.record().progress;
    let mut facts = Vec::new();
    if progress.rate_bytes_per_second > 0 {
        facts.push(format!(
            "{}/s",
            quantity::bytes(progress.rate_bytes_per_second)
        ));
    }
    facts.extend(progress.eta_seconds.map(job::left));
    facts.extend(job::which_disk(progress));
    if progress.bytes_total > 0 {
        let total = quantity::bytes(progress.bytes_total);
        facts.push(format!(
            "{} of {total}",
            quantity::bytes(progress.bytes_done)
        ));
    }
    facts.join("  ")
}
