//! Undo: every file that the repair changed is put back as it was, byte for byte, all or none.
use std::path::Path;

use super::appliance::guest as failure;
use super::bench::Bench;
use super::inspect::{self, Found};
use super::model::Entry;
use super::overlay::{self, Image, Overlays, Shelf};
use super::report::{Change, ChangeReport, LINK, mark};
use super::{Case, accel};
use crate::disk::Observer;
use crate::error::{Error, Result};

/// Puts the files back on the published images of `directory`; returns their paths in the guest.
/// A file that is neither as the repair left it nor as it was is refused, unless `force`.
pub fn undo(
    case: &Case<'_>,
    directory: &Path,
    images: &[Image],
    force: bool,
    shelf: &Shelf<'_>,
    observer: &dyn Observer,
) -> Result<Vec<String>> {
    // An undo that died in the middle of its commit.
    overlay::redo(directory)?;
    let mut report = ChangeReport::read(directory)?;
    if !report.repaired {
        return Err(
            Error::invalid(format!("{} was not repaired", directory.display()))
                .with_remedy("there is nothing to undo"),
        );
    }
    let overlays = Overlays::create(directory, images)?;
    let drives = overlays.drives()?;
    let (mut session, _) = accel::launch(case.site, case.settings.accel, &drives, observer)?;
    if let Found::Nothing(refusal) = inspect::inspect(&mut session, case, false)? {
        return Err(failure(refusal.text));
    }
    let mut bench = Bench::new(&mut session);
    let mut restored = Vec::new();
    for change in &report.changes {
        put_back(&mut bench, directory, change, force)?;
        restored.push(change.path.clone());
    }
    session.shutdown()?;
    overlays.commit_durably(shelf)?;
    report.repaired = false;
    report.code = Some("undone".to_owned());
    report.reason = Some("the repair was undone".to_owned());
    report.write(directory)?;
    Ok(restored)
}

fn put_back(
    bench: &mut Bench<'_, '_>,
    directory: &Path,
    change: &Change,
    force: bool,
) -> Result<()> {
    let link = change
        .before
        .as_deref()
        .and_then(|before| before.strip_prefix(LINK));
    let original = match (&change.original, link) {
        (_, Some(target)) => Entry::Link(target.to_owned()),
        (None, None) => Entry::Nothing,
        (Some(name), None) => {
            let path = directory.join(plain(name)?);
            let bytes = std::fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
            Entry::File(bytes)
        }
    };
    if mark(&original) != change.before {
        return Err(
            Error::invalid(format!("the original of {} is damaged", change.path))
                .with_remedy("convert the source again"),
        );
    }
    let found = mark(&bench.entry(&change.path)?);
    if !force && found != change.after && found != change.before {
        let context = format!("{} was changed after the repair", change.path);
        return Err(Error::invalid(context).with_remedy("--force puts the original in its place"));
    }
    bench.put(&change.path, original, "undo")
}

/// `undo/<number>`: nothing else is an original's name.
fn plain(name: &str) -> Result<&str> {
    let number = name.strip_prefix("undo/").unwrap_or_default();
    let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    is_number.then_some(name).ok_or_else(|| {
        Error::invalid(format!("{name:?} is no original's name"))
            .with_remedy("give the result as it was published")
    })
}
