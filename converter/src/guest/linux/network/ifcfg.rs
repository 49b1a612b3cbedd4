//! ifcfg files of Red Hat's network-scripts and NetworkManager, and of SUSE's wicked.
use super::identity::{Interface, Pairing, mac};
use crate::guest::linux::edit::{Edit, Fate, decode, quote, refusal, revise};
use crate::guest::linux::shell::{assignments, value};

/// `file` is the name of the file, which is SUSE's only word on the interface's name.
pub fn read(file: &str, bytes: &[u8]) -> Option<Interface> {
    if refusal(bytes).is_some() {
        return None;
    }
    let text = decode(bytes);
    let get = |key: &str| value(&text, key).filter(|value| !value.is_empty());
    let kind = get("TYPE").unwrap_or("Ethernet");
    let is_virtual = [
        "BONDING_MASTER",
        "VLAN",
        "BRIDGE_PORTS",
        "ETHERDEVICE",
        "BONDING_OPTS",
    ]
    .iter()
    .any(|key| get(key).is_some_and(|value| value != "no"));
    if !kind.eq_ignore_ascii_case("ethernet") || is_virtual {
        return None;
    }
    // `ifcfg-eth0:1` is a second address of eth0, of which eth0's own file tells the card.
    let stem = file
        .strip_prefix("ifcfg-")
        .filter(|stem| !stem.contains(':'))?;
    let card = get("HWADDR").and_then(mac);
    let name = match get("DEVICE") {
        Some(device) => Some(device),
        None if card.is_none() || super::identity::is_card(stem) => Some(stem),
        None => None,
    };
    let all = assignments(&text);
    let mut addresses: Vec<String> = all
        .iter()
        .filter(|found| is_address(found.key))
        .map(|found| found.value.to_owned())
        .collect();
    if get("BOOTPROTO").is_some_and(|value| value.starts_with("dhcp")) {
        addresses.push("dhcp".to_owned());
    }
    Some(Interface {
        name: name.map(str::to_owned),
        mac: card,
        addresses,
    })
}

fn is_address(key: &str) -> bool {
    key.starts_with("IPADDR") || key == "IPV6ADDR" || key == "IPV6ADDR_SECONDARIES"
}

pub fn revise_ifcfg(file: &str, bytes: &[u8], pairing: &Pairing) -> Edit {
    let known = read(file, bytes);
    let named = known.as_ref().and_then(|interface| {
        let name = interface.name.as_deref()?;
        pairing.mac_of(name)
    });
    revise(bytes, |line, notes| {
        let all = assignments(line);
        let Some(found) = all.first() else {
            return Fate::Keep;
        };
        match found.key {
            "HWADDR" if mac(found.value).as_deref() == named && named.is_some() => {
                notes.change("the name is tied to the card by a udev rule");
                Fate::Drop
            }
            "HWADDR" if found.value.is_empty() => Fate::Keep,
            "HWADDR" => {
                notes.skip(format!(
                    "HWADDR={} stays: no such card is known",
                    quote(found.value)
                ));
                Fate::Keep
            }
            "ETHTOOL_OPTS" | "ETHTOOL_OPTIONS" => {
                let kept = kept_options(found.value);
                if kept == found.value {
                    return Fate::Keep;
                }
                notes.change("ring sizes and coalescing were vmxnet3's");
                if kept.is_empty() {
                    return Fate::Drop;
                }
                let mut line = line.to_owned();
                line.replace_range(found.range.clone(), &kept);
                Fate::Replace(line)
            }
            _ => Fate::Keep,
        }
    })
}

/// The commands of `ETHTOOL_OPTS` that any card understands.
fn kept_options(options: &str) -> String {
    let is_foreign = |command: &&str| {
        let verb = command.split_ascii_whitespace().next().unwrap_or_default();
        matches!(verb, "-G" | "--set-ring" | "-C" | "--coalesce")
    };
    if !options.split(';').any(|command| is_foreign(&command)) {
        return options.to_owned();
    }
    let kept: Vec<&str> = options
        .split(';')
        .filter(|command| !is_foreign(command))
        .collect();
    kept.join(";").trim_ascii().to_owned()
}
