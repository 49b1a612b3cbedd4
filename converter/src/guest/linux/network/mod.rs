//! The network: each interface keeps its name and its addresses on other virtual hardware.
//!
//! The name is tied to the card's MAC address, which the new machine keeps, by one udev rule; what
//! tied it to a slot or a driver, or tied a configuration to a MAC a second time, goes. A room for
//! each way of configuring: what it says (`read`), and what becomes of it (`revise`).
pub mod identity;
pub mod ifcfg;
pub mod ifupdown;
pub mod keyfile;
pub mod netplan;
pub mod networkd;
pub mod rules;
pub mod wicked;
