//! Which daemons a command is about: one by name or directories, or every instance there is.
use std::path::PathBuf;

use queue::instance::{self, Config, DEFAULT, Instance};

use super::{Heartbeat, Place};
use crate::args;
use crate::outcome::{Result, Stop};

/// The instances to read: the one that was named, else every one that is known.
pub fn every(typed: &args::Place) -> Result<Vec<Place>> {
    if typed.instance.is_some() || typed.watch_dir.is_some() {
        return Ok(vec![chosen(typed)?]);
    }
    let mut names = Instance::discover()?;
    if names.is_empty() {
        names.push(DEFAULT.to_owned());
    }
    names.iter().map(|name| load(name)).collect()
}

/// The one instance to steer: the one that was named, else the default.
pub fn chosen(typed: &args::Place) -> Result<Place> {
    if let (Some(queue), Some(output)) = (&typed.watch_dir, &typed.output_dir) {
        return by_directories(typed.instance.as_deref(), queue.clone(), output.clone());
    }
    let Some(name) = &typed.instance else {
        return load(DEFAULT);
    };
    let place = load(name)?;
    let exists = name == DEFAULT
        || instance::config_path(name).exists()
        || place.directories.queue.exists()
        || place.directories.output.exists();
    if exists {
        return Ok(place);
    }
    Err(Stop::usage(format!(
        "there is no instance {name}: neither {} nor {} exists",
        instance::config_path(name).display(),
        place.directories.queue.display()
    ))
    .with_remedy("`hyperctl daemon list` shows the instances"))
}

fn load(name: &str) -> Result<Place> {
    let instance = Instance::load(name)?;
    Ok(Place {
        service: Some(instance.service()),
        instance: instance.name,
        directories: instance.directories,
    })
}

/// A daemon that was started on directories of its own; its heartbeat says what it is called.
fn by_directories(name: Option<&str>, queue: PathBuf, output: PathBuf) -> Result<Place> {
    for dir in [&queue, &output] {
        if !dir.is_dir() {
            return Err(Stop::usage(format!("{} is not a directory", dir.display()))
                .with_remedy("give the directories that the daemon was started with"));
        }
    }
    let config = Config {
        watch_dir: Some(queue),
        output_dir: Some(output),
        ..Config::default()
    };
    let directories = Instance::with_config(DEFAULT, config).directories;
    let said = || {
        let heartbeat = Heartbeat::read(&directories).ok().flatten()?;
        let name = heartbeat.status().instance.clone();
        instance::check_name(&name).is_ok().then_some(name)
    };
    let name = match name {
        Some(name) => {
            instance::check_name(name)?;
            name.to_owned()
        }
        None => said().unwrap_or_else(|| DEFAULT.to_owned()),
    };
    Ok(Place {
        instance: name,
        directories,
        service: None,
    })
}
