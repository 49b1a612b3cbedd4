//! udev's rules for names: 70-persistent-net.rules of the guest, and the one file that we add.
use super::identity::{Interface, Pairing, Pin, mac};
use crate::guest::linux::edit::{Edit, Fate, decode, quote, refusal, revise};

pub const PATH: &str = "/etc/udev/rules.d/70-hyper2kvm-net.rules";

/// What ties a rule to a slot or a driver.
const HARDWARE: [&str; 7] = [
    "KERNELS",
    "ID",
    "BUS",
    "SUBSYSTEMS",
    "ENV{ID_PATH}",
    "ENV{ID_NET_DRIVER}",
    "ATTRS{device}",
];

/// The rules that give `pins` their names, and `only` to any card. `DRIVERS` leaves out bonds and
/// VLANs, which have the card's address too.
pub fn render(pins: &[Pin], only: Option<&str>) -> Vec<u8> {
    let mut text = "# Names of the network cards, by their MAC addresses.\n".to_owned();
    for Pin { name, mac } in pins {
        text.push_str(&format!(
            "SUBSYSTEM==\"net\", ACTION==\"add\", DRIVERS==\"?*\", ATTR{{address}}==\"{mac}\", \
             ATTR{{type}}==\"1\", NAME=\"{name}\"\n"
        ));
    }
    if let Some(name) = only {
        text.push_str(&format!(
            "# The only card, whose address was not known.\n\
             SUBSYSTEM==\"net\", ACTION==\"add\", DRIVERS==\"?*\", ATTR{{type}}==\"1\", \
             NAME=\"{name}\"\n"
        ));
    }
    text.into_bytes()
}

/// The names that a file of rules gives, and to which cards.
pub fn read(bytes: &[u8]) -> Vec<Interface> {
    if refusal(bytes).is_some() {
        return Vec::new();
    }
    let text = decode(bytes);
    text.lines()
        .filter_map(|line| {
            let terms = terms(line);
            Some(Interface {
                name: Some(name(&terms)?.to_owned()),
                mac: address(&terms),
                addresses: Vec::new(),
            })
        })
        .collect()
}

/// Takes slots and drivers out of rules that name a card by its address; a rule that knows only
/// the slot gets the address.
pub fn revise_rules(bytes: &[u8], pairing: &Pairing) -> Edit {
    revise(bytes, |line, notes| {
        let terms = terms(line);
        let Some(name) = name(&terms) else {
            return Fate::Keep;
        };
        let is_hardware = |term: &Term<'_>| {
            let is_any = term.value == "?*" || (term.key == "SUBSYSTEMS" && term.value != "pci");
            let is_driver = matches!(term.key, "DRIVERS" | "DRIVER" | "ATTRS{driver}");
            term.is_match && !is_any && (HARDWARE.contains(&term.key) || is_driver)
        };
        if !terms.iter().any(is_hardware) {
            return Fate::Keep;
        }
        let mut kept: Vec<String> = Vec::new();
        if address(&terms).is_none() {
            let Some(mac) = pairing.mac_of(name) else {
                notes.skip(format!(
                    "{} stays tied to a slot: no card is known",
                    quote(name)
                ));
                return Fate::Keep;
            };
            kept.push(format!("ATTR{{address}}==\"{mac}\""));
        }
        notes.change(format!(
            "{} is tied to its card by the MAC address alone",
            quote(name)
        ));
        // Bonds and VLANs have the address too, but no driver.
        if !terms
            .iter()
            .any(|term| term.key == "DRIVERS" && !is_hardware(term))
        {
            kept.push("DRIVERS==\"?*\"".to_owned());
        }
        let others = terms.iter().filter(|term| !is_hardware(term));
        let mut words: Vec<String> = others.map(|term| term.text.to_owned()).collect();
        words.splice(1.min(words.len())..1.min(words.len()), kept);
        Fate::Replace(words.join(", "))
    })
}

/// One `KEY=="value"` of a rule.
struct Term<'a> {
    text: &'a str,
    key: &'a str,
    value: &'a str,
    is_match: bool,
}

/// All of a rule's terms; none at all of a line that is not understood to its end.
fn terms(line: &str) -> Vec<Term<'_>> {
    let line = line.trim_ascii();
    if line.starts_with('#') {
        return Vec::new();
    }
    // No value in a rule for a card holds a comma.
    let pieces = line
        .split(',')
        .map(str::trim_ascii)
        .filter(|text| !text.is_empty());
    pieces.map(term).collect::<Option<_>>().unwrap_or_default()
}

fn term(text: &str) -> Option<Term<'_>> {
    let (key, rest) = text.split_at(text.find(['=', '!', '+', ':'])?);
    let (operator, value) = rest.split_once('"')?;
    Some(Term {
        text,
        key: key.trim_ascii(),
        value: value.strip_suffix('"')?,
        is_match: operator.trim_ascii() == "==",
    })
}

fn name<'a>(terms: &[Term<'a>]) -> Option<&'a str> {
    let name = terms
        .iter()
        .find(|term| term.key == "NAME" && !term.is_match)?;
    super::identity::is_name(name.value).then_some(name.value)
}

fn address(terms: &[Term<'_>]) -> Option<String> {
    let keys = [
        "ATTR{address}",
        "SYSFS{address}",
        "ATTRS{address}",
        "ENV{ID_NET_NAME_MAC}",
    ];
    let mut found = terms
        .iter()
        .filter(|term| term.is_match && keys.contains(&term.key));
    mac(found.next()?.value)
}
