//! A block of `Label: value` lines, labels aligned on the colon as systemctl does.
use super::text::clean;

const LABEL_COLUMNS: usize = 11;

/// Lines of one block; values are clean.
#[derive(Debug, Default)]
pub struct Fields(String);

impl Fields {
    /// A value that may hold anything.
    pub fn add(&mut self, label: &str, value: impl AsRef<str>) {
        self.add_painted(label, &clean(value.as_ref()));
    }

    /// A value that is clean already and may hold colours.
    pub fn add_painted(&mut self, label: &str, value: &str) {
        let colon = if label.is_empty() { ' ' } else { ':' };
        self.0
            .push_str(&format!("{label:>LABEL_COLUMNS$}{colon} {value}\n"));
    }

    /// Several values under one label.
    pub fn add_all(&mut self, label: &str, values: impl IntoIterator<Item = String>) {
        for (index, value) in values.into_iter().enumerate() {
            self.add(if index == 0 { label } else { "" }, value);
        }
    }

    pub fn into_text(self) -> String {
        self.0
    }
}
