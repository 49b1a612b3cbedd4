//! The initramfs of every kernel: which tool makes it, what it must hold, and whether it does.
pub mod config;
pub mod listing;
pub mod tool;
