//! /etc/network/interfaces and interfaces.d, interfaces(5): Debian's ifupdown and Alpine's.
use super::identity::{Interface, Pairing, mac};
use crate::guest::linux::edit::{Edit, Fate, decode, refusal, revise};

pub fn read(bytes: &[u8]) -> Vec<Interface> {
    if refusal(bytes).is_some() {
        return Vec::new();
    }
    let text = decode(bytes);
    let mut found: Vec<Interface> = Vec::new();
    let mut is_inside = false;
    for line in text.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words.as_slice() {
            ["iface", name, rest @ ..] => {
                // `eth0:1` is a further address of eth0.
                let name = name.split(':').next().unwrap_or(name);
                is_inside = !matches!(name, "lo") && !rest.contains(&"inherits");
                if !is_inside {
                    continue;
                }
                let known = found
                    .iter()
                    .position(|known| known.name.as_deref() == Some(name));
                let mut interface = known.map(|at| found.remove(at)).unwrap_or_default();
                interface.name = Some(name.to_owned());
                if rest.contains(&"dhcp") {
                    interface.addresses.push("dhcp".to_owned());
                }
                found.push(interface);
            }
            ["address", address, ..] if is_inside => {
                if let Some(interface) = found.last_mut() {
                    interface.addresses.push((*address).to_owned());
                }
            }
            [word, ..]
                if matches!(*word, "auto" | "mapping" | "source" | "source-directory")
                    || word.starts_with("allow-") =>
            {
                is_inside = false;
            }
            _ => {}
        }
    }
    found
}

/// Drops a `hwaddress` that only repeats the card's own, and lets no ethtool command that the old
/// card understood keep the interface down.
pub fn revise_interfaces(bytes: &[u8], pairing: &Pairing) -> Edit {
    let mut name = String::new();
    revise(bytes, |line, notes| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words.as_slice() {
            ["iface", iface, ..] => {
                name = iface.split(':').next().unwrap_or(iface).to_owned();
                Fate::Keep
            }
            ["hwaddress", rest @ ..] => {
                let given = rest.last().and_then(|word| mac(word));
                if !given.is_some_and(|mac| pairing.holds(&name, &mac)) {
                    return Fate::Keep;
                }
                notes.change("the card has this address of its own");
                Fate::Drop
            }
            [verb, rest @ ..] if is_hook(verb) && is_foreign(rest) => {
                notes.change("the new card may refuse this, and would stay down");
                Fate::Replace(format!("{} || true", line.trim_ascii_end()))
            }
            _ => Fate::Keep,
        }
    })
}

fn is_hook(verb: &str) -> bool {
    matches!(verb, "up" | "pre-up" | "post-up")
}

fn is_foreign(command: &[&str]) -> bool {
    let has = |wanted: &dyn Fn(&&&str) -> bool| command.iter().any(|word| wanted(&word));
    has(&|word| word.ends_with("ethtool"))
        && has(&|word| matches!(**word, "-G" | "-C" | "-K" | "--set-ring" | "--coalesce"))
        && !command.ends_with(&["||", "true"])
        && !command
            .iter()
            .any(|word| matches!(*word, ";" | "&" | "||" | "\\"))
}
