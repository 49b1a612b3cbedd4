//! Configuration as text: TOML into any type, with errors that name file, line and key.
use std::ops::Range;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// The text of the configuration file at `path`.
pub fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| unreadable(path, error))
}

fn unreadable(path: &Path, error: std::io::Error) -> Error {
    Error::io("read configuration", path, error)
}

/// The text of one that need not be there.
pub fn find(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(|error| unreadable(path, error)),
    }
}

/// One configuration file as text, its path, and the program that checks it.
pub struct Text<'a> {
    pub text: &'a str,
    pub path: &'a Path,
    /// `hyper2kvm`, whose `check-config` checks the file again.
    pub program: &'static str,
}

impl Text<'_> {
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        toml::from_str(self.text).map_err(|error| {
            let (line, key) = locate(self.text, error.span());
            let key = key.map(|key| format!(", key {key}")).unwrap_or_default();
            let message = error.message().replace('\n', " ");
            self.wrong(&format!("line {line}{key}: {message}"))
        })
    }

    /// The error of a value that parses and makes no sense.
    pub fn refuse(&self, key: &str, what: &str) -> Error {
        let line = self
            .text
            .lines()
            .position(|line| line.trim_start().starts_with(key))
            .map_or(1, |index| index + 1);
        self.wrong(&format!("line {line}, key {key}: {what}"))
    }

    fn wrong(&self, what: &str) -> Error {
        let Self { path, program, .. } = self;
        Error::invalid(format!("{}, {what}", path.display())).with_remedy(format!(
            "correct the line; `{program} check-config` checks it again"
        ))
    }
}

/// The 1-based line of an error, and the key that stands there.
fn locate(text: &str, span: Option<Range<usize>>) -> (usize, Option<String>) {
    let start = span.map_or(0, |span| span.start).min(text.len());
    let before = text.get(..start).unwrap_or_default();
    let line = before.matches('\n').count();
    let key = text
        .lines()
        .nth(line)
        .and_then(|line| line.split_once('='))
        .map(|(key, _)| key.trim().to_owned())
        .filter(|key| !key.is_empty());
    (line + 1, key)
}
