//! A model file system for `queue::durable::Volume`: a live image, and what of it outlives a crash.
//!
//! `fsync` of a file makes its bytes durable, not its name. `fsync` of a directory forces the
//! changes of its own entries so far; a rename is whole or not at all, and is forced once both its
//! directories are. What is not forced may be lost, alone or with all that followed; unsynced bytes
//! may be lost too. That is less than ext4, XFS or btrfs promise: code that is right here needs no
//! luck there. A killed process loses only its locks: its changes are all in the live image.
mod disk;
mod names;
mod process;
#[cfg(test)]
mod tests;

pub use disk::{Contents, Crash, Disk};
pub use process::{Fault, Process};
