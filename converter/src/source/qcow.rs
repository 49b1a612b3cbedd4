//! qcow2 with its backing files and data files.
//!
//! All of them are opened by the caller's lookup, never by path: names that mean more to QEMU than
//! a file (`nbd:`, `json:` …) are refused. What a backing file is, its content says.
use std::path::Path;

use super::content::{Claim, Content, open_plain};
use super::overlay::Overlay;
use super::{Lookup, parent};
use crate::disk::{Image, Window, unsupported};
use crate::error::Result;
use crate::qcow2::{Backing, Qcow2Image};

/// Opens a qcow2 and what it names. Also returns what was read over.
pub(super) fn open(
    mut window: Window,
    lookup: Lookup<'_>,
) -> Result<(Box<dyn Image>, Vec<String>)> {
    let mut directory = String::new();
    let mut uppers: Vec<Qcow2Image> = Vec::new();
    let mut paths = Vec::new();
    let mut notes = Vec::new();
    let mut lower: Option<Box<dyn Image>> = None;
    loop {
        let path = window.path().to_path_buf();
        let (mut image, references) = Qcow2Image::open(window)?;
        if references.snapshots > 0 {
            notes.push(format!(
                "{} has {} snapshots, which are left out",
                path.display(),
                references.snapshots
            ));
        }
        if let Some(name) = references.data_file {
            image = image.with_data_file(lookup(&place(&path, &directory, &name)?)?);
        }
        uppers.push(image);
        let Some(backing) = references.backing else {
            break;
        };
        parent::check_chain(&path, uppers.len(), paths.contains(&path))?;
        let name = place(&path, &directory, &backing.name)?;
        directory = name
            .rsplit_once('/')
            .map_or("", |(above, _)| above)
            .to_owned();
        let below = open_below(&name, lookup)?;
        let claim = claim(&path, &backing, &name)?;
        let content = Content::of(&below)?;
        claim.check(content, below.path())?;
        if content != Content::Qcow {
            let beside = |name: &str| lookup(&within(&directory, name));
            lower = Some(open_plain(below, &name, &claim, &beside)?.image);
            break;
        }
        window = below;
        paths.push(path);
    }
    let base = lower.or_else(|| uppers.pop().map(|base| Box::new(base) as Box<dyn Image>));
    let base = base.ok_or_else(|| unsupported(Path::new("qcow2"), "a chain without a disk"))?;
    Ok((Overlay::stack_over(base, uppers), notes))
}

/// What a name in the image at `path` is called from where the lookup begins.
fn place(path: &Path, directory: &str, name: &str) -> Result<String> {
    let first = name.split('/').next().unwrap_or_default();
    if first.contains(':') {
        let what = format!("a qcow2 that names {name:?}, which is no plain file,");
        return Err(unsupported(path, what).with_remedy("give it one image without a backing file"));
    }
    Ok(within(directory, name))
}

/// Opens a backing file. An absolute path is taken at its word: to put the file beside the image
/// would not help.
fn open_below(name: &str, lookup: Lookup<'_>) -> Result<Window> {
    lookup(name).map_err(|error| match name.rsplit_once('/') {
        Some((_, last)) if name.starts_with('/') => error.with_remedy(format!(
            "put {last:?} beside the image and name it so with qemu-img rebase -u -b {last:?}, or \
             add its directory to source_roots"
        )),
        _ => error,
    })
}

fn within(directory: &str, name: &str) -> String {
    if directory.is_empty() || name.starts_with('/') {
        name.to_owned()
    } else {
        format!("{directory}/{name}")
    }
}

/// The format that the image states, else the one that the name claims.
fn claim(path: &Path, backing: &Backing, name: &str) -> Result<Claim> {
    match &backing.format {
        Some(format) => Claim::by_statement("the backing format", format, path),
        None => Ok(Claim::by_name(name)),
    }
}
