//! Walking an OVF's elements and attributes, whatever prefixes their writer chose.
use roxmltree::Node;

pub use crate::arrival::xml::{decode, parse};

/// The namespace of OVF's own attributes begins so, whatever its version.
const OVF_NAMESPACE: &str = "http://schemas.dmtf.org/ovf/envelope/";

/// The child elements called `name`, whatever their namespace: writers disagree about prefixes.
pub fn children<'a, 'input: 'a>(
    node: Node<'a, 'input>,
    name: &'static str,
) -> impl Iterator<Item = Node<'a, 'input>> {
    node.children()
        .filter(move |child| child.is_element() && child.tag_name().name() == name)
}

pub fn child<'a, 'input: 'a>(
    node: Node<'a, 'input>,
    name: &'static str,
) -> Option<Node<'a, 'input>> {
    children(node, name).next()
}

/// The trimmed text of the first child called `name`; an empty one counts as absent.
pub fn child_text<'a>(node: Node<'a, '_>, name: &'static str) -> Option<&'a str> {
    text(child(node, name)?)
}

pub fn text<'a>(node: Node<'a, '_>) -> Option<&'a str> {
    let text = node.text()?.trim();
    (!text.is_empty()).then_some(text)
}

/// An attribute by its local name: OVF's own or an unprefixed one, else that of an extension.
pub fn attribute<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    let mut extension = None;
    for attribute in node.attributes().filter(|a| a.name() == name) {
        let own = attribute
            .namespace()
            .is_none_or(|namespace| namespace.starts_with(OVF_NAMESPACE));
        if own {
            return Some(attribute.value().trim());
        }
        extension = Some(attribute.value().trim());
    }
    extension
}

/// A text of the descriptor as it may stand in a note: quoted and short.
pub fn quote(text: &str) -> String {
    const LONGEST: usize = 80;
    if text.chars().count() <= LONGEST {
        return format!("{text:?}");
    }
    let begin: String = text.chars().take(LONGEST).collect();
    format!("{begin:?}…")
}
