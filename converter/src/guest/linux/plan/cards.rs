//! The network: first every file is read for names and cards, then each is revised.
use std::collections::BTreeSet;

use super::{Planner, Tree, files};
use crate::error::Result;
use crate::guest::linux::network::identity::{self, Interface, Pairing, Pin, pair};
use crate::guest::linux::network::{ifcfg, ifupdown, keyfile, netplan, networkd, rules, wicked};
use crate::guest::model;

/// A way of configuring an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stack {
    Ifcfg,
    Keyfile,
    Netplan,
    Network,
    Link,
    Interfaces,
    Wicked,
    Rules,
}

const PLACES: [(Stack, &str); 9] = [
    (Stack::Ifcfg, "/etc/sysconfig/network-scripts"),
    (Stack::Ifcfg, "/etc/sysconfig/network"),
    (Stack::Keyfile, "/etc/NetworkManager/system-connections"),
    (Stack::Netplan, "/etc/netplan"),
    (Stack::Network, "/etc/systemd/network"),
    (Stack::Link, "/etc/systemd/network"),
    (Stack::Interfaces, "/etc/network/interfaces.d"),
    (Stack::Wicked, "/etc/wicked/ifconfig"),
    (Stack::Rules, "/etc/udev/rules.d"),
];

/// Copies that editors and package managers leave; nobody reads them.
const LEFTOVERS: [&str; 6] = ["~", ".bak", ".orig", ".rpmsave", ".rpmnew", ".dpkg-old"];

impl Stack {
    fn owns(self, name: &str) -> bool {
        !LEFTOVERS.iter().any(|end| name.ends_with(end))
            && match self {
                Self::Ifcfg => name.starts_with("ifcfg-") && name != "ifcfg-lo",
                Self::Netplan => name.ends_with(".yaml"),
                Self::Network => name.ends_with(".network"),
                Self::Link => name.ends_with(".link"),
                Self::Wicked => name.ends_with(".xml"),
                Self::Rules => name.ends_with(".rules") && name.contains("net"),
                Self::Keyfile | Self::Interfaces => true,
            }
    }

    /// How the file at `path` is to be read, if it is the network's.
    #[cfg(test)]
    pub fn of(path: &str) -> Option<Self> {
        if path == "/etc/network/interfaces" {
            return Some(Self::Interfaces);
        }
        let (directory, name) = path.rsplit_once('/')?;
        let mut places = PLACES.iter();
        let found = places.find(|(stack, place)| *place == directory && stack.owns(name));
        found.map(|(stack, _)| *stack)
    }

    pub fn read(self, path: &str, bytes: &[u8]) -> Vec<Interface> {
        let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
        match self {
            Self::Ifcfg => ifcfg::read(name, bytes).into_iter().collect(),
            Self::Keyfile => keyfile::read(bytes).into_iter().collect(),
            Self::Netplan => netplan::read(bytes),
            Self::Network => networkd::read_network(bytes).into_iter().collect(),
            Self::Link => networkd::read_link(bytes).into_iter().collect(),
            Self::Interfaces => ifupdown::read(bytes),
            Self::Wicked => wicked::read(bytes),
            Self::Rules => rules::read(bytes),
        }
    }

    /// Whether the file itself gives the card its name, rather than only using it.
    pub fn names_cards(self) -> bool {
        matches!(self, Self::Rules | Self::Link | Self::Netplan)
    }
}

fn network_files(tree: &mut dyn Tree) -> Result<Vec<(Stack, String)>> {
    let mut all = Vec::new();
    for (stack, directory) in PLACES {
        let found = files(tree, directory, |name| stack.owns(name))?;
        all.extend(found.into_iter().map(|path| (stack, path)));
    }
    all.push((Stack::Interfaces, "/etc/network/interfaces".to_owned()));
    Ok(all)
}

fn macs(guest: &model::Guest) -> Vec<String> {
    let macs = guest.nics.iter().filter_map(|nic| nic.mac.as_deref());
    macs.filter_map(identity::mac).collect()
}

/// Fills in the interfaces that the guest's files configure, and the names of the machine's cards.
pub fn survey(tree: &mut dyn Tree, guest: &mut model::Guest) -> Result<()> {
    let mut told = Vec::new();
    for (stack, path) in network_files(tree)? {
        let bytes = tree.read(&path)?.unwrap_or_default();
        for interface in stack.read(&path, &bytes) {
            told.push(interface.clone());
            note(&mut guest.interfaces, interface, &path);
        }
    }
    let pairing = pair(&told, &macs(guest));
    for nic in &mut guest.nics {
        let mac = nic.mac.as_deref().and_then(identity::mac);
        let name = mac.and_then(|mac| pairing.name_of(&mac).map(str::to_owned));
        nic.name = name.or(nic.name.take());
    }
    Ok(())
}

/// Adds what one file says of an interface to what the others do.
fn note(known: &mut Vec<model::Interface>, told: Interface, path: &str) {
    let is_same = |it: &model::Interface| match &told.name {
        Some(name) => it.name.as_ref() == Some(name),
        None => it.name.is_none() && it.mac == told.mac,
    };
    let at = known.iter().position(is_same).unwrap_or(known.len());
    if at == known.len() {
        known.push(model::Interface::default());
    }
    let Some(place) = known.get_mut(at) else {
        return;
    };
    place.name = told.name;
    place.mac = place.mac.take().or(told.mac);
    place.addresses.extend(told.addresses);
    place.addresses.dedup();
    place.files.push(path.to_owned());
    place.files.dedup();
}

impl Planner<'_> {
    pub(super) fn cards(&mut self) -> Result<()> {
        let files = network_files(self.tree)?;
        let mut interfaces = Vec::new();
        for (stack, path) in &files {
            let bytes = self.read(path)?.unwrap_or_default();
            if *stack == Stack::Netplan && netplan::is_flow(&bytes) {
                let text = format!("{path}: written in flow style, which is not read");
                self.warn("network", text);
            }
            interfaces.extend(stack.read(path, &bytes));
        }
        let mut pairing = pair(&interfaces, &macs(self.guest));
        let has_udev = self.tree.exists("/etc/udev")? || self.tree.exists("/lib/udev")?;
        if !has_udev {
            // Names come from the kernel, in the order of the cards, which stays.
            pairing = Pairing::default();
        }
        for doubt in std::mem::take(&mut pairing.doubts) {
            self.warn("network", doubt);
        }
        for (stack, path) in &files {
            self.revise_card(*stack, path, &pairing)?;
        }
        self.pin(&pairing, &files)
    }

    /// One rule for each card whose name nothing else ties to it.
    fn pin(&mut self, pairing: &Pairing, files: &[(Stack, String)]) -> Result<()> {
        let mut given = BTreeSet::new();
        for (stack, path) in files.iter().filter(|(stack, _)| stack.names_cards()) {
            let bytes = self.read(path)?.unwrap_or_default();
            let pins = stack
                .read(path, &bytes)
                .into_iter()
                .filter_map(Interface::pin);
            given.extend(pins);
        }
        let pins = pairing.pins.iter();
        let new: Vec<Pin> = pins.filter(|pin| !given.contains(*pin)).cloned().collect();
        let only = pairing.only.as_deref();
        if let Some(name) = only {
            let text = format!("the source tells no MAC address: any card is {name}");
            self.warn("network", text);
        } else if new.is_empty() {
            return Ok(());
        }
        let own = self.read(rules::PATH)?.unwrap_or_default();
        let held = rules::read(&own).into_iter();
        let mut pins: BTreeSet<Pin> = held.filter_map(Interface::pin).collect();
        pins.extend(new);
        let pins: Vec<Pin> = pins.into_iter().collect();
        self.place(
            rules::PATH,
            rules::render(&pins, only),
            "the interface keeps its name",
        )?;
        Ok(())
    }

    fn revise_card(&mut self, stack: Stack, path: &str, pairing: &Pairing) -> Result<()> {
        let name = path
            .rsplit_once('/')
            .map_or(path, |(_, name)| name)
            .to_owned();
        self.edit(path, |_, bytes| match stack {
            Stack::Ifcfg => ifcfg::revise_ifcfg(&name, bytes, pairing),
            Stack::Keyfile => keyfile::revise_keyfile(bytes, pairing),
            Stack::Netplan => netplan::revise_netplan(bytes),
            Stack::Network => networkd::revise_network(bytes, pairing),
            Stack::Link => networkd::revise_link(bytes, pairing),
            Stack::Interfaces => ifupdown::revise_interfaces(bytes, pairing),
            Stack::Wicked => wicked::revise_wicked(bytes, pairing),
            Stack::Rules => rules::revise_rules(bytes, pairing),
        })?;
        Ok(())
    }
}
