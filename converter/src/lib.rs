//! The converter: VMs from VMware in, disks that boot under KVM out.
//!
//! Rooms, arrows only downward: worker → convert → {source, guest, libvirt} → qcow2 → disk → error.
pub mod convert;
pub mod disk;
pub mod guest;
pub mod libvirt;
pub mod qcow2;
pub mod source;
pub mod worker;

pub use queue::error;
