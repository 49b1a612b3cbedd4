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
