//! Which room may use which, which member which, and who may rename, link or fsync.
use std::collections::BTreeSet;
use std::path::Path;

use super::source::{Source, words};

/// The rooms of each member, highest first: a room may use what lies in a lower line.
const LAYERS: [(&str, &[&[&str]]); 4] = [
    (
        "queue",
        &[
            &["service"],
            &["arrival"],
            &["spool"],
            &["durable", "instance", "roots"],
            &["job"],
            &["error"],
        ],
    ),
    (
        "converter",
        &[
            &["worker"],
            &["convert"],
            &["source", "guest", "libvirt"],
            &["qcow2"],
            &["disk"],
            &["error"],
        ],
    ),
    (
        "exporter",
        &[
            &["worker"],
            &["export"],
            &["provider"],
            &["machine"],
            &["transfer"],
            &["error"],
        ],
    ),
    (
        "hyperctl",
        &[
            &["command"],
            &["render"],
            &["view", "request"],
            &["watch"],
            &["args"],
            &["outcome"],
        ],
    ),
];

/// The folders at the top of a crate's src/; its lib.rs, main.rs and programs stand above them.
const MAX_ROOMS: usize = 8;

/// What only `queue::durable` may call; elsewhere a `Volume` does it.
const DURABLE: [&str; 17] = [
    "fs::rename",
    "fs::hard_link",
    "fs::soft_link",
    "unix::fs::symlink",
    "symlinkat",
    "linkat",
    "renameat",
    "renameat2",
    "sync_all",
    "sync_data",
    "fsync",
    "fdatasync",
    "syncfs",
    "sync_file_range",
    "persist",
    "persist_noclobber",
    "libc::rename",
];

/// The parts of the queue that move jobs; `arrival` only reads.
const MOVERS: [&str; 3] = ["service", "spool", "durable"];

fn layers(member: &str) -> Option<&'static [&'static [&'static str]]> {
    let found = LAYERS.iter().find(|(name, _)| *name == member)?;
    Some(found.1)
}

fn level(layers: &[&[&str]], room: &str) -> Option<usize> {
    layers.iter().position(|rooms| rooms.contains(&room))
}

/// `member/src/room/inner.rs` as its member and its module path; none for tests and programs.
fn place(source: &Source) -> Option<(String, Vec<String>)> {
    let mut parts = source.path.iter().filter_map(|part| part.to_str());
    let member = parts.next()?.to_owned();
    if parts.next() != Some("src") || source.is_test() {
        return None;
    }
    let mut modules: Vec<String> = parts.map(str::to_owned).collect();
    let file = modules.pop()?;
    match file.strip_suffix(".rs")? {
        "mod" => {}
        "lib" | "main" if modules.is_empty() => return None,
        stem => modules.push(stem.to_owned()),
    }
    (modules.first().map(String::as_str) != Some("bin")).then_some((member, modules))
}

/// The names that directly follow `prefix`, which ends in `::`, with their offsets: `a` of
/// `crate::a::b`, `a` and `c` of `crate::{a::b, c}`.
fn names_behind(code: &str, prefix: usize) -> Vec<(usize, &str)> {
    let rest = code.get(prefix..).unwrap_or_default();
    let opened = rest.trim_start();
    let Some(group) = opened.strip_prefix('{') else {
        return words(rest)
            .next()
            .map(|(at, word)| (prefix + at, word))
            .into_iter()
            .collect();
    };
    let start = code.len() - group.len();
    let mut depth = 0;
    let mut is_first = true;
    let mut names = Vec::new();
    for (index, byte) in group.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 0 => break,
            b'}' => depth -= 1,
            b',' if depth == 0 => is_first = true,
            b if is_first && !b.is_ascii_whitespace() => {
                is_first = false;
                let name = group.get(index..).and_then(|rest| words(rest).next());
                names.extend(name.map(|(at, word)| (start + index + at, word)));
            }
            _ => {}
        }
    }
    names
}

/// The rooms that a file uses by `crate::` or by enough `super::`, with the offsets.
fn uses<'a>(source: &'a Source, modules: &[String]) -> Vec<(usize, &'a str)> {
    let code = &source.code;
    let mut rooms = Vec::new();
    let mut supers = 0;
    let mut super_end = 0;
    for (offset, word) in words(code) {
        let end = offset + word.len();
        let is_path = code.get(end..).is_some_and(|rest| rest.starts_with("::"));
        supers = match word {
            "super" if offset == super_end => supers + 1,
            "super" => 1,
            _ => 0,
        };
        super_end = end + 2;
        let is_root = word == "crate" || (supers > 0 && supers == modules.len());
        if is_path && is_root && !source.is_tested_at(offset) {
            let names = names_behind(code, end + 2);
            rooms.extend(names.into_iter().filter(|(_, name)| *name != "super"));
        }
    }
    rooms
}

pub fn between_rooms(source: &Source) -> Vec<String> {
    let Some((member, modules)) = place(source) else {
        return Vec::new();
    };
    let (Some(layers), Some(room)) = (layers(&member), modules.first()) else {
        return Vec::new();
    };
    let Some(from) = level(layers, room) else {
        return Vec::new();
    };
    let points_down = |used: &str| used == room || level(layers, used).is_none_or(|to| to > from);
    uses(source, &modules)
        .into_iter()
        .filter(|(_, used)| !points_down(used))
        .map(|(offset, used)| {
            source.at(
                offset,
                &format!("{member}: {room} uses {used}, which is not below it"),
            )
        })
        .collect()
}

/// Rooms that the table does not know, and members with too many.
pub fn unplaced_rooms(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for (member, layers) in LAYERS {
        let places = sources.iter().filter_map(place);
        let rooms: BTreeSet<String> = places
            .filter(|(name, _)| name == member)
            .filter_map(|(_, modules)| modules.into_iter().next())
            .collect();
        for room in rooms.iter().filter(|room| level(layers, room).is_none()) {
            found.push(format!(
                "{member}/src/{room}:1: a room without a place in LAYERS"
            ));
        }
        if rooms.len() > MAX_ROOMS {
            found.push(format!(
                "{member}/src:1: {} rooms, more than {MAX_ROOMS}",
                rooms.len()
            ));
        }
    }
    found
}

/// `queue` depends on no member, the others on nothing but `queue`.
pub fn between_members(member: &str, path: &Path, manifest: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_dependencies = false;
    for (line, number) in manifest.lines().zip(1..) {
        if line.starts_with('[') {
            in_dependencies = line.contains("dependencies");
            continue;
        }
        let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
        let is_member = name.starts_with("hyper2kvm") || name == "hyperctl";
        let is_allowed = name == "hyper2kvm-queue" && member != "queue";
        if in_dependencies && is_member && !is_allowed {
            let path = path.display();
            found.push(format!(
                "{path}:{number}: {member} may not depend on {name}"
            ));
        }
    }
    found
}

pub fn durable_only(source: &Source) -> Vec<String> {
    let mut parts = source.path.iter().filter_map(|part| part.to_str());
    let member = parts.next().unwrap_or_default();
    if layers(member).is_none() || source.is_test() {
        return Vec::new();
    }
    if source.path.starts_with("queue/src/durable") {
        return Vec::new();
    }
    let is_whole = |offset: usize, name: &str| {
        let (before, rest) = source.code.split_at(offset);
        let behind = rest.get(name.len()..).unwrap_or_default();
        let is_word = |c: char| c == '_' || c.is_alphanumeric();
        !before.ends_with(is_word) && behind.trim_start().starts_with('(')
    };
    let mut found = Vec::new();
    for name in DURABLE {
        for (offset, _) in source.code.match_indices(name) {
            if is_whole(offset, name) && !source.is_tested_at(offset) {
                let rule = format!("{name} is for queue::durable alone: go through a Volume");
                found.push(source.at(offset, &rule));
            }
        }
    }
    found
}

/// In the converter and the exporter, only `worker` may use what moves jobs.
pub fn worker_only(source: &Source) -> Vec<String> {
    let Some((member, modules)) = place(source) else {
        return Vec::new();
    };
    let room = modules.first().map_or("", String::as_str);
    if !matches!(member.as_str(), "converter" | "exporter") || room == "worker" {
        return Vec::new();
    }
    let prefixes = source.code.match_indices("queue::");
    prefixes
        .filter(|(offset, _)| !source.is_tested_at(*offset))
        .flat_map(|(offset, prefix)| names_behind(&source.code, offset + prefix.len()))
        .filter(|(_, name)| MOVERS.contains(name))
        .map(|(offset, name)| {
            source.at(
                offset,
                &format!("{room} uses queue::{name}, which is for worker alone"),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source::new(path.into(), text.to_owned())
    }

    #[test]
    fn arrows_are_read_in_every_spelling() {
        for (path, text, found) in [
            ("queue/src/job/id.rs", "use crate::spool::Spool;", 1),
            (
                "queue/src/job/id.rs",
                "use crate::{error::Error, spool, durable::{a, b}};",
                2,
            ),
            ("queue/src/job/id.rs", "use super::super::spool;", 1),
            ("queue/src/job/id.rs", "use super::spool;", 0),
            ("queue/src/job/mod.rs", "use super::{spool, error};", 1),
            ("queue/src/roots.rs", "fn f() { crate::durable::g() }", 1),
            (
                "queue/src/roots.rs",
                "// crate::durable\nuse crate::error::Error;",
                0,
            ),
            (
                "queue/src/roots.rs",
                "#[cfg(test)]\nmod t { use crate::spool::S; }",
                0,
            ),
            (
                "queue/src/spool/mod.rs",
                "use crate::{durable, error, job};",
                0,
            ),
            ("queue/src/lib.rs", "pub use crate::spool::Spool;", 0),
            (
                "converter/src/qcow2/mod.rs",
                "use crate::source::Source;",
                1,
            ),
            (
                "converter/src/bin/hyper2kvm/main.rs",
                "use crate::daemon;",
                0,
            ),
        ] {
            let rules = between_rooms(&source(path, text));
            assert_eq!(rules.len(), found, "{path} {text}: {rules:?}");
        }
    }

    #[test]
    fn renames_outside_durable_are_found() {
        for (path, text, found) in [
            (
                "queue/src/spool/a.rs",
                "fs::rename(a, b); volume.rename(a, b);",
                1,
            ),
            ("queue/src/spool/a.rs", "file.sync_all()?; // fsync(1)", 1),
            ("queue/src/durable/host.rs", "fs::rename(a, b)", 0),
            (
                "queue/src/job/a.rs",
                "#[serde(rename_all = \"x\")] fn fsync_all() {}",
                0,
            ),
            (
                "converter/src/convert/a.rs",
                "std::os::unix::fs::symlink (a, b)",
                1,
            ),
            (
                "converter/src/convert/a.rs",
                "#[cfg(test)]\nmod t { fn f() { fs::rename(a) } }",
                0,
            ),
            ("tests/tests/a.rs", "fs::rename(a, b)", 0),
        ] {
            let rules = durable_only(&source(path, text));
            assert_eq!(rules.len(), found, "{path} {text}: {rules:?}");
        }
    }

    #[test]
    fn members_and_the_queue() {
        let manifest = "[package]\nname = \"hyper2kvm\"\n[dependencies]\nhyper2kvm-queue.workspace \
                        = true\nhyperctl = { path = \"../hyperctl\" }\n";
        let found = between_members("converter", Path::new("c"), manifest);
        assert_eq!(found, ["c:5: converter may not depend on hyperctl"]);
        assert_eq!(between_members("queue", Path::new("q"), manifest).len(), 2);

        let text = "use queue::{error::Error, spool::Spool};";
        assert_eq!(
            worker_only(&source("converter/src/convert/a.rs", text)).len(),
            1
        );
        assert_eq!(
            worker_only(&source("converter/src/worker/a.rs", text)).len(),
            0
        );
    }
}
