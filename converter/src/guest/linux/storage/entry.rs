//! A line of white-space separated fields, of which one changes and all else stays.

/// A line as its fields and the white space before each; a comment has none.
pub struct Entry {
    fields: Vec<(String, String)>,
    rest: String,
}

impl Entry {
    /// `most` is how many fields the format has; what is behind them stays as it is.
    pub fn parse(line: &str, most: usize) -> Self {
        let mut fields = Vec::new();
        let mut rest = line;
        while fields.len() < most {
            let field = rest.trim_start_matches([' ', '\t']);
            if field.is_empty() || field.starts_with('#') {
                break;
            }
            let blank = rest.len() - field.len();
            let end = field.find([' ', '\t']).unwrap_or(field.len());
            let space = rest.get(..blank).unwrap_or_default();
            let (field, behind) = field.split_at(end);
            fields.push((space.to_owned(), field.to_owned()));
            rest = behind;
        }
        Self {
            fields,
            rest: rest.to_owned(),
        }
    }

    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// Empty where there is none.
    pub fn field(&self, index: usize) -> &str {
        self.fields.get(index).map_or("", |(_, field)| field)
    }

    pub fn set(&mut self, index: usize, value: String) {
        match self.fields.get_mut(index) {
            Some((_, field)) => *field = value,
            None => self.fields.push((" ".to_owned(), value)),
        }
    }

    pub fn text(&self) -> String {
        let fields = self.fields.iter();
        let mut text: String = fields
            .flat_map(|(space, field)| [space.as_str(), field])
            .collect();
        text.push_str(&self.rest);
        text
    }
}
