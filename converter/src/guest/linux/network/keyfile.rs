//! NetworkManager's keyfiles: /etc/NetworkManager/system-connections/*.nmconnection.
use super::identity::{Interface, Pairing, mac};
use crate::guest::linux::edit::{Edit, Fate, quote};
use crate::guest::linux::ini::{Setting, read as read_ini, revise_settings, values};

pub fn read(bytes: &[u8]) -> Option<Interface> {
    let settings = read_ini(bytes);
    let first = |section, key| values(&settings, section, key).next();
    let kind = first("connection", "type")?;
    if !matches!(kind, "ethernet" | "802-3-ethernet") {
        return None;
    }
    let mut addresses = Vec::new();
    for section in ["ipv4", "ipv6"] {
        let own = settings.iter().filter(|setting| setting.section == section);
        for Setting { key, value, .. } in own {
            // `address1=192.0.2.10/24,192.0.2.1`: the gateway is behind the comma.
            if key.starts_with("address") {
                let address = value.split([',', ';']).next().unwrap_or(value);
                addresses.push(address.to_owned());
            } else if key == "method" && value == "auto" {
                addresses.push("dhcp".to_owned());
            }
        }
    }
    let card = ["ethernet", "802-3-ethernet"]
        .iter()
        .find_map(|section| first(section, "mac-address").and_then(mac));
    Some(Interface {
        name: name(&settings),
        mac: card,
        addresses,
    })
}

/// The one interface that the profile is for, if it says so.
fn name(settings: &[Setting]) -> Option<String> {
    let own = values(settings, "connection", "interface-name").next();
    let matched = values(settings, "match", "interface-name")
        .next()
        .map(|value| value.trim_end_matches(';'));
    own.or(matched)
        .filter(|name| !name.is_empty() && !name.contains(['*', ';', '?', '!', '&', '|']))
        .map(str::to_owned)
}

pub fn revise_keyfile(bytes: &[u8], pairing: &Pairing) -> Edit {
    let settings = read_ini(bytes);
    let name = name(&settings);
    let named = name.as_deref();
    revise_settings(bytes, |section, key, value, notes| {
        let is_card = matches!(section, "ethernet" | "802-3-ethernet");
        match (section, key) {
            (_, "mac-address") if is_card => {
                let tied = mac(value)
                    .zip(named)
                    .filter(|(mac, name)| pairing.holds(name, mac));
                if tied.is_none() {
                    // The new machine's cards keep their addresses, so that this still holds.
                    return Fate::Keep;
                }
                notes.change("the name is tied to the card by a udev rule");
                Fate::Drop
            }
            ("match", "driver") if value.contains("vmxnet") => {
                notes.change("the card has another driver now");
                Fate::Drop
            }
            ("match", "path") if named.is_some() => {
                notes.change("the card is in another slot now");
                Fate::Drop
            }
            ("match", "path") => {
                let path = quote(value);
                notes.skip(format!("path={path} stays: the profile names no interface"));
                Fate::Keep
            }
            ("ethtool", key) if key.starts_with("ring-") || key.starts_with("coalesce-") => {
                notes.change("ring sizes and coalescing were vmxnet3's");
                Fate::Drop
            }
            _ => Fate::Keep,
        }
    })
}
