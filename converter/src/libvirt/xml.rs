//! Writes well-formed XML: escaped, indented, and only characters that XML 1.0 can hold.
use std::fmt::Write;

/// An element's attributes, in order.
pub type Attributes<'a> = &'a [(&'a str, &'a str)];

/// Whether every character of `text` can stand in an XML 1.0 document.
pub fn is_representable(text: &str) -> bool {
    text.chars().all(is_allowed)
}

fn is_allowed(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}')
        || c >= '\u{10000}'
}

/// A document in the making.
#[derive(Default)]
pub struct Writer {
    text: String,
    open: Vec<&'static str>,
}

impl Writer {
    pub fn open(&mut self, name: &'static str, attributes: Attributes<'_>) {
        self.begin(name, attributes);
        self.text.push_str(">\n");
        self.open.push(name);
    }

    pub fn close(&mut self) {
        if let Some(name) = self.open.pop() {
            self.indent();
            self.text.push_str("</");
            self.text.push_str(name);
            self.text.push_str(">\n");
        }
    }

    pub fn empty(&mut self, name: &str, attributes: Attributes<'_>) {
        self.begin(name, attributes);
        self.text.push_str("/>\n");
    }

    pub fn text(&mut self, name: &str, attributes: Attributes<'_>, text: &str) {
        self.begin(name, attributes);
        self.text.push('>');
        self.escape(text);
        self.text.push_str("</");
        self.text.push_str(name);
        self.text.push_str(">\n");
    }

    /// Closes what is open and returns the document.
    pub fn finish(mut self) -> String {
        while !self.open.is_empty() {
            self.close();
        }
        self.text
    }

    fn begin(&mut self, name: &str, attributes: Attributes<'_>) {
        self.indent();
        self.text.push('<');
        self.text.push_str(name);
        for (name, value) in attributes {
            self.text.push(' ');
            self.text.push_str(name);
            self.text.push_str("=\"");
            self.escape(value);
            self.text.push('"');
        }
    }

    fn indent(&mut self) {
        for _ in &self.open {
            self.text.push_str("  ");
        }
    }

    /// Characters that XML cannot hold become U+FFFD; line breaks survive as references.
    fn escape(&mut self, text: &str) {
        for c in text.chars() {
            match c {
                '&' => self.text.push_str("&amp;"),
                '<' => self.text.push_str("&lt;"),
                '>' => self.text.push_str("&gt;"),
                '"' => self.text.push_str("&quot;"),
                '\t' | '\n' | '\r' => {
                    // Writing to a String cannot fail.
                    let _ = write!(self.text, "&#{};", u32::from(c));
                }
                c if is_allowed(c) => self.text.push(c),
                _ => self.text.push('\u{fffd}'),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn every_text_survives_the_way_through_a_parser(text in "\\PC*|.*") {
            let mut writer = Writer::default();
            writer.open("a", &[("b", &text)]);
            writer.text("c", &[], &text);
            let document = writer.finish();
            let tree = roxmltree::Document::parse(&document).unwrap();
            let expected: String =
                text.chars().map(|c| if is_allowed(c) { c } else { '\u{fffd}' }).collect();
            let root = tree.root_element();
            proptest::prop_assert_eq!(root.attribute("b").unwrap(), &expected);
            let child = root.children().find(|node| node.is_element()).unwrap();
            proptest::prop_assert_eq!(child.text().unwrap_or_default(), &expected);
        }
    }
}
