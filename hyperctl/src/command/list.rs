//! `list`: every job there is, without its log, and the drops that are to become jobs.
use std::cmp::Reverse;
use std::time::SystemTime;

use queue::job::{JobId, JobState};
use serde_json::{Value, json};

use crate::args;
use crate::outcome::{Exit, Result};
use crate::render::table::{Cell, Flexible, Table};
use crate::render::{self, Colour, Style, job};
use crate::view::{self, Job, Shelf, Unclaimed};

pub fn run(args: &args::List) -> Result<Exit> {
    let (shelves, notes) = view::read(view::every(&args.place)?)?;
    let rows = rows(&shelves, &args.status);
    if args.json {
        let values = rows.iter().map(Row::to_json).collect();
        render::print_json(&Value::Array(values))?;
    } else {
        let style = Style::detect();
        render::print(&table(&rows, shelves.len() > 1, &style))?;
    }
    render::notes(&notes);
    Ok(Exit::Done)
}

/// What a line is about.
#[derive(Debug)]
enum Row<'a> {
    Job(&'a Job),
    Drop {
        instance: &'a str,
        drop: &'a Unclaimed,
    },
}

impl Row<'_> {
    fn to_json(&self) -> Value {
        match self {
            Row::Job(job) => {
                let mut value = job.to_json();
                if let Some(fields) = value.as_object_mut() {
                    fields.remove("log");
                }
                value
            }
            Row::Drop { instance, drop } => json!({
                "state": "new", "instance": instance, "drop": drop.name, "reason": drop.reason,
            }),
        }
    }

    fn state(&self) -> String {
        match self {
            Row::Job(job) => job.state(),
            Row::Drop { .. } => "new".to_owned(),
        }
    }

    /// Running jobs, the queue in its order, drops, then the finished ones, newest first.
    fn rank(&self) -> (u8, u64, Reverse<Option<JobId>>) {
        match self {
            Row::Drop { .. } => (2, 0, Reverse(None)),
            Row::Job(job) if job.is(JobState::Queued) => {
                (1, job.position.unwrap_or(u64::MAX), Reverse(None))
            }
            Row::Job(job) if job.is_final() => (3, 0, Reverse(Some(job.id()))),
            Row::Job(_) => (0, 0, Reverse(None)),
        }
    }
}

fn rows<'a>(shelves: &'a [Shelf], wanted: &[args::Filter]) -> Vec<Row<'a>> {
    let mut rows = Vec::new();
    for shelf in shelves {
        rows.extend(shelf.jobs.iter().map(Row::Job));
        rows.extend(shelf.drops.iter().map(|drop| Row::Drop {
            instance: &shelf.place.instance,
            drop,
        }));
    }
    if !wanted.is_empty() {
        rows.retain(|row| wanted.iter().any(|filter| filter.as_str() == row.state()));
    }
    rows.sort_by_key(Row::rank);
    rows
}

fn table(rows: &[Row], with_instance: bool, style: &Style) -> String {
    let now = SystemTime::now();
    let mut header = vec!["VM", "STATE", "AGE", "JOB", "DETAIL"];
    let mut flexible = vec![(0, 16), (4, 12), (0, 8)];
    if with_instance {
        header.insert(0, "INSTANCE");
        flexible = vec![(1, 16), (5, 12), (0, 8), (1, 8), (5, 8), (0, 5), (5, 3)];
    }
    let flexible = flexible.into_iter();
    let flexible = flexible.map(|(column, narrowest)| Flexible { column, narrowest });
    let mut table = Table::new(header, flexible.collect());
    for row in rows {
        let (instance, mut cells) = match row {
            Row::Job(job) => {
                let state = job.state();
                let cells = vec![
                    Cell::new(&job.record().vm_name),
                    Cell::painted(job::colour(&state), &state),
                    Cell::new(job::age(job, now)),
                    Cell::painted(Colour::Dim, job.id().to_string()),
                    Cell::new(job::detail(job, now)),
                ];
                (job.instance.as_str(), cells)
            }
            Row::Drop { instance, drop } => {
                let cells = vec![
                    Cell::new(&drop.name),
                    Cell::new("new"),
                    Cell::new(""),
                    Cell::new(""),
                    Cell::new(&drop.reason),
                ];
                (*instance, cells)
            }
        };
        if with_instance {
            cells.insert(0, Cell::new(instance));
        }
        table.add(cells);
    }
    table.to_text(style)
}

#[cfg(test)]
mod tests {
    use queue::error::{Error, ErrorKind};
    use queue::instance::Directories;
    use queue::job::Record;
    use queue::job::record::timestamp;

    use super::*;
    use crate::render::text::width;

    #[test]
    fn every_line_fits_into_eighty_columns_with_its_whole_id() {
        let top = tempfile::tempdir().unwrap();
        let [queue, output, work] = ["queue", "output", "work"].map(|name| top.path().join(name));
        let directories = Directories {
            queue,
            output,
            work,
        };
        std::fs::create_dir_all(directories.records()).unwrap();
        let instance = "vsphere-prod-frankfurt";
        for state in [JobState::Processing, JobState::Failed] {
            let id = JobId::new();
            let mut record = Record::new(id, "web-frontend-production", instance, "web.vmdk");
            record.state = state;
            let began = SystemTime::now() - std::time::Duration::from_secs(86_400 * 12 + 3600 * 23);
            record.created_at = timestamp(began);
            let error = Error::new(ErrorKind::Corrupt, "grain 7 of web.vmdk is damaged");
            record.error = Some((&error).into());
            let text = serde_json::to_vec(&record).unwrap();
            std::fs::write(directories.record(id), text).unwrap();
        }
        let jobs = view::job::read_all(&directories, instance).unwrap().jobs;
        let rows: Vec<Row> = jobs.iter().map(Row::Job).collect();
        assert_eq!(rows.len(), 2);
        for with_instance in [false, true] {
            let text = table(&rows, with_instance, &Style::plain(Some(80)));
            assert!(text.lines().all(|line| width(line) <= 80), "{text}");
            assert!(jobs.iter().all(|job| text.contains(&job.id().to_string())));
        }
    }
}
