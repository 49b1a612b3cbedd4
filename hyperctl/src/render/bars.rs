//! One updating line per VM on a terminal, while VMs are followed.
use std::collections::BTreeMap;
use std::time::SystemTime;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use queue::job::{JobId, JobState};

use super::style::Style;
use super::text::{clean, pad};
use super::{job, migration, quantity};
use crate::outcome::{Result, Stop};
use crate::view::{Job, Migration};

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

    /// Redraws the line of a VM.
    pub fn show(&mut self, found: &Migration, now: SystemTime) -> Result<()> {
        if !self.bars.contains_key(&found.id()) {
            let template = ProgressStyle::with_template("{msg}")
                .map_err(|error| Stop::new(crate::outcome::Exit::Failed, error.to_string()))?;
            let bar = self.all.add(ProgressBar::new(1).with_style(template));
            self.bars.insert(found.id(), bar);
        }
        if let Some(bar) = self.bars.get(&found.id()) {
            bar.set_message(self.line(found, now));
        }
        Ok(())
    }

    /// Takes a VM's line away and leaves text above the others in its place.
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

    /// Takes all lines away.
    pub fn clear(&self) -> Result<()> {
        let fail = |error: std::io::Error| Stop::from_output(&error);
        self.all.clear().map_err(fail)
    }

    fn line(&self, found: &Migration, now: SystemTime) -> String {
        let job = found.current();
        if !job.is(JobState::Processing) {
            return self.cut(&migration::line(found, now));
        }
        let name = self.style.fit(&clean(found.vm_name()), NAME_COLUMNS);
        let several = self.bars.len() > 1;
        let name = pad(&name, if several { NAME_COLUMNS } else { 0 });
        let bar = self.style.bar(job.percent(), BAR_COLUMNS);
        let columns = self.style.columns.unwrap_or(80);
        let percent = format!("{:>3.0}%", job.percent().floor());
        let taken = super::text::width(&name) + BAR_COLUMNS + percent.len() + 3;
        let rest = format!("{}  {}", clean(&migration::activity(found)), facts(job));
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
