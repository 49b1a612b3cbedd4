//! Names of disks in the guest's files: which of them survive the move to other virtual hardware.
pub mod crypttab;
pub mod devices;
mod entry;
pub mod fstab;
pub mod lvm;
pub mod units;
