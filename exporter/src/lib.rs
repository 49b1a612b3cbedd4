//! The exporter: VMs from where they are into an instance's queue, or converted at once.
//!
//! Rooms, arrows only downward: export → provider/ → machine → transfer → error.
pub mod export;
pub mod machine;
pub mod provider;
pub mod transfer;

pub use queue::error;
