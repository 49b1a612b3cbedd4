//! `hyper2kvm undo`: the guest of a published result as it was before its repair.
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use converter::convert::examine::{Care, cache_dir};
use converter::convert::reverse;
use converter::error::{Error, Result};
use converter::guest::overlay::Shelf;
use queue::durable::{self, HostVolume, Volume};
use queue::instance::Config;

use crate::args::UndoArgs;
use crate::inspect::read_keys;
use crate::output;
use crate::progress::{Interrupt, Progress};

pub fn run(args: &UndoArgs) -> ExitCode {
    match undo(args) {
        Ok(paths) => {
            paths.iter().for_each(|path| output::line(path));
            ExitCode::SUCCESS
        }
        Err(error) => output::trouble(&error, false, output::FAILED),
    }
}

fn undo(args: &UndoArgs) -> Result<Vec<String>> {
    let directory = directory(&args.result)?;
    let mut settings = Config::default().guest;
    settings.accel = args.accel.into();
    let mut caring = Care::of(&settings, &cache_dir());
    caring.keys.extend(read_keys(&args.key_files)?);
    let interrupt = Interrupt::listen()?;
    let progress = Progress::new(0, true, &interrupt);
    let shelf = Shelf {
        sync: &|path| HostVolume.sync(path),
        replace: &|path, bytes| durable::replace(&HostVolume, path, bytes),
    };
    reverse::undo(&directory, &caring, args.force, &shelf, &progress)
}

/// The directory of a result that is named by itself, by its image, or by its link.
fn directory(result: &Path) -> Result<PathBuf> {
    let found = result
        .canonicalize()
        .map_err(|error| Error::io("find", result, error))?;
    if found.is_dir() {
        return Ok(found);
    }
    Ok(found.parent().map_or(found.clone(), Path::to_path_buf))
}
