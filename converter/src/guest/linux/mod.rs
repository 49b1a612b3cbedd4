//! Repair of a Linux guest: pure functions from the contents of its files to new contents, and a
//! plan of what to write, remove and run. Whoever has the guest open carries the plan out.
//!
//! Every step leaves a repaired guest as it is. What comes from the guest is hostile: sizes are
//! bounded, names checked, and nothing that is not understood is touched.
pub mod agents;
pub mod bootloader;
pub mod edit;
mod ini;
pub mod initramfs;
pub mod modules;
pub mod network;
pub mod plan;
pub mod selinux;
mod shell;
pub mod storage;

#[cfg(test)]
mod tests;
