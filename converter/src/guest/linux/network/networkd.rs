//! systemd's .network and .link files: systemd.network(5), systemd.link(5).
use super::identity::{Interface, Pairing, mac};
use crate::guest::linux::edit::{Edit, Fate, quote};
use crate::guest::linux::ini::{Setting, read as read_ini, revise_settings, values};

/// The drivers of the cards that KVM offers.
const DRIVERS: &str = "virtio_net e1000e";

pub fn read_network(bytes: &[u8]) -> Option<Interface> {
    let settings = read_ini(bytes);
    let name = values(&settings, "Match", "Name")
        .next()
        .filter(|name| is_single(name));
    let mut addresses: Vec<String> = values(&settings, "Network", "Address")
        .chain(values(&settings, "Address", "Address"))
        .map(str::to_owned)
        .collect();
    let dhcp = values(&settings, "Network", "DHCP").next().unwrap_or("no");
    if !matches!(dhcp, "no" | "false" | "none") {
        addresses.push("dhcp".to_owned());
    }
    Some(Interface {
        name: name.map(str::to_owned),
        mac: values(&settings, "Match", "MACAddress")
            .next()
            .and_then(mac),
        addresses,
    })
}

/// A .link file that gives a card its name.
pub fn read_link(bytes: &[u8]) -> Option<Interface> {
    let settings = read_ini(bytes);
    Some(Interface {
        name: Some(values(&settings, "Link", "Name").next()?.to_owned()),
        mac: values(&settings, "Match", "MACAddress")
            .next()
            .and_then(mac),
        addresses: Vec::new(),
    })
}

fn is_single(name: &str) -> bool {
    !name.is_empty() && !name.contains(['*', '?', '[', ' ', '!'])
}

pub fn revise_network(bytes: &[u8], pairing: &Pairing) -> Edit {
    let settings = read_ini(bytes);
    let name = values(&settings, "Match", "Name")
        .next()
        .filter(|name| is_single(name));
    let has_mac = values(&settings, "Match", "MACAddress").next().is_some();
    revise_match(bytes, &settings, |key, value, other| match key {
        "MACAddress" => {
            let tied = mac(value)
                .zip(name)
                .filter(|(mac, name)| pairing.holds(name, mac));
            tied.map(|_| Verdict::Drop("the name is tied to the card by a udev rule"))
        }
        "Path" if name.is_some() || has_mac => {
            Some(Verdict::Drop("the card is in another slot now"))
        }
        "Path" => Some(match pairing.pins.as_slice() {
            [pin] if !other => Verdict::Mac(pin.mac.clone()),
            _ => Verdict::Stays("the file tells neither name nor MAC address"),
        }),
        _ => None,
    })
}

/// A .link file that finds its card by slot, old name or driver finds it by its MAC address.
pub fn revise_link(bytes: &[u8], pairing: &Pairing) -> Edit {
    let settings = read_ini(bytes);
    let given = values(&settings, "Link", "Name").next();
    let original = values(&settings, "Match", "OriginalName").next();
    let has_mac = values(&settings, "Match", "MACAddress").next().is_some();
    let card = given.or(original.filter(|name| is_single(name)));
    let card = card
        .and_then(|name| pairing.mac_of(name))
        .map(str::to_owned);
    let mut is_tied = has_mac;
    revise_match(bytes, &settings, |key, value, _| {
        let is_place = key == "Path" || (key == "OriginalName" && is_single(value));
        if !is_place {
            return None;
        }
        let known = card.clone();
        let verdict = match known {
            _ if is_tied => Verdict::Drop("the MAC address tells the card"),
            Some(mac) => Verdict::Mac(mac),
            None => Verdict::Stays("no card is known for it"),
        };
        is_tied |= matches!(verdict, Verdict::Mac(_));
        Some(verdict)
    })
}

enum Verdict {
    Drop(&'static str),
    /// `MACAddress=` takes its place.
    Mac(String),
    Stays(&'static str),
}

/// Goes through [Match]; `decide` is told whether a further setting there finds the card.
fn revise_match(
    bytes: &[u8],
    settings: &[Setting],
    mut decide: impl FnMut(&str, &str, bool) -> Option<Verdict>,
) -> Edit {
    let matches = settings
        .iter()
        .filter(|setting| setting.section == "Match")
        .count();
    revise_settings(bytes, |section, key, value, notes| {
        if section != "Match" {
            return Fate::Keep;
        }
        if key == "Driver" {
            let is_foreign = |word: &str| word.starts_with("vmxnet") || word == "pcnet32";
            if !value.split_ascii_whitespace().any(is_foreign) {
                return Fate::Keep;
            }
            notes.change("the card has another driver now");
            return Fate::Replace(format!("Driver={DRIVERS}"));
        }
        match decide(key, value, matches > 1) {
            None => Fate::Keep,
            Some(Verdict::Drop(why)) => {
                notes.change(why);
                Fate::Drop
            }
            Some(Verdict::Mac(mac)) => {
                notes.change("the card is in another slot now; its MAC address stays");
                Fate::Replace(format!("MACAddress={mac}"))
            }
            Some(Verdict::Stays(why)) => {
                notes.skip(format!("{key}={} stays: {why}", quote(value)));
                Fate::Keep
            }
        }
    })
}
