//! `Machine`: the virtual hardware around the disks, as an OVF or a manifest describes it.
//!
//! What a source does not say stays `None`; nothing is guessed here.
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    Bios,
    #[serde(alias = "efi")]
    Uefi,
    #[default]
    #[serde(other)]
    Unknown,
}

/// Virtual hardware; every field is absent where the source is silent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The VM's name as the source says it, not yet encoded.
    pub name: Option<String>,
    pub cpus: Option<u32>,
    pub memory_bytes: Option<u64>,
    #[serde(default)]
    pub firmware: Firmware,
    pub secure_boot: Option<bool>,
    pub tpm: Option<bool>,
    /// Guest operating system as free text or as the source's own identifier (`debian12_64Guest`).
    pub os_hint: Option<String>,
    #[serde(default)]
    pub nics: Vec<Nic>,
    /// What was read over or could not be carried across, one line each.
    #[serde(default)]
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// `aa:bb:cc:dd:ee:ff`, lower case; checked by whoever renders it.
    pub mac: Option<String>,
    pub network: Option<String>,
    /// The source's model (`vmxnet3`, `E1000`).
    pub model: Option<String>,
}

impl Nic {
    /// A MAC address in any usual spelling as `aa:bb:cc:dd:ee:ff`; `None` for what no card can have
    /// (not six bytes, a group address, all zero).
    pub fn normal_mac(text: &str) -> Option<String> {
        let separator = |c: char| matches!(c, ':' | '-' | '.');
        let digits: String = text.trim().chars().filter(|c| !separator(*c)).collect();
        if digits.len() != 12 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let bits = u64::from_str_radix(&digits, 16).ok()?;
        let is_group = bits & (1 << 40) != 0;
        if bits == 0 || is_group {
            return None;
        }
        let bytes: Vec<String> = bits
            .to_be_bytes()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        bytes.get(2..).map(|six| six.join(":"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_have_one_spelling() {
        for (text, mac) in [
            ("00:50:56:AB:cd:01", Some("00:50:56:ab:cd:01")),
            ("00-50-56-ab-cd-01", Some("00:50:56:ab:cd:01")),
            ("0050.56ab.cd01", Some("00:50:56:ab:cd:01")),
            (" 08002751D5B1 ", Some("08:00:27:51:d5:b1")),
            ("00:00:00:00:00:00", None),
            ("ff:ff:ff:ff:ff:ff", None),
            ("01:00:5e:00:00:01", None),
            ("00:50:56:ab:cd", None),
            ("00:50:56:ab:cd:0g", None),
            ("+00:50:56:ab:cd:0", None),
            ("é0:50:56:ab:cd:0", None),
            ("", None),
        ] {
            assert_eq!(Nic::normal_mac(text).as_deref(), mac, "{text}");
        }
    }
}
