//! The exporter: VMs from where they are into an instance's queue, or converted at once.
//!
//! Rooms, arrows only downward: worker → export → provider/ → machine →
//! transfer → error.
pub mod export;
pub mod machine;
pub mod provider;
pub mod transfer;
pub mod worker;

pub use queue::error;
