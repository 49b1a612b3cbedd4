//! Netplan's YAML: /etc/netplan/*.yaml.
//!
//! Read by its indentation, block style only, which is what installers and cloud-init write. With
//! `macaddress` and `set-name` netplan itself ties the name to the card; that stays.
use super::identity::{Interface, mac};
use crate::guest::linux::edit::{Edit, Fate, decode, refusal, revise};

/// A line of block-style YAML.
struct Node<'a> {
    indent: usize,
    key: &'a str,
    value: &'a str,
}

fn node(line: &str) -> Option<Node<'_>> {
    let text = line.trim_start_matches(' ');
    let indent = line.len() - text.len();
    let text = text.split(" #").next().unwrap_or(text).trim_ascii_end();
    if text.is_empty() || text.starts_with('#') {
        return None;
    }
    let (indent, text) = match text.strip_prefix("- ") {
        Some(item) => (indent + 2, item.trim_ascii()),
        None => (indent, text),
    };
    let (key, value) = match text.split_once(": ") {
        Some((key, value)) => (key, value.trim_ascii()),
        None => (text.strip_suffix(':').unwrap_or(text), ""),
    };
    Some(Node {
        indent,
        key: unquoted(key),
        value: unquoted(value),
    })
}

fn unquoted(text: &str) -> &str {
    let single = text
        .strip_prefix('\'')
        .and_then(|text| text.strip_suffix('\''));
    let double = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'));
    single.or(double).unwrap_or(text)
}

/// The Ethernet cards that a file configures.
pub fn read(bytes: &[u8]) -> Vec<Interface> {
    if refusal(bytes).is_some() {
        return Vec::new();
    }
    let text = decode(bytes);
    let mut reader = Reader::default();
    for node in text.lines().filter_map(node) {
        reader.take(&node);
    }
    reader.found
}

/// A mapping inside a card's, as long as the lines are deeper than its key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    Addresses,
    Match,
    /// `addresses` below it are somebody else's.
    Other,
}

#[derive(Default)]
struct Reader {
    found: Vec<Interface>,
    /// The indentation of `ethernets`, and of a card below it.
    ethernets: Option<usize>,
    card: Option<usize>,
    block: Option<(usize, Block)>,
    /// Whether the card's first word is its name, and not only a label.
    is_set: bool,
}

impl Reader {
    fn take(&mut self, node: &Node<'_>) {
        let is_deeper = |indent: Option<usize>| indent.is_some_and(|indent| node.indent > indent);
        if !is_deeper(self.ethernets) {
            self.ethernets = None;
            self.card = None;
        }
        if node.key == "ethernets" && node.value.is_empty() {
            self.ethernets = Some(node.indent);
        } else if self.ethernets.is_some() && !is_deeper(self.card) {
            self.card = Some(node.indent);
            self.block = None;
            self.is_set = false;
            self.found.push(Interface {
                name: Some(node.key.to_owned()),
                ..Interface::default()
            });
        } else if self.card.is_some() {
            self.take_setting(node);
        }
    }

    fn take_setting(&mut self, node: &Node<'_>) {
        let Some(interface) = self.found.last_mut() else {
            return;
        };
        match self.block.filter(|(indent, _)| node.indent > *indent) {
            Some((_, Block::Addresses)) => {
                if node.value.is_empty() {
                    interface.addresses.push(node.key.to_owned());
                }
                return;
            }
            Some((_, Block::Match)) => {
                if node.key == "macaddress" {
                    interface.mac = mac(node.value);
                } else if node.key == "name" && !self.is_set {
                    interface.name = exact(node.value);
                }
                return;
            }
            Some((_, Block::Other)) => return,
            None => self.block = None,
        }
        match node.key {
            "addresses" => {
                self.block = Some((node.indent, Block::Addresses));
                interface.addresses.extend(flow_list(node.value));
            }
            "dhcp4" | "dhcp6" if matches!(node.value, "true" | "yes") => {
                interface.addresses.push("dhcp".to_owned());
            }
            "set-name" => {
                interface.name = Some(node.value.to_owned());
                self.is_set = true;
            }
            "match" => {
                self.block = Some((node.indent, Block::Match));
                if !self.is_set {
                    interface.name = flow_value(node.value, "name:").and_then(exact);
                }
                interface.mac = flow_value(node.value, "macaddress:").and_then(mac);
            }
            _ if node.value.is_empty() => self.block = Some((node.indent, Block::Other)),
            _ => {}
        }
    }
}

/// The name that an interface must have to be meant; a pattern is none.
fn exact(name: &str) -> Option<String> {
    (!name.contains(['*', '?', '['])).then(|| name.to_owned())
}

/// `{macaddress: …, name: …}`
fn flow_value<'a>(mapping: &'a str, key: &str) -> Option<&'a str> {
    let inside = mapping.split(key).nth(1)?;
    let value = inside.split([',', '}']).next()?;
    Some(unquoted(value.trim_ascii()))
}

fn flow_list(value: &str) -> Vec<String> {
    let inside = value.trim_matches(['[', ']']);
    let items = inside.split(',').map(|item| unquoted(item.trim_ascii()));
    items
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Whether `ethernets` is there in a style that `read` does not understand.
pub fn is_flow(bytes: &[u8]) -> bool {
    let text = decode(bytes);
    text.lines().any(|line| {
        let behind = line.split("ethernets").nth(1).unwrap_or_default();
        behind.contains('{') || line.trim_ascii_start().starts_with("network: {")
    })
}

/// Matches by the driver that is gone become matches by the one that is there.
pub fn revise_netplan(bytes: &[u8]) -> Edit {
    revise(bytes, |line, notes| {
        let split = line.find("driver:").filter(|_| node(line).is_some());
        let (before, driver) = line.split_at(split.unwrap_or(line.len()));
        if !driver.contains("vmxnet3") {
            return Fate::Keep;
        }
        notes.change("the card has another driver now");
        let driver = driver
            .replace("vmxnet3*", "vmxnet3")
            .replace("vmxnet3", "virtio_net");
        Fate::Replace(format!("{before}{driver}"))
    })
}
