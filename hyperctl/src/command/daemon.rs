//! `daemon status` and `daemon list`: the daemons, by their heartbeats and by systemd.
use std::time::SystemTime;

use queue::job::JobState;
use serde_json::Value;

use crate::args::{self, Operation};
use crate::outcome::{Exit, Result};
use crate::render::daemon::Daemon;
use crate::render::table::Table;
use crate::render::{self, Style};
use crate::view::{self, Life, Place, systemd};

pub fn run(args: &args::Daemon) -> Result<Exit> {
    let now = SystemTime::now();
    let known = view::daemons(&args.place)?;
    render::notes(&known.notes);
    let daemons = look(known.places, now)?;
    let operation = args.operation.or(args.op).unwrap_or(Operation::Status);
    if args.json {
        let values = daemons.iter().map(|daemon| daemon.to_json(now)).collect();
        render::print_json(&Value::Array(values))?;
    } else {
        let style = Style::detect();
        render::print(&match operation {
            Operation::Status => blocks(&daemons, &style, now),
            Operation::List => table(&daemons, &style, now),
        })?;
    }
    let there = daemons.iter().any(Daemon::is_responding);
    let lost = daemons.iter().any(Daemon::is_lost);
    Ok(match operation {
        Operation::Status if lost || !there => Exit::NoDaemon,
        Operation::Status if !known.notes.is_empty() => Exit::Usage,
        _ => Exit::Done,
    })
}

fn blocks(daemons: &[Daemon], style: &Style, now: SystemTime) -> String {
    let blocks: Vec<String> = daemons
        .iter()
        .map(|daemon| daemon.block(style, now))
        .collect();
    blocks.join("\n")
}

fn table(daemons: &[Daemon], style: &Style, now: SystemTime) -> String {
    let (header, flexible) = Daemon::columns();
    let mut table = Table::new(header, flexible);
    for daemon in daemons {
        table.add(daemon.row(now));
    }
    table.to_text(style)
}

fn look(places: Vec<Place>, now: SystemTime) -> Result<Vec<Daemon>> {
    let services: Vec<String> = places
        .iter()
        .filter_map(|place| place.service.clone())
        .collect();
    let units = systemd::units(&services);
    let mut daemons = Vec::with_capacity(places.len());
    for place in places {
        let heartbeat = place.heartbeat();
        if let Err(error) = &heartbeat {
            render::notes(&[view::job::describe(error)]);
        }
        let life = match &heartbeat {
            Ok(Some(heartbeat)) => heartbeat.life(now),
            Ok(None) => Life::Absent,
            Err(_) => Life::Timeless,
        };
        let heartbeat = heartbeat.ok().flatten();
        let queue_depth = match &heartbeat {
            Some(heartbeat) if life == Life::Responding => heartbeat.status().queue_depth,
            _ => waiting(&place)?,
        };
        // The queue may be closed to those who may read results.
        let unclaimed = match life {
            Life::Responding => place.drops().map_or(0, |drops| drops.len()),
            _ => 0,
        };
        daemons.push(Daemon {
            unit: place
                .service
                .as_ref()
                .and_then(|name| units.get(name))
                .cloned(),
            place,
            heartbeat,
            life,
            queue_depth,
            unclaimed,
        });
    }
    Ok(daemons)
}

/// What waits where no daemon counts it.
fn waiting(place: &Place) -> Result<u64> {
    let (shelves, _) = view::read(std::slice::from_ref(place))?;
    let count = shelves.iter().fold(0, |sum, shelf| {
        let queued = shelf.jobs.iter().filter(|job| job.is(JobState::Queued));
        sum + queued.count() + shelf.drops.len()
    });
    Ok(u64::try_from(count).unwrap_or(u64::MAX))
}
