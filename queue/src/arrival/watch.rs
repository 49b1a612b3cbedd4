//! The watch on the queue directory and on `.control/`. Events are hints; the directory is the
//! truth.
use std::path::Path;

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use crate::error::{Error, Result};
use crate::instance::Directories;

/// What an event hints at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// Renamed into the queue directory: whole.
    Moved(String),
    /// Created, or closed after writing.
    Touched(String),
    /// Something in `.control/`.
    Control,
    /// Events were lost: look at everything.
    Rescan,
}

/// An armed watch; hints stop when it is dropped.
pub struct Watch {
    _watcher: RecommendedWatcher,
}

/// Arms the watch. `on_hint` is called from the watcher's own thread and must not block.
pub fn arm(
    directories: &Directories,
    mut on_hint: impl FnMut(Hint) + Send + 'static,
) -> Result<Watch> {
    let control = directories.control();
    let queue = directories.queue.clone();
    let places = (queue.clone(), control.clone());
    let mut watcher =
        notify::recommended_watcher(move |event: notify::Result<notify::Event>| match event {
            Ok(event) if event.need_rescan() => on_hint(Hint::Rescan),
            Ok(event) => hints(&event, &places.0, &places.1)
                .into_iter()
                .for_each(&mut on_hint),
            Err(_) => on_hint(Hint::Rescan),
        })
        .map_err(|error| failed("create a watch for", &queue, error))?;
    for dir in [&queue, &control] {
        watcher
            .watch(dir, RecursiveMode::NonRecursive)
            .map_err(|error| failed("watch", dir, error))?;
    }
    Ok(Watch { _watcher: watcher })
}

fn failed(doing: &str, path: &Path, error: notify::Error) -> Error {
    Error::new(
        crate::error::ErrorKind::Io,
        format!("{doing} {}", path.display()),
    )
    .with_remedy("raise fs.inotify.max_user_watches and max_user_instances if it is a limit")
    .with_source(error)
}

fn hints(event: &notify::Event, queue: &Path, control: &Path) -> Vec<Hint> {
    let moved = matches!(
        event.kind,
        EventKind::Modify(ModifyKind::Name(RenameMode::To))
    );
    let touched = moved
        || matches!(
            event.kind,
            EventKind::Create(_) | EventKind::Access(AccessKind::Close(AccessMode::Write))
        );
    if !touched {
        return Vec::new();
    }
    event
        .paths
        .iter()
        .filter_map(|path| hint(path, moved, queue, control))
        .collect()
}

fn hint(path: &Path, moved: bool, queue: &Path, control: &Path) -> Option<Hint> {
    let place = path.parent()?;
    if place == control {
        return Some(Hint::Control);
    }
    let name = path.file_name()?.to_str()?.to_owned();
    if place != queue || name.starts_with('.') {
        return None;
    }
    Some(if moved {
        Hint::Moved(name)
    } else {
        Hint::Touched(name)
    })
}
