//! Bounded reading of a hostile XML text: no DTD, no entities, no work that outgrows the text.
//!
//! The tree builder compares every attribute of an element with every other and copies the
//! namespaces in scope at every declaration, so both are counted before it starts.
use roxmltree::{Document, ParsingOptions};

use crate::error::{Error, ErrorKind, Result};

/// The largest descriptor that is read, in bytes.
pub const MAX_BYTES: usize = 10 * 1024 * 1024;
const MAX_NODES: u32 = 500_000;
const MAX_ATTRIBUTES_PER_ELEMENT: usize = 1024;
const MAX_NAMESPACE_DECLARATIONS: usize = 1024;

pub fn decode(bytes: &[u8]) -> Result<&str> {
    if bytes.len() > MAX_BYTES {
        return Err(Error::invalid(format!(
            "the OVF descriptor has {} bytes, more than {MAX_BYTES}",
            bytes.len()
        ))
        .with_remedy("export the VM again; a descriptor describes hardware and holds no data"));
    }
    std::str::from_utf8(bytes).map_err(|error| {
        Error::new(
            ErrorKind::Unsupported,
            "the OVF descriptor is not UTF-8 text",
        )
        .with_remedy("save the descriptor as UTF-8")
        .with_source(error)
    })
}

pub fn parse(text: &str) -> Result<Document<'_>> {
    check_shape(text)?;
    let options = ParsingOptions {
        allow_dtd: false,
        nodes_limit: MAX_NODES,
        ..ParsingOptions::default()
    };
    Document::parse_with_options(text, options).map_err(|error| match error {
        roxmltree::Error::DtdDetected => {
            Error::invalid("the OVF descriptor has a document type definition")
                .with_remedy("remove the DOCTYPE; entities are never resolved")
        }
        roxmltree::Error::NodesLimitReached => too_large("elements", MAX_NODES as usize),
        error => Error::new(
            ErrorKind::Corrupt,
            "the OVF descriptor is not well-formed XML",
        )
        .with_remedy("export the VM again or copy the descriptor again")
        .with_source(error),
    })
}

/// `<` cannot stand in an attribute's value, so every element lies between two of them.
fn check_shape(text: &str) -> Result<()> {
    let mut declarations = 0_usize;
    for tag in text.split('<') {
        let pairs = tag.bytes().zip(tag.bytes().skip(1));
        let attributes = pairs.filter(|&(_, next)| next == b'=').count();
        if attributes > MAX_ATTRIBUTES_PER_ELEMENT && is_element(tag) {
            return Err(too_large("attributes", MAX_ATTRIBUTES_PER_ELEMENT));
        }
        declarations = declarations.saturating_add(tag.matches("xmlns").count());
        if declarations > MAX_NAMESPACE_DECLARATIONS {
            return Err(too_large(
                "namespace declarations",
                MAX_NAMESPACE_DECLARATIONS,
            ));
        }
    }
    Ok(())
}

fn is_element(tag: &str) -> bool {
    !tag.starts_with(['!', '?', '/'])
}

fn too_large(what: &str, limit: usize) -> Error {
    Error::invalid(format!("the OVF descriptor has more than {limit} {what}"))
        .with_remedy("export the VM again; a descriptor describes hardware and holds no data")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_texts_end_quickly_in_an_error() {
        let many_attributes: String = (0..500_000).map(|i| format!(" a{i}=''")).collect();
        let nested_namespaces: String = (0..60_000)
            .map(|i| format!("<a xmlns:b{i}='u{i}'>"))
            .collect();
        let cases = [
            (
                "<!DOCTYPE e [<!ENTITY x SYSTEM \"file:///etc/passwd\">]><e>&x;</e>".to_owned(),
                ErrorKind::Invalid,
                "document type",
            ),
            (
                "<!DOCTYPE l [<!ENTITY a \"lol\"><!ENTITY b \"&a;&a;\">]><l>&b;</l>".to_owned(),
                ErrorKind::Invalid,
                "document type",
            ),
            (
                "<e>&undefined;</e>".to_owned(),
                ErrorKind::Corrupt,
                "well-formed",
            ),
            (
                format!("<e{many_attributes}/>"),
                ErrorKind::Invalid,
                "attributes",
            ),
            (nested_namespaces, ErrorKind::Invalid, "namespace"),
            ("<a>".repeat(400_000), ErrorKind::Corrupt, "well-formed"),
            (
                format!("<e>{}</e>", "<a/>".repeat(600_000)),
                ErrorKind::Invalid,
                "elements",
            ),
            ("<e>".to_owned(), ErrorKind::Corrupt, "well-formed"),
            (String::new(), ErrorKind::Corrupt, "well-formed"),
        ];
        let started = std::time::Instant::now();
        for (text, kind, about) in cases {
            let error = parse(decode(text.as_bytes()).unwrap()).unwrap_err();
            let begin: String = text.chars().take(40).collect();
            assert_eq!(error.kind, kind, "{begin}: {error}");
            assert!(error.to_string().contains(about), "{begin}: {error}");
        }
        assert!(started.elapsed().as_secs() < 60);
        assert_eq!(
            decode(b"\xff\xfe<\0").unwrap_err().kind,
            ErrorKind::Unsupported
        );
        assert!(decode(&vec![b' '; MAX_BYTES + 1]).is_err());
    }
}
