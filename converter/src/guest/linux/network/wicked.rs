//! Wicked's own XML: /etc/wicked/ifconfig/*.xml.
use roxmltree::{Document, Node};

use super::identity::{Interface, Pairing, mac};
use crate::guest::linux::edit::{Edit, Splice, decode, refusal, splice};

/// A fragment of several `<interface>` elements is what wicked reads: it is put into one root.
/// Wicked uses prefixes that it never declares.
const ROOT: (&str, &str) = (
    "<config xmlns:ipv4=\"ipv4\" xmlns:ipv6=\"ipv6\">",
    "</config>",
);

pub fn read(bytes: &[u8]) -> Vec<Interface> {
    if refusal(bytes).is_some() {
        return Vec::new();
    }
    let text = wrapped(&decode(bytes));
    let Ok(document) = Document::parse(&text) else {
        return Vec::new();
    };
    let interfaces = document
        .descendants()
        .filter(|node| node.has_tag_name("interface"));
    interfaces.filter_map(read_interface).collect()
}

fn wrapped(text: &str) -> String {
    let body = match text
        .strip_prefix("<?xml")
        .and_then(|rest| rest.split_once("?>"))
    {
        // As many characters as before, so that positions stay.
        Some((head, body)) => format!("{}{body}", " ".repeat(head.len() + "<?xml?>".len())),
        None => text.to_owned(),
    };
    format!("{}{body}{}", ROOT.0, ROOT.1)
}

fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    node.children().find(|child| child.has_tag_name(name))
}

fn text_of<'a>(node: Node<'a, '_>) -> &'a str {
    node.text().map_or("", str::trim_ascii)
}

/// A name with a namespace is a rule by which to find the card.
fn pinned_mac(name: Node<'_, '_>) -> Option<String> {
    (name.attribute("namespace") == Some("ethernet")).then_some(())?;
    mac(text_of(child(name, "permanent-address")?))
}

fn read_interface(node: Node<'_, '_>) -> Option<Interface> {
    let is_virtual = ["bond", "bridge", "vlan", "dummy", "team"]
        .iter()
        .any(|kind| child(node, kind).is_some());
    let name = child(node, "name").filter(|_| !is_virtual)?;
    let is_plain = name.attribute("namespace").is_none();
    let mut addresses = Vec::new();
    for section in node
        .children()
        .filter(|child| child.tag_name().namespace().is_some())
    {
        match section.tag_name().name() {
            "static" => {
                let inside = section.descendants();
                let local = inside.filter(|node| node.has_tag_name("local"));
                addresses.extend(local.map(|node| text_of(node).to_owned()));
            }
            "dhcp" => addresses.push("dhcp".to_owned()),
            _ => {}
        }
    }
    Some(Interface {
        name: is_plain.then(|| text_of(name).to_owned()),
        mac: pinned_mac(name),
        addresses,
    })
}

/// A card found by its address gets its name instead; rings and coalescing were the old card's.
pub fn revise_wicked(bytes: &[u8], pairing: &Pairing) -> Edit {
    splice(bytes, |text| {
        let whole = wrapped(text);
        let Ok(document) = Document::parse(&whole) else {
            return Vec::new();
        };
        let mut splices = Vec::new();
        for node in document.descendants() {
            let range = node.range();
            let shift = |at: usize| at.saturating_sub(ROOT.0.len());
            let range = shift(range.start)..shift(range.end);
            let is_card = node
                .parent()
                .is_some_and(|parent| parent.has_tag_name("ethernet"));
            if is_card && matches!(node.tag_name().name(), "ring" | "coalesce") {
                splices.push(Splice {
                    range,
                    with: String::new(),
                    reasons: vec!["ring sizes and coalescing were vmxnet3's".to_owned()],
                    skipped: Vec::new(),
                });
            } else if node.has_tag_name("name")
                && let Some(name) = pinned_mac(node).and_then(|mac| {
                    let name = pairing.name_of(&mac)?;
                    Some(name.to_owned())
                })
            {
                splices.push(Splice {
                    range,
                    with: format!("<name>{name}</name>"),
                    reasons: vec!["the name is tied to the card by a udev rule".to_owned()],
                    skipped: Vec::new(),
                });
            }
        }
        splices
    })
}
