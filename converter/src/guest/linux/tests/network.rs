//! Every interface keeps its name and its addresses, on the card with its MAC address.
use std::collections::{BTreeMap, BTreeSet};

use queue::instance::config::Guest as Settings;

use super::tree::{Files, Sample};
use crate::guest::linux::network::identity::{Interface, is_name, pair};
use crate::guest::linux::network::rules;
use crate::guest::linux::plan::cards::{Stack, survey};
use crate::guest::linux::plan::plan;

type Cards = BTreeMap<String, (Option<String>, BTreeSet<String>)>;

/// What all stacks together say: each name's card and addresses.
fn cards(files: &Files, macs: &[String]) -> Cards {
    let mut interfaces = Vec::new();
    for (path, bytes) in &files.contents {
        interfaces.extend(
            Stack::of(path)
                .into_iter()
                .flat_map(|stack| stack.read(path, bytes)),
        );
    }
    let pairing = pair(&interfaces, macs);
    let mut cards = Cards::new();
    for Interface {
        name,
        mac,
        addresses,
    } in interfaces
    {
        let known = || pairing.name_of(mac.as_deref()?).map(str::to_owned);
        // A configuration by MAC address alone stays with that card, whatever its name.
        let Some(name) = name.or_else(known).or_else(|| mac.clone()) else {
            continue;
        };
        let card = pairing.mac_of(&name).map(str::to_owned);
        let entry = cards.entry(name).or_insert((card, BTreeSet::new()));
        entry.1.extend(addresses);
    }
    cards
}

#[test]
fn names_and_addresses_stay_with_their_cards() {
    let mut pinned = 0;
    for name in Sample::names() {
        let mut sample = Sample::load(&name);
        let macs: Vec<String> = sample
            .guest
            .nics
            .iter()
            .filter_map(|nic| nic.mac.clone())
            .collect();
        let before = cards(&sample.files, &macs);
        let actions = plan(&sample.guest, &Settings::default(), &mut sample.files).unwrap();
        sample.files.apply(&actions);
        let after = cards(&sample.files, &macs);
        assert_eq!(before, after, "{name}");
        assert!(!after.is_empty(), "{name} has no interface at all");
        let has_udev = sample.files.present.iter().any(|path| path == "/etc/udev");
        for (interface, (card, _)) in &after {
            let Some(card) = card.as_deref().filter(|_| has_udev && is_name(interface)) else {
                continue;
            };
            // Something in the guest gives the name to the card.
            let gives = |(path, bytes): (&String, &Vec<u8>)| {
                let stack = Stack::of(path).filter(|stack| stack.names_cards());
                let told = stack
                    .map(|stack| stack.read(path, bytes))
                    .unwrap_or_default();
                told.iter().any(|told| {
                    told.name.as_deref() == Some(interface) && told.mac.as_deref() == Some(card)
                })
            };
            assert!(
                sample.files.contents.iter().any(gives),
                "{name}: {interface} {card}"
            );
            pinned += 1;
        }
    }
    assert!(pinned > 25, "{pinned}");
}

#[test]
fn the_machines_cards_get_the_names_that_the_files_tell() {
    let mut named = 0;
    for name in Sample::names() {
        let mut sample = Sample::load(&name);
        survey(&mut sample.files, &mut sample.guest).unwrap();
        let guest = &sample.guest;
        assert!(!guest.interfaces.is_empty(), "{name}");
        for interface in &guest.interfaces {
            for path in &interface.files {
                assert!(sample.files.contents.contains_key(path), "{name}: {path}");
            }
        }
        named += guest.nics.iter().filter(|nic| nic.name.is_some()).count();
        if name == "rocky-8" {
            assert_eq!(guest.nics[0].name.as_deref(), Some("ens192"));
            let card = &guest.interfaces[0];
            assert_eq!(card.name.as_deref(), Some("ens192"));
            assert!(!card.addresses.is_empty());
            let file = "/etc/sysconfig/network-scripts/ifcfg-ens192";
            assert_eq!(card.files, [file]);
        }
    }
    assert!(named > 20, "{named}");
}

proptest::proptest! {
    #[test]
    fn any_cards_get_back_the_names_they_had(count in 1_usize..6, eth in proptest::bool::ANY) {
        let mac = |card| format!("00:50:56:9a:20:{card:02x}");
        let macs: Vec<String> = (0..count).map(mac).collect();
        let name = |card: usize| match eth {
            true => format!("eth{card}"),
            false => format!("enp{}s0", card + 3),
        };
        let told: Vec<Interface> = macs
            .iter()
            .enumerate()
            .map(|(card, mac)| Interface {
                name: Some(name(card)),
                mac: Some(mac.clone()),
                addresses: Vec::new(),
            })
            .collect();
        let pairing = pair(&told, &macs);
        proptest::prop_assert_eq!(pairing.pins.len(), count);
        let read = rules::read(&rules::render(&pairing.pins, None));
        proptest::prop_assert_eq!(read, told);
    }
}

#[test]
fn cards_without_a_mac_are_paired_only_where_it_is_certain() {
    let macs = |count: usize| -> Vec<String> {
        (0..count)
            .map(|card| format!("00:50:56:00:00:{card:02x}"))
            .collect()
    };
    for (names, cards, paired) in [
        (&["ens192"][..], 1, "ens192=0"),
        (&["enp3s0"], 1, "enp3s0=0"),
        (&["ens192"], 2, ""),
        (
            &["ens160", "ens192", "ens224"],
            3,
            "ens160=0 ens192=1 ens224=2",
        ),
        (&["ens161", "ens192"], 2, ""),
        (&["enp3s0", "enp4s0"], 2, ""),
        (&["eth0"], 2, "eth0=0"),
        (&["eth1"], 2, "eth1=1"),
        (&["eth0", "eth7"], 2, "eth0=0 eth7=1"),
        (&["ens192"], 0, ""),
        // Neither bridges nor what already is its MAC address are cards.
        (
            &[
                "br0",
                "bond0",
                "docker0",
                "wlan0",
                "enx005056000000",
                "ens192.7",
            ],
            1,
            "",
        ),
    ] {
        let told: Vec<Interface> = names
            .iter()
            .map(|name| Interface {
                name: Some((*name).to_owned()),
                ..Interface::default()
            })
            .collect();
        let macs = macs(cards);
        let pairing = pair(&told, &macs);
        let pins = pairing.pins.iter().map(|pin| {
            let card = macs.iter().position(|mac| *mac == pin.mac).unwrap();
            format!("{}={card}", pin.name)
        });
        assert_eq!(pins.collect::<Vec<_>>().join(" "), paired, "{names:?}");
        let only = (cards == 0).then(|| names.join(" "));
        assert_eq!(pairing.only, only, "{names:?}");
    }
}

#[test]
fn netplan_tells_which_card_is_meant() {
    let lines = [
        "network:",
        "    ethernets:",
        "        lan0:",
        "            macaddress: 00:50:56:00:00:99",
        "            addresses:",
        "                - 192.0.2.1/24",
        "            nameservers:",
        "                addresses:",
        "                - 192.0.2.53",
        "        wan:",
        "            match:",
        "                macaddress: 00:50:56:00:00:01",
        "            set-name: wan0",
        "            dhcp4: yes",
        "        NM-5d7e7a55-4e0e-3b1c-9f69-3d1c0f2a7b10:",
        "            renderer: NetworkManager",
        "            match:",
        "                name: \"ens160\"",
        "            dhcp4: true",
        "        flow:",
        "            match: {name: ens224}",
        "            dhcp4: true",
        "        all:",
        "            match:",
        "                name: en*",
        "            dhcp4: true",
        "    bridges:",
        "        br0:",
        "            addresses: [192.0.2.9/24]",
    ];
    let text = lines.join("\n");
    let card = |name: &str, mac: Option<&str>, address: &str| Interface {
        name: Some(name.to_owned()),
        mac: mac.map(str::to_owned),
        addresses: vec![address.to_owned()],
    };
    let expected = [
        card("lan0", None, "192.0.2.1/24"),
        card("wan0", Some("00:50:56:00:00:01"), "dhcp"),
        card("ens160", None, "dhcp"),
        card("ens224", None, "dhcp"),
        Interface {
            addresses: vec!["dhcp".to_owned()],
            ..Interface::default()
        },
    ];
    assert_eq!(
        Stack::Netplan.read("/etc/netplan/a.yaml", text.as_bytes()),
        expected
    );
}
