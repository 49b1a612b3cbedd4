//! Which interface is which card: names and MAC addresses, from every file that tells of them.
use std::collections::{BTreeMap, BTreeSet};

use queue::job::Nic;

/// An interface as one file describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interface {
    pub name: Option<String>,
    /// The card's, as the file says; not one that the file gives to it.
    pub mac: Option<String>,
    /// As they are written, with or without a prefix length; `dhcp` for those.
    pub addresses: Vec<String>,
}

/// An interface's name, and the card that has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pin {
    pub name: String,
    pub mac: String,
}

impl Interface {
    /// Where both are told.
    pub fn pin(self) -> Option<Pin> {
        Some(Pin {
            name: self.name?,
            mac: self.mac?,
        })
    }
}

/// What is known of the machine's cards, and what is not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pairing {
    pub pins: Vec<Pin>,
    /// The one name that is in use, where nobody knows the one card's MAC address: a disk that
    /// came without its machine.
    pub only: Option<String>,
    pub doubts: Vec<String>,
}

impl Pairing {
    pub fn mac_of(&self, name: &str) -> Option<&str> {
        let pin = self.pins.iter().find(|pin| pin.name == name)?;
        Some(&pin.mac)
    }

    pub fn name_of(&self, mac: &str) -> Option<&str> {
        let pin = self.pins.iter().find(|pin| pin.mac == mac)?;
        Some(&pin.name)
    }

    /// Whether these two are known to belong together.
    pub fn holds(&self, name: &str, mac: &str) -> bool {
        self.mac_of(name) == Some(mac)
    }
}

pub fn mac(text: &str) -> Option<String> {
    (text.len() < 40).then(|| Nic::normal_mac(text))?
}

/// A name that the kernel takes and that needs no quoting anywhere.
pub fn is_name(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    (1..=15).contains(&name.len())
        && name.chars().all(is_allowed)
        && !name.starts_with(['.', '-'])
        && name != "lo"
}

/// A name such as the kernel or udev gives to an Ethernet card: `eth0`, `ens192`, `enp3s0f1`,
/// `em1`, `p2p1`; not a bridge, a bond, a VLAN, and not `enx…`, which is the MAC itself.
pub fn is_card(name: &str) -> bool {
    if !is_name(name) || name.contains('.') || name.starts_with("enx") {
        return false;
    }
    let digits = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit());
    ["eth", "ens", "eno", "enp", "enP", "em", "p"]
        .iter()
        .any(|start| name.strip_prefix(start).is_some_and(digits))
}

/// Finds each name's card. `macs` are the machine's, in its order.
pub fn pair(interfaces: &[Interface], macs: &[String]) -> Pairing {
    let mut told: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for interface in interfaces {
        let Some(name) = interface.name.as_deref().filter(|name| is_name(name)) else {
            continue;
        };
        if let Some(mac) = interface.mac.as_deref() {
            told.entry(name).or_default().insert(mac);
        }
        if is_card(name) || interface.mac.is_some() {
            names.insert(name);
        }
    }
    let mut pairing = Pairing::default();
    for (name, claimed) in &told {
        let real: Vec<&&str> = claimed
            .iter()
            .filter(|mac| macs.is_empty() || macs.iter().any(|known| known == *mac))
            .collect();
        match real.as_slice() {
            [mac] if pairing.name_of(mac).is_none() => pairing.pins.push(Pin {
                name: (*name).to_owned(),
                mac: (**mac).to_owned(),
            }),
            [] => {}
            _ => pairing
                .doubts
                .push(format!("the files disagree on the MAC address of {name}")),
        }
    }
    // A name tied to a card that is gone was not in use either.
    let is_open = |name: &&&str| pairing.mac_of(name).is_none() && !told.contains_key(**name);
    let open: Vec<&str> = names.iter().filter(is_open).copied().collect();
    // A configuration that names no interface has its card already.
    let nameless = interfaces
        .iter()
        .filter(|interface| interface.name.is_none());
    let is_taken = |mac: &str| nameless.clone().any(|it| it.mac.as_deref() == Some(mac));
    let is_free = |mac: &&String| pairing.name_of(mac).is_none() && !is_taken(mac);
    let free: Vec<&String> = macs.iter().filter(is_free).collect();
    pair_by_order(&open, &free, macs, &mut pairing);
    pairing.pins.sort();
    pairing
}

/// Names of which no file tells the card: in the order of the cards, where that is certain.
fn pair_by_order(open: &[&str], free: &[&String], macs: &[String], pairing: &mut Pairing) {
    let mut ordered: Vec<(u32, &str)> = open
        .iter()
        .filter_map(|name| Some((slot(name)?, *name)))
        .collect();
    ordered.sort();
    let is_counted = pairing.pins.is_empty()
        && open.iter().all(|name| name.starts_with("eth"))
        && ordered
            .iter()
            .all(|(number, _)| (*number as usize) < macs.len());
    let chosen: Vec<(&str, &String)> = match open {
        [] => return,
        [one] if macs.is_empty() && pairing.pins.is_empty() => {
            pairing.only = Some((*one).to_owned());
            return;
        }
        [one] if free.len() == 1 => free.iter().map(|mac| (*one, *mac)).collect(),
        _ if is_counted => {
            let cards = ordered.iter();
            cards
                .filter_map(|(number, name)| Some((*name, macs.get(*number as usize)?)))
                .collect()
        }
        several if free.len() == several.len() && ordered.len() == several.len() => {
            let names = ordered.iter().map(|(_, name)| *name);
            names.zip(free.iter().copied()).collect()
        }
        _ => {
            let names = open.join(", ");
            let doubt = match macs.len() {
                0 => format!("no MAC address is known; {names} may change their names"),
                cards => format!("no file tells which of the {cards} cards is which of {names}"),
            };
            pairing.doubts.push(doubt);
            return;
        }
    };
    for (name, mac) in chosen {
        pairing.pins.push(Pin {
            name: name.to_owned(),
            mac: mac.clone(),
        });
    }
}

/// The order in which VMware and the kernel number the first cards: `eth0`, `eth1`; `ens160`,
/// `ens192`, `ens224`, `ens256`, beyond which the slots start again.
fn slot(name: &str) -> Option<u32> {
    if let Some(number) = name.strip_prefix("eth") {
        return number.parse().ok();
    }
    let number: u32 = name.strip_prefix("ens")?.parse().ok()?;
    let is_known = matches!(number, 160 | 192 | 224 | 256) || (32..=39).contains(&number);
    is_known.then_some(number)
}
