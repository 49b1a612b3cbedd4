//! What one image of a chain says of itself: for people and programs that ask, not for the engine.
use std::path::PathBuf;

use serde::Serialize;

use super::Window;

/// Of a text from a file.
const MOST_CHARS: usize = 1024;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Layer {
    pub path: PathBuf,
    /// `vmdk`, `vhd`, `vhdx`, `qcow2`, `raw`.
    pub format: &'static str,
    /// The fields that the format has; their names are README's.
    #[serde(flatten)]
    pub fields: serde_json::Value,
}

impl Layer {
    pub fn new(window: &Window, format: &'static str, fields: serde_json::Value) -> Self {
        Self {
            path: window.path().to_path_buf(),
            format,
            fields,
        }
    }
}

/// A text of a file, cut to what is worth showing.
pub fn brief(text: &str) -> String {
    if text.chars().count() <= MOST_CHARS {
        return text.to_owned();
    }
    let start = text.chars().take(MOST_CHARS);
    start.chain(std::iter::once('…')).collect()
}
