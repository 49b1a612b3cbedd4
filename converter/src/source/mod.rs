//! Where disks come from.
pub mod ovf;
