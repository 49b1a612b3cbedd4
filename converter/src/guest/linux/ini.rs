//! Files of `[section]` and `key=value`: NetworkManager's keyfiles and systemd's units.
use crate::guest::linux::edit::{Edit, Fate, Notes, decode, refusal, revise};

/// One `key=value` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub section: String,
    pub key: String,
    pub value: String,
}

pub fn read(bytes: &[u8]) -> Vec<Setting> {
    if refusal(bytes).is_some() {
        return Vec::new();
    }
    let text = decode(bytes);
    let mut section = String::new();
    let mut settings = Vec::new();
    for line in text.lines() {
        if let Some(name) = section_of(line) {
            section = name.to_owned();
        } else if let Some((key, value)) = setting_of(line) {
            settings.push(Setting {
                section: section.clone(),
                key: key.to_owned(),
                value: value.to_owned(),
            });
        }
    }
    settings
}

pub fn values<'a>(
    settings: &'a [Setting],
    section: &'a str,
    key: &'a str,
) -> impl Iterator<Item = &'a str> {
    let found = settings.iter();
    let found = found.filter(move |s| s.section == section && s.key.eq_ignore_ascii_case(key));
    found.map(|setting| setting.value.as_str())
}

/// `each` sees section, key and value of every setting.
pub fn revise_settings(
    bytes: &[u8],
    mut each: impl FnMut(&str, &str, &str, &mut Notes) -> Fate,
) -> Edit {
    let mut section = String::new();
    revise(bytes, |line, notes| {
        if let Some(name) = section_of(line) {
            section = name.to_owned();
            return Fate::Keep;
        }
        match setting_of(line) {
            Some((key, value)) => each(&section, key, value, notes),
            None => Fate::Keep,
        }
    })
}

fn section_of(line: &str) -> Option<&str> {
    line.trim_ascii().strip_prefix('[')?.strip_suffix(']')
}

fn setting_of(line: &str) -> Option<(&str, &str)> {
    if line.trim_ascii_start().starts_with(['#', ';']) {
        return None;
    }
    let (key, value) = line.split_once('=')?;
    Some((key.trim_ascii(), value.trim_ascii()))
}
