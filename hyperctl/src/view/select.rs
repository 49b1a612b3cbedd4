//! Which daemons a command is about: one by name or directories, or every one that there is.
use std::path::PathBuf;

use queue::instance::exports::{self, ExportsConfig};
use queue::instance::{self, Config, DEFAULT, Instance};
use queue::job::name::EXPORT_SERVICE;

use super::migration::{self, Joined};
use super::{Heartbeat, Migration, Place, Role, job};
use crate::args;
use crate::outcome::{Result, Stop};

/// What a command about jobs looks at: the instances it is about, and the export service, whose
/// records say where a VM comes from.
#[derive(Debug, Clone)]
pub struct Scope {
    pub places: Vec<Place>,
    /// The one that was named.
    instance: Option<String>,
    /// Why daemons that may be meant are not looked at.
    notes: Vec<String>,
}

impl Scope {
    pub fn of(typed: &args::Place) -> Result<Self> {
        let names_exports = typed.instance.as_deref() == Some(EXPORT_SERVICE);
        let Daemons {
            mut places,
            mut notes,
        } = match names_exports && typed.watch_dir.is_none() {
            true => {
                export_service()?;
                daemons(&args::Place::default())?
            }
            false => daemons(typed)?,
        };
        let by_name = typed.watch_dir.is_none() && typed.instance.is_some();
        if by_name && !names_exports {
            match export_service_if_there() {
                Ok(service) => places.extend(service),
                Err(error) => notes.push(job::describe(&error)),
            }
        }
        Ok(Self {
            places,
            instance: typed.instance.clone(),
            notes,
        })
    }

    /// One instance and the export service.
    pub fn of_export(exports: &Place, target: &Place) -> Self {
        Self {
            places: vec![target.clone(), exports.clone()],
            instance: None,
            notes: Vec::new(),
        }
    }

    pub fn place(&self, instance: &str) -> Option<&Place> {
        self.places.iter().find(|place| place.instance == instance)
    }

    /// Where VMs come from, if it is looked at.
    pub fn export_service(&self) -> Option<&Place> {
        self.places.iter().find(|place| place.role == Role::Export)
    }

    /// Whether it is of the instance that was named, or may be: an export's record need not say.
    pub fn wants(&self, migration: &Migration) -> bool {
        match self.instance.as_deref() {
            None => true,
            Some(EXPORT_SERVICE) => migration.export().is_some(),
            Some(name) => [name, EXPORT_SERVICE].contains(&migration.instance()),
        }
    }

    /// Everything that is wanted.
    pub fn read(&self) -> Result<Joined> {
        let (shelves, notes) = super::read(&self.places)?;
        let mut joined = migration::join(shelves);
        joined.migrations.retain(|migration| self.wants(migration));
        joined.notes = [self.notes.clone(), notes].concat();
        Ok(joined)
    }
}

/// The daemons to look at, and why others that there are cannot be.
pub struct Daemons {
    pub places: Vec<Place>,
    pub notes: Vec<String>,
}

/// The daemon that was named, else every one that is known: what is wrong with the configuration
/// of one hides none of the others.
pub fn daemons(typed: &args::Place) -> Result<Daemons> {
    if typed.instance.is_some() || typed.watch_dir.is_some() {
        return Ok(Daemons {
            places: vec![chosen(typed)?],
            notes: Vec::new(),
        });
    }
    let mut names = Instance::discover()?;
    if names.is_empty() {
        names.push(DEFAULT.to_owned());
    }
    let instances = names.iter().map(|name| load(name).map(Some));
    let mut places = Vec::new();
    let mut errors = Vec::new();
    for found in instances.chain([export_service_if_there()]) {
        match found {
            Ok(place) => places.extend(place),
            Err(error) => errors.push(error),
        }
    }
    let notes = errors.iter().map(job::describe).collect();
    match errors.into_iter().next() {
        Some(error) if places.is_empty() => Err(error.into()),
        _ => Ok(Daemons { places, notes }),
    }
}

/// The one daemon to steer: the one that was named, else the default instance's.
pub fn chosen(typed: &args::Place) -> Result<Place> {
    if let (Some(queue), Some(output)) = (&typed.watch_dir, &typed.output_dir) {
        return by_directories(typed.instance.as_deref(), queue.clone(), output.clone());
    }
    let Some(name) = &typed.instance else {
        return Ok(load(DEFAULT)?);
    };
    if name == EXPORT_SERVICE {
        return Ok(export_service()?);
    }
    let place = load(name)?;
    let exists = name == DEFAULT || instance::config_path(name).exists() || place.exists();
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

/// The export service, whether it was ever started here or not.
pub fn export_service() -> queue::error::Result<Place> {
    let instance = ExportsConfig::load(&exports::config_path())?.instance();
    Ok(Place {
        instance: instance.name,
        role: Role::Export,
        directories: instance.directories,
        service: Some(format!("{EXPORT_SERVICE}.service")),
    })
}

fn export_service_if_there() -> queue::error::Result<Option<Place>> {
    let place = export_service()?;
    let exists = exports::config_path().exists() || place.exists();
    Ok(exists.then_some(place))
}

fn load(name: &str) -> queue::error::Result<Place> {
    let instance = Instance::load(name)?;
    Ok(Place {
        role: Role::Convert,
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
    let is_name = |name: &str| name == EXPORT_SERVICE || instance::check_name(name).is_ok();
    let said = || {
        let heartbeat = Heartbeat::read(&directories).ok().flatten()?;
        let name = heartbeat.status().instance.clone();
        is_name(&name).then_some(name)
    };
    let name = match name {
        Some(name) if !is_name(name) => {
            instance::check_name(name)?;
            name.to_owned()
        }
        Some(name) => name.to_owned(),
        None => said().unwrap_or_else(|| DEFAULT.to_owned()),
    };
    Ok(Place {
        role: match name == EXPORT_SERVICE {
            true => Role::Export,
            false => Role::Convert,
        },
        instance: name,
        directories,
        service: None,
    })
}
