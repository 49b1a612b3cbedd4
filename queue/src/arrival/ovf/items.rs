//! The items of a VirtualHardwareSection: one `Item` per device, in the order of the descriptor.
//!
//! DSP0243 section 8: RASD items of OVF 1.x and 2.x, and the StorageItem and EthernetPortItem of
//! 2.x. Range markers (`ovf:bound`) and items of deployment options that are not the default are
//! left out.
use std::collections::HashMap;

use roxmltree::Node;

use super::xml::{attribute, child, child_text, children, quote, text};

/// CIM resource types (DSP0004, CIM_ResourceAllocationSettingData).
pub const CPU: u32 = 3;
pub const MEMORY: u32 = 4;
pub const IDE: u32 = 5;
pub const SCSI: u32 = 6;
pub const ETHERNET: u32 = 10;
pub const FLOPPY: u32 = 14;
pub const CD: u32 = 15;
pub const DVD: u32 = 16;
pub const DISK: u32 = 17;
pub const OTHER_STORAGE: u32 = 20;
pub const USB: u32 = 23;

#[derive(Debug, Clone, Default)]
pub struct Item {
    pub resource_type: Option<u32>,
    pub instance_id: Option<String>,
    pub parent: Option<String>,
    /// A controller's bus number, or a NIC's MAC address.
    pub address: Option<String>,
    pub address_on_parent: Option<u64>,
    pub quantity: Option<String>,
    pub units: Option<String>,
    pub subtype: Option<String>,
    pub element_name: Option<String>,
    pub connection: Option<String>,
    pub host_resources: Vec<String>,
}

impl Item {
    fn read(node: Node<'_, '_>) -> Self {
        let owned = |name| child_text(node, name).map(str::to_owned);
        Self {
            resource_type: child_text(node, "ResourceType").and_then(|text| text.parse().ok()),
            instance_id: owned("InstanceID").or_else(|| owned("InstanceId")),
            parent: owned("Parent"),
            address: owned("Address"),
            address_on_parent: child_text(node, "AddressOnParent").and_then(|t| t.parse().ok()),
            quantity: owned("VirtualQuantity"),
            units: owned("AllocationUnits"),
            subtype: owned("ResourceSubType"),
            element_name: owned("ElementName").or_else(|| owned("Caption")),
            connection: owned("Connection"),
            host_resources: children(node, "HostResource")
                .filter_map(text)
                .map(str::to_owned)
                .collect(),
        }
    }

    /// The item's name for a note.
    pub fn label(&self) -> String {
        let name = self.element_name.as_ref().or(self.instance_id.as_ref());
        name.map_or_else(|| "an unnamed item".to_owned(), |name| quote(name))
    }

    pub fn subtype_has(&self, word: &str) -> bool {
        self.subtype
            .as_ref()
            .is_some_and(|subtype| subtype.to_ascii_lowercase().contains(word))
    }
}

/// The items that hold for the default deployment option, in the descriptor's order.
pub fn read(envelope: Node<'_, '_>, section: Node<'_, '_>, notes: &mut Vec<String>) -> Vec<Item> {
    let option = default_option(envelope);
    if let Some(option) = option {
        notes.push(format!(
            "the hardware is that of the deployment option {}",
            quote(option)
        ));
    }
    let mut items: Vec<Item> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    let nodes = section.children().filter(|node| {
        matches!(
            node.tag_name().name(),
            "Item" | "StorageItem" | "EthernetPortItem"
        )
    });
    for node in nodes {
        let options = attribute(node, "configuration");
        let holds = options.is_none_or(|list| list.split_whitespace().any(|o| Some(o) == option));
        if !holds || attribute(node, "bound").is_some_and(|bound| bound != "normal") {
            continue;
        }
        let item = Item::read(node);
        // An item of a deployment option replaces the general one of the same InstanceID.
        let earlier = item.instance_id.as_ref().and_then(|id| places.get(id));
        match earlier.and_then(|&place| items.get_mut(place)) {
            Some(earlier) if options.is_some() => *earlier = item,
            _ => {
                if let Some(id) = &item.instance_id {
                    places.insert(id.clone(), items.len());
                }
                items.push(item);
            }
        }
    }
    items
}

/// The id of the default deployment option: the one marked so, else the first.
fn default_option<'a>(envelope: Node<'a, '_>) -> Option<&'a str> {
    let section = child(envelope, "DeploymentOptionSection")?;
    let marked = children(section, "Configuration")
        .find(|node| attribute(*node, "default").is_some_and(|value| value == "true"));
    let chosen = marked.or_else(|| child(section, "Configuration"))?;
    attribute(chosen, "id")
}
