//! The house style, checked: sizes, names, arrows between rooms and members, and who may rename.
//!
//! Every message is `file:line: rule`. unwrap, expect, panic and indexing are clippy's to refuse.
mod arrows;
mod sizes;
mod source;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use source::Source;

const BANNED: [&str; 8] = [
    "util", "utils", "common", "helper", "helpers", "misc", "stuff", "shared",
];

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every file of the tree, relative to its top; what is built or hidden is left out.
fn files() -> Result<Vec<PathBuf>> {
    let top = top();
    let mut found = Vec::new();
    let mut dirs = vec![PathBuf::new()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(top.join(&dir))? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_str().context("a file name that is not UTF-8")?;
            if name.starts_with('.') || name == "target" || name == "tmp" {
                continue;
            }
            let path = dir.join(name);
            match entry.file_type()? {
                kind if kind.is_dir() => dirs.push(path),
                kind if kind.is_file() => found.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    Ok(found)
}

fn rust_sources() -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for path in files()? {
        if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(top().join(&path))?;
            sources.push(Source::new(path, text));
        }
    }
    ensure!(sources.len() > 20, "only {} sources found", sources.len());
    Ok(sources)
}

/// What is wrong, one per line.
fn report(found: Vec<String>) -> Result<()> {
    ensure!(
        found.is_empty(),
        "{} found:\n{}",
        found.len(),
        found.join("\n")
    );
    Ok(())
}

#[test]
fn files_functions_and_lines_are_short() -> Result<()> {
    let sources = rust_sources()?;
    let mut found: Vec<_> = sources.iter().flat_map(sizes::check).collect();
    for path in files()? {
        let is_script = path.extension().is_some_and(|extension| extension == "sh");
        if is_script || path == Path::new("Makefile") {
            let text = std::fs::read_to_string(top().join(&path))?;
            found.extend(sizes::long_lines(&path, &text));
        }
    }
    report(found)
}

#[test]
fn every_file_begins_with_what_it_owns() -> Result<()> {
    report(rust_sources()?.iter().filter_map(sizes::opening).collect())
}

#[test]
fn names_say_something() -> Result<()> {
    let is_banned = |path: &PathBuf| {
        let mut parts = path
            .iter()
            .filter_map(|part| Path::new(part).file_stem()?.to_str());
        parts.any(|part| BANNED.contains(&part))
    };
    let found = files()?.into_iter().filter(is_banned);
    report(
        found
            .map(|path| format!("{}:1: a name that says nothing", path.display()))
            .collect(),
    )
}

#[test]
fn arrows_between_rooms_point_down() -> Result<()> {
    report(
        rust_sources()?
            .iter()
            .flat_map(arrows::between_rooms)
            .collect(),
    )
}

#[test]
fn the_layers_fit_the_folders() -> Result<()> {
    report(arrows::unplaced_rooms(&rust_sources()?))
}

#[test]
fn members_depend_on_the_queue_alone() -> Result<()> {
    let mut found = Vec::new();
    for member in ["queue", "converter", "exporter", "hyperctl"] {
        let path = Path::new(member).join("Cargo.toml");
        let text = std::fs::read_to_string(top().join(&path))?;
        found.extend(arrows::between_members(member, &path, &text));
    }
    report(found)
}

#[test]
fn only_durable_renames_links_and_syncs() -> Result<()> {
    report(
        rust_sources()?
            .iter()
            .flat_map(arrows::durable_only)
            .collect(),
    )
}

#[test]
fn only_the_worker_knows_the_queue() -> Result<()> {
    report(
        rust_sources()?
            .iter()
            .flat_map(arrows::worker_only)
            .collect(),
    )
}
