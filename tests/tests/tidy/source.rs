//! One Rust source: its text, and its code with comments, strings and tests blanked out.
use std::ops::Range;
use std::path::PathBuf;

pub struct Source {
    /// Relative to the top of the tree.
    pub path: PathBuf,
    pub text: String,
    /// As long as `text`, with everything in comments and literals replaced by spaces.
    pub code: String,
    /// The bytes of items behind `#[cfg(test)]`.
    pub tests: Vec<Range<usize>>,
}

impl Source {
    pub fn new(path: PathBuf, text: String) -> Self {
        let code = blank(&text);
        let tests = test_items(&code);
        Self {
            path,
            text,
            code,
            tests,
        }
    }

    /// Whether the whole file is a test: below a `tests` folder, or a module named so.
    pub fn is_test(&self) -> bool {
        let mut parts = self.path.iter().filter_map(|part| part.to_str());
        parts.any(|part| part == "tests" || part == "tests.rs")
    }

    pub fn is_tested_at(&self, offset: usize) -> bool {
        self.tests.iter().any(|range| range.contains(&offset))
    }

    /// 1-based.
    pub fn line_at(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().iter().take(offset);
        before.filter(|byte| **byte == b'\n').count() + 1
    }

    pub fn at(&self, offset: usize, rule: &str) -> String {
        format!("{}:{}: {rule}", self.path.display(), self.line_at(offset))
    }
}

/// The words of `code` with their offsets.
pub fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_word = |c: char| c == '_' || c.is_alphanumeric();
    let mut from = 0;
    std::iter::from_fn(move || {
        let rest = code.get(from..)?;
        let start = from + rest.find(is_word)?;
        let word = code.get(start..)?;
        let end = start + word.find(|c| !is_word(c)).unwrap_or(word.len());
        from = end;
        Some((start, code.get(start..end)?))
    })
}

/// The end of the item that begins at `start`: behind its block, or behind its semicolon.
pub fn item_end(code: &str, start: usize) -> usize {
    let mut depth = 0_i32;
    for (index, byte) in code.bytes().enumerate().skip(start) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' if depth == 0 => return block_end(code, index),
            b';' if depth == 0 => return index + 1,
            _ => {}
        }
    }
    code.len()
}

fn block_end(code: &str, open: usize) -> usize {
    let mut depth = 0_u32;
    for (index, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return index + 1,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

fn test_items(code: &str) -> Vec<Range<usize>> {
    let attributes = code.match_indices("#[cfg(test)]");
    attributes
        .map(|(start, attribute)| {
            let mut from = start + attribute.len();
            // Further attributes of the same item.
            while let Some(rest) = code.get(from..)
                && rest.trim_start().starts_with("#[")
                && let Some(close) = rest.find(']')
            {
                from += close + 1;
            }
            start..item_end(code, from)
        })
        .collect()
}

/// `text` with comments and the insides of literals turned into spaces, byte for byte.
fn blank(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut in_word = false;
    while let Some(c) = rest.chars().next() {
        let length = comment(rest)
            .or_else(|| if in_word { None } else { raw_string(rest) })
            .or_else(|| string(rest))
            .or_else(|| character(rest))
            .unwrap_or(0);
        let (taken, left) = rest.split_at(length.max(c.len_utf8()).min(rest.len()));
        if length == 0 && c.is_ascii() {
            out.push(c);
        } else {
            out.extend(taken.bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }));
        }
        in_word = length == 0 && (c == '_' || c.is_alphanumeric());
        rest = left;
    }
    out
}

fn comment(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if !rest.starts_with("/*") {
        return None;
    }
    let (mut depth, mut at) = (0, 0);
    while let Some(here) = rest.get(at..).filter(|here| !here.is_empty()) {
        if here.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += here.chars().next().map_or(1, char::len_utf8);
        }
    }
    Some(at)
}

/// `r"…"`, `r#"…"#`, and those of bytes and C strings.
fn raw_string(rest: &str) -> Option<usize> {
    let behind = rest.trim_start_matches(['b', 'c']).strip_prefix('r')?;
    let quoted = behind.trim_start_matches('#');
    let hashes = behind.len() - quoted.len();
    let inside = quoted.strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    let end = inside
        .find(&close)
        .map_or(inside.len(), |end| end + close.len());
    Some(rest.len() - inside.len() + end)
}

fn string(rest: &str) -> Option<usize> {
    let inside = rest.strip_prefix('"')?;
    let mut escaped = false;
    for (index, c) in inside.char_indices() {
        match c {
            '"' if !escaped => return Some(index + 2),
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    Some(rest.len())
}

/// A character literal; a lifetime is none.
fn character(rest: &str) -> Option<usize> {
    let inside = rest.strip_prefix('\'')?;
    if inside.starts_with('\\') {
        let end = inside.char_indices().skip(2).find(|(_, c)| *c == '\'')?;
        return Some(end.0 + 2);
    }
    let first = inside.chars().next()?.len_utf8();
    inside.get(first..)?.starts_with('\'').then_some(first + 2)
}

#[test]
fn blanks_what_is_not_code() {
    for (text, code) in [
        ("a // b { \nc", "a        \nc"),
        ("a /* { /* } */ { */ b", "a                   b"),
        (r#"f("{ \" }", 'x')"#, "f(        ,    )"),
        (r##"r#"{ " }"# x"##, "           x"),
        (r#"br"\" x"#, "      x"),
        (r"'\'' '{' &'a str", "         &'a str"),
        ("for\"s\"", "for   "),
        ("é\"é\"", "      "),
    ] {
        assert_eq!(blank(text), code, "{text}");
        assert_eq!(text.len(), blank(text).len(), "{text}");
    }
}

#[test]
fn finds_the_tests_of_a_file() {
    let text = "fn a() {}\n#[cfg(test)]\n#[x]\nmod t {\n fn b() { { } }\n}\nfn c() {}\n";
    let source = Source::new(PathBuf::from("a/src/lib.rs"), text.to_owned());
    for (what, is_tested) in [("fn a", false), ("fn b", true), ("fn c", false)] {
        let offset = text.find(what).unwrap();
        assert_eq!(source.is_tested_at(offset), is_tested, "{what}");
    }
    assert_eq!(source.line_at(text.find("fn b").unwrap()), 5);
    let declared = "#[cfg(test)]\nmod tests;\nfn a() {}";
    let source = Source::new(PathBuf::from("a/src/lib.rs"), declared.to_owned());
    assert!(!source.is_tested_at(declared.find("fn a").unwrap()));
}
