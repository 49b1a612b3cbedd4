//! `list`: every VM there is, without its logs, and the drops that are to become jobs.
use std::cmp::Reverse;
use std::time::SystemTime;

use queue::job::{JobId, JobState};
use serde_json::{Value, json};

use crate::args;
use crate::outcome::{Exit, Result};
use crate::render::table::{Cell, Flexible, Table};
use crate::render::{self, Colour, Style, job, migration};
use crate::view::migration::Joined;
use crate::view::{Migration, Place, Role, Scope, Unclaimed};

pub fn run(args: &args::List) -> Result<Exit> {
    let scope = Scope::of(&args.place)?;
    let joined = scope.read()?;
    let rows = rows(&joined, &args.status);
    if args.json {
        let values = rows.iter().map(Row::to_json).collect();
        render::print_json(&Value::Array(values))?;
    } else {
        let style = Style::detect();
        render::print(&table(&rows, scope.places.len() > 1, &style))?;
    }
    render::notes(&joined.notes);
    Ok(Exit::Done)
}

/// What a line is about.
#[derive(Debug)]
enum Row<'a> {
    Migration(&'a Migration),
    Drop {
        place: &'a Place,
        drop: &'a Unclaimed,
    },
}

impl Row<'_> {
    fn to_json(&self) -> Value {
        match self {
            Row::Migration(migration) => {
                let mut value = migration.to_json();
                for part in ["/export", "/conversion", ""] {
                    let part = value.pointer_mut(part).and_then(Value::as_object_mut);
                    part.and_then(|fields| fields.remove("log"));
                }
                value
            }
            Row::Drop { place, drop } => {
                let mut value = json!({
                    "state": "new", "instance": place.instance,
                    "drop": drop.name, "reason": drop.reason,
                });
                if let (Role::Export, Some(fields)) = (place.role, value.as_object_mut()) {
                    fields.insert("vm_name".to_owned(), json!(drop.vm));
                }
                value
            }
        }
    }

    fn state(&self) -> String {
        match self {
            Row::Migration(migration) => migration.state(),
            Row::Drop { .. } => "new".to_owned(),
        }
    }

    /// Running jobs, the queue in its order, drops, then the finished ones, newest first.
    fn rank(&self) -> (u8, u64, Reverse<Option<JobId>>) {
        match self {
            Row::Drop { .. } => (2, 0, Reverse(None)),
            Row::Migration(found) if found.is(JobState::Queued) => {
                let position = found.current().position;
                (1, position.unwrap_or(u64::MAX), Reverse(None))
            }
            Row::Migration(found) if found.is_final() => {
                (3, 0, Reverse(Some(found.current().id())))
            }
            Row::Migration(_) => (0, 0, Reverse(None)),
        }
    }

    /// VM, state, age, job, detail.
    fn cells(&self, now: SystemTime) -> Vec<Cell> {
        match self {
            Row::Migration(found) => {
                let state = found.state();
                vec![
                    Cell::new(found.vm_name()),
                    Cell::painted(job::colour(&state), &state),
                    Cell::new(migration::age(found, now)),
                    Cell::painted(Colour::Dim, found.current().id().to_string()),
                    Cell::new(migration::detail(found, now)),
                ]
            }
            Row::Drop { place, drop } => {
                let name = match place.role {
                    Role::Convert => &drop.name,
                    Role::Export => &drop.vm,
                };
                let cells = [name.as_str(), "new", "", "", &drop.reason];
                cells.map(Cell::new).to_vec()
            }
        }
    }

    fn instance(&self) -> &str {
        match self {
            Row::Migration(found) => found.instance(),
            Row::Drop { place, .. } => &place.instance,
        }
    }
}

fn rows<'a>(joined: &'a Joined, wanted: &[args::Filter]) -> Vec<Row<'a>> {
    let migrations = joined.migrations.iter().map(Row::Migration);
    let drops = joined.drops.iter();
    let drops = drops.map(|(place, drop)| Row::Drop { place, drop });
    let mut rows: Vec<Row> = migrations.chain(drops).collect();
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
        let mut cells = row.cells(now);
        if with_instance {
            cells.insert(0, Cell::new(row.instance()));
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
    use crate::view;

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
        let found: Vec<Migration> = jobs.iter().cloned().map(Migration::Plain).collect();
        let rows: Vec<Row> = found.iter().map(Row::Migration).collect();
        assert_eq!(rows.len(), 2);
        for with_instance in [false, true] {
            let text = table(&rows, with_instance, &Style::plain(Some(80)));
            assert!(text.lines().all(|line| width(line) <= 80), "{text}");
            assert!(jobs.iter().all(|job| text.contains(&job.id().to_string())));
        }
    }
}
