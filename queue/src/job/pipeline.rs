//! What a manifest asks to be done with the VM, stage by stage.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The fields that we do not know, as they were read.
pub(super) type Unknown = BTreeMap<String, Value>;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pipeline {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inspect: Option<InspectStage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<FixStage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub convert: Option<ConvertStage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validate: Option<ValidateStage>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InspectStage {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FixStage {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// `stabilize-all`, `bypath-only` or `noop`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fstab_mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regen_initramfs: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_grub: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remove_vmware_tools: Option<bool>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ValidateStage {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check_image_integrity: Option<bool>,
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl ValidateStage {
    /// Whether the result is to be read again: one of the two asks for it, neither forbids it.
    pub fn is_asked(&self) -> bool {
        let wishes = [self.enabled, self.check_image_integrity];
        wishes.contains(&Some(true)) && !wishes.contains(&Some(false))
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConvertStage {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compress: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compress_level: Option<u32>,
    #[serde(flatten)]
    pub unknown: Unknown,
}
