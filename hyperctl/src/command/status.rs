//! `status` and `wait`: jobs as they are now, or until they have ended.
use std::time::SystemTime;

use serde_json::{Value, json};

use super::follow::{Limits, Show, follow};
use crate::args;
use crate::outcome::{Exit, Result, Stop};
use crate::render::{self, Style, migration};
use crate::view::find::{Found, search, search_patiently};
use crate::view::{Migration, Scope};

pub fn run(args: &args::Status) -> Result<Exit> {
    let scope = Scope::of(&args.place)?;
    let searched = search_patiently(&scope, &args.which)?;
    render::notes(&searched.notes);
    for found in &searched.found {
        if let Found::Nothing { vm } = found {
            return Err(nothing(vm));
        }
    }
    if args.follow {
        let mut show = Show::detect(args.json);
        if !args.json {
            announce(&searched.found);
        }
        let (exit, _) = follow(
            searched.found,
            &scope,
            &mut show,
            &Limits::after(args.timeout),
        )?;
        return timed_out(exit);
    }
    if args.json {
        let mut values: Vec<Value> = searched.found.iter().map(to_json).collect();
        let value = match values.len() {
            1 => values.remove(0),
            _ => Value::Array(values),
        };
        render::print_json(&value)?;
    } else {
        let style = Style::detect();
        let now = SystemTime::now();
        let blocks: Vec<String> = searched
            .found
            .iter()
            .map(|found| block(found, &style, now))
            .collect();
        render::print(&blocks.join("\n"))?;
    }
    Ok(Exit::Done)
}

pub fn wait(args: &args::Wait) -> Result<Exit> {
    let scope = Scope::of(&args.place)?;
    let searched = search(&scope, &args.which)?;
    render::notes(&searched.notes);
    announce(&searched.found);
    let limits = Limits::after(args.timeout);
    let (exit, found) = follow(searched.found, &scope, &mut Show::Nothing, &limits)?;
    if args.json {
        render::print_json(&found.iter().map(Migration::to_json).collect())?;
    } else {
        let style = Style::detect();
        let now = SystemTime::now();
        let ended = found.iter().filter(|found| found.is_final());
        let endings = ended.map(|found| migration::ending(found, &style, now));
        render::print(&endings.collect::<String>())?;
    }
    timed_out(exit)
}

pub fn nothing(vm: &str) -> Stop {
    Stop::usage(format!("there is no job of a VM named {vm:?}"))
        .with_remedy("`hyperctl list` shows the jobs and what is not claimed yet")
}

fn timed_out(exit: Exit) -> Result<Exit> {
    match exit {
        Exit::TimedOut => Err(Stop::new(exit, "timed out before every job had ended")
            .with_remedy("`hyperctl list` shows the jobs and what is not claimed yet")),
        _ => Ok(exit),
    }
}

/// Says which jobs do not exist yet, so that waiting for a mistyped name is noticed.
fn announce(found: &[Found]) {
    for found in found {
        match found {
            Found::Migration(_) => {}
            Found::Drop { drop, vm, .. } => {
                render::say(&format!("{vm}: no job yet: {}", drop.told()));
            }
            Found::Nothing { vm } => {
                render::say(&format!("{vm}: no job of this VM yet; waiting for one"));
            }
        }
    }
}

fn to_json(found: &Found) -> Value {
    match found {
        Found::Migration(migration) => migration.to_json(),
        Found::Drop {
            place, drop, vm, ..
        } => json!({
            "state": "new", "instance": place.instance,
            "drop": drop.name, "reason": drop.reason, "vm_name": vm,
        }),
        Found::Nothing { vm } => json!({"state": null, "vm_name": vm}),
    }
}

fn block(found: &Found, style: &Style, now: SystemTime) -> String {
    match found {
        Found::Migration(found) => migration::block(found, style, now),
        Found::Drop {
            place, drop, vm, ..
        } => render::job::block_of_drop(vm, drop, &place.instance, style),
        Found::Nothing { .. } => String::new(),
    }
}
