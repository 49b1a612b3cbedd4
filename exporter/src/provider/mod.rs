//! The places that VMs come from, one folder each; `machine::Provider` is what they implement.
pub mod local;
pub mod secret;
pub mod vsphere;
