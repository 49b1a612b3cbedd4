//! Edits of a guest's text files that touch nothing but what they are meant to touch.
//!
//! A file is decoded one byte to one character and encoded back the same way: bytes that are not
//! UTF-8, line endings and white space survive. What the repairs put in is ASCII. Only the ASCII
//! notion of white space and case may be used on such text.
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// A configuration file larger than this is left alone; the largest real ones (modules.dep,
/// grub.cfg of a host with hundreds of kernels) stay below 2 MiB.
pub const MAX_FILE_BYTES: usize = 8 << 20;

/// What was done, or not done, to a line of the text as it was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// 1-based; 0 is the file as a whole.
    pub line: usize,
    pub reason: String,
}

/// A file's new contents, why, and what could not be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edit {
    pub text: Vec<u8>,
    pub changes: Vec<Change>,
    pub skipped: Vec<Change>,
}

impl Edit {
    pub fn unchanged(bytes: &[u8]) -> Self {
        Self {
            text: bytes.to_vec(),
            ..Self::default()
        }
    }

    /// A second edit of the text that this one gave.
    #[must_use]
    pub fn then(mut self, next: impl FnOnce(&[u8]) -> Self) -> Self {
        let after = next(&self.text);
        self.text = after.text;
        self.changes.extend(after.changes);
        self.skipped.extend(after.skipped);
        self
    }

    #[must_use]
    pub fn skip_whole(mut self, reason: &str) -> Self {
        self.skipped.push(Change {
            line: 0,
            reason: reason.to_owned(),
        });
        self
    }

    /// Adds lines at the end, in the file's own line ending.
    #[must_use]
    pub fn append(mut self, lines: &[&str], reason: &str) -> Self {
        let ending: &[u8] = if self.text.windows(2).any(|pair| pair == b"\r\n") {
            b"\r\n"
        } else {
            b"\n"
        };
        if !self.text.is_empty() && !self.text.ends_with(b"\n") {
            self.text.extend_from_slice(ending);
        }
        for line in lines {
            self.text.extend_from_slice(line.as_bytes());
            self.text.extend_from_slice(ending);
        }
        self.changes.push(Change {
            line: 0,
            reason: reason.to_owned(),
        });
        self
    }
}

pub fn decode(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

pub fn encode(text: &str) -> Vec<u8> {
    text.chars()
        .map(|c| u8::try_from(c).unwrap_or(b'?'))
        .collect()
}

/// A decoded piece of a file as people read it, short enough for a message.
pub fn quote(text: &str) -> String {
    let shown: String = text.chars().take(120).collect();
    let shown = String::from_utf8_lossy(&encode(&shown)).into_owned();
    shown
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// Why a file is not one to edit at all.
pub fn refusal(bytes: &[u8]) -> Option<String> {
    if bytes.len() > MAX_FILE_BYTES {
        Some(format!("larger than {} MiB", MAX_FILE_BYTES >> 20))
    } else if bytes.contains(&0) {
        Some("not a text file".to_owned())
    } else {
        None
    }
}

fn refused(bytes: &[u8]) -> Option<Edit> {
    let reason = refusal(bytes)?;
    let mut edit = Edit::unchanged(bytes);
    edit.skipped.push(Change { line: 0, reason });
    Some(edit)
}

/// What becomes of a line. Every line that does not stay has a change in the notes.
pub enum Fate {
    Keep,
    Replace(String),
    Drop,
}

/// Where an edit says what it did to the line at hand.
#[derive(Default)]
pub struct Notes {
    line: usize,
    changes: Vec<Change>,
    skipped: Vec<Change>,
}

impl Notes {
    pub fn change(&mut self, reason: impl Into<String>) {
        self.changes.push(Change {
            line: self.line,
            reason: reason.into(),
        });
    }

    pub fn skip(&mut self, reason: impl Into<String>) {
        self.skipped.push(Change {
            line: self.line,
            reason: reason.into(),
        });
    }
}

/// The line without its ending, which may be `\r\n`, and the ending.
pub fn split_ending(line: &str) -> (&str, &str) {
    let body = line.strip_suffix('\n').unwrap_or(line);
    let body = body.strip_suffix('\r').unwrap_or(body);
    line.split_at(body.len())
}

/// Goes through a file line by line; `each` sees the lines without their endings.
pub fn revise(bytes: &[u8], mut each: impl FnMut(&str, &mut Notes) -> Fate) -> Edit {
    if let Some(edit) = refused(bytes) {
        return edit;
    }
    let text = decode(bytes);
    let mut out = String::with_capacity(text.len());
    let mut notes = Notes::default();
    for (line, number) in text.split_inclusive('\n').zip(1..) {
        let (body, ending) = split_ending(line);
        notes.line = number;
        match each(body, &mut notes) {
            Fate::Keep => out.push_str(line),
            Fate::Replace(new) => {
                out.push_str(&new);
                out.push_str(ending);
            }
            Fate::Drop => {}
        }
    }
    Edit {
        text: encode(&out),
        changes: notes.changes,
        skipped: notes.skipped,
    }
}

/// A piece of decoded text to be replaced.
pub struct Splice {
    pub range: Range<usize>,
    pub with: String,
    pub reasons: Vec<String>,
    pub skipped: Vec<String>,
}

/// Replaces pieces that a look at the whole decoded text found; they must not overlap.
pub fn splice(bytes: &[u8], find: impl FnOnce(&str) -> Vec<Splice>) -> Edit {
    if let Some(edit) = refused(bytes) {
        return edit;
    }
    let text = decode(bytes);
    let mut splices = find(&text);
    splices.sort_by_key(|splice| splice.range.start);
    let mut edit = Edit::default();
    let mut out = String::with_capacity(text.len());
    let (mut at, mut line) = (0, 1);
    for splice in splices {
        let Some(before) = text.get(at..splice.range.start) else {
            continue;
        };
        line += before.matches('\n').count();
        let note = |reason| Change { line, reason };
        edit.skipped.extend(splice.skipped.into_iter().map(note));
        if splice.reasons.is_empty() {
            continue;
        }
        edit.changes.extend(splice.reasons.into_iter().map(note));
        out.push_str(text.get(at..splice.range.start).unwrap_or_default());
        out.push_str(&splice.with);
        let replaced = text.get(splice.range.clone()).unwrap_or_default();
        line += replaced.matches('\n').count();
        at = splice.range.end;
    }
    out.push_str(text.get(at..).unwrap_or_default());
    edit.text = encode(&out);
    edit
}
