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
    let mut found: Vec<Interface> = Vec::new();
    // The indentation of `ethernets`, of a card below it, and of the key that holds a list.
    let (mut ethernets, mut card, mut list) = (None, None, None);
    let mut is_named = true;
    // Below these, `addresses` are somebody else's.
    let mut elsewhere: Option<usize> = None;
    for node in text.lines().filter_map(node) {
        if ethernets.is_some_and(|indent| node.indent <= indent) {
            (ethernets, card, list) = (None, None, None);
        }
        if node.key == "ethernets" && node.value.is_empty() {
            ethernets = Some(node.indent);
            continue;
        }
        if ethernets.is_none() {
            continue;
        }
        if card.is_none_or(|indent| node.indent <= indent) {
            (card, list, is_named) = (Some(node.indent), None, true);
            elsewhere = None;
            found.push(Interface {
                name: Some(node.key.to_owned()),
                ..Interface::default()
            });
            continue;
        }
        let Some(interface) = found.last_mut() else {
            continue;
        };
        if list.is_some_and(|indent| node.indent > indent) {
            let address = if node.value.is_empty() {
                node.key
            } else {
                continue;
            };
            interface.addresses.push(address.to_owned());
            continue;
        }
        list = None;
        if elsewhere.is_some_and(|indent| node.indent > indent) {
            continue;
        }
        elsewhere =
            matches!(node.key, "nameservers" | "routes" | "routing-policy").then_some(node.indent);
        match node.key {
            "addresses" if node.value.is_empty() => list = Some(node.indent),
            "addresses" => interface.addresses.extend(flow_list(node.value)),
            "dhcp4" | "dhcp6" if matches!(node.value, "true" | "yes") => {
                interface.addresses.push("dhcp".to_owned());
            }
            "set-name" => {
                interface.name = Some(node.value.to_owned());
                is_named = false;
            }
            // With a match the first word is only a label, unless a name is set.
            "match" => {
                if is_named {
                    interface.name = None;
                }
                // `match: {macaddress: …}`
                let inside = node.value.split("macaddress:").nth(1);
                let address = inside.and_then(|inside| inside.split([',', '}']).next());
                interface.mac = address.and_then(|address| mac(unquoted(address.trim_ascii())));
            }
            "macaddress" if card.is_some_and(|indent| node.indent > indent + 2) => {
                interface.mac = mac(node.value);
            }
            _ => {}
        }
    }
    found
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
