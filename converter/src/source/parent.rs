//! Finds the parent of a differencing disk by the paths that its writer left in it.
//!
//! The paths are another machine's, mostly Windows ones, and hostile: only what the caller's lookup
//! opens is ever read. A parent is known by its identity, which the caller checks.
use std::path::Path;

use super::Lookup;
use crate::disk::{Window, corrupt};
use crate::error::{Error, Result};

/// More disks in one chain than any writer makes.
const MAX_CHAIN: usize = 64;
/// A path of 32767 UTF-16 units, the longest that Windows has.
pub(super) const MAX_PATH_BYTES: u32 = 65534;

/// Opens the parent of `child` with the first of `paths` that leads to one. `directory` is where
/// the child itself was found, relative to where `lookup` begins. `open` checks the identity; of
/// its errors the first one is told if no path leads further. Also returns the parent's directory.
pub(super) fn find<T>(
    child: &Path,
    directory: &str,
    paths: &[String],
    lookup: Lookup<'_>,
    open: impl Fn(Window) -> Result<T>,
) -> Result<(T, String)> {
    let mut refused = None;
    let mut names: Vec<String> = Vec::new();
    for name in paths.iter().flat_map(|path| candidates(directory, path)) {
        if names.contains(&name) {
            continue;
        }
        if let Ok(window) = lookup(&name) {
            match open(window) {
                Ok(parent) => {
                    let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
                    return Ok((parent, directory.to_owned()));
                }
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        names.push(name);
    }
    Err(refused.unwrap_or_else(|| match names.last() {
        Some(name) => Error::invalid(format!(
            "{} is a differencing disk; its parent {name:?} is not there",
            child.display()
        ))
        .with_remedy("put the parent beside it, or merge the two before the export"),
        None => corrupt(child, "a differencing disk that does not name its parent"),
    }))
}

/// An error if a chain that has `length` disks may not have one more.
pub(super) fn check_chain(child: &Path, length: usize, loops: bool) -> Result<()> {
    if loops {
        return Err(corrupt(
            child,
            "its chain of parents leads back into itself",
        ));
    }
    if length >= MAX_CHAIN {
        let what = format!("its chain of parents has more than {MAX_CHAIN} disks");
        return Err(corrupt(child, what));
    }
    Ok(())
}

/// What a path of another machine may be called here: as it stands, then its last part only.
fn candidates(directory: &str, path: &str) -> Vec<String> {
    let path = path.strip_prefix("file://").unwrap_or(path);
    let has_drive = path.get(1..2) == Some(":");
    let is_here = path.starts_with('/');
    let plain = path.replace('\\', "/");
    let plain = plain.trim_start_matches("./");
    let last = plain.rsplit('/').next().unwrap_or_default();
    let within = |name: &str| match directory {
        "" => name.to_owned(),
        _ => format!("{directory}/{name}"),
    };
    let mut names = Vec::new();
    if is_here {
        names.push(plain.to_owned());
    } else if !has_drive && !plain.starts_with('/') {
        names.push(within(plain));
    }
    names.extend([within(last), last.to_owned()]);
    names.retain(|name| !name.is_empty() && !name.ends_with('/') && !name.contains('\0'));
    names
}

/// Text of a path as far as its first NUL.
pub(super) fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> String {
    let units = bytes.chunks_exact(2).map(|pair| match pair {
        [a, b] => unit([*a, *b]),
        _ => 0,
    });
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    String::from_utf16_lossy(&units)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_paths_become_names_beside_the_child() {
        let cases: [(&str, &str, &[&str]); 8] = [
            ("", ".\\base.vhd", &["base.vhd"]),
            ("a", "base.vhd", &["a/base.vhd", "base.vhd"]),
            ("", "..\\b\\p.vhd", &["../b/p.vhd", "p.vhd"]),
            ("", "C:\\VMs\\p.vhd", &["p.vhd"]),
            ("", "\\\\?\\Volume{1}\\p.vhd", &["p.vhd"]),
            ("", "/srv/p.vhd", &["/srv/p.vhd", "p.vhd"]),
            ("", "file:///srv/p.vhd", &["/srv/p.vhd", "p.vhd"]),
            ("", "", &[]),
        ];
        for (directory, path, expected) in cases {
            let mut names = candidates(directory, path);
            names.dedup();
            assert_eq!(names, expected, "{path}");
        }
    }
}
